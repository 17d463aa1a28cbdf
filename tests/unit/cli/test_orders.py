"""What a program gets of a command that steers: the order as it was written, or one line on stderr and an exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from tests.unit.cli.api_server import ApiServer, api_server
from tests.unit.cli.test_kubectl import PATH, STATUS, deployment, model

from fettle.cli.kubectl import main

DEPLOYMENT, MODEL = PATH.format("default", "modeldeployments"), PATH.format("default", "optimizedmodels")
ORDERS: list[tuple[list[str], str, str | None]] = [  # words, resource, revision
    (["promote", "digits"], "modeldeployments", "bbbb"),
    (["promote-full", "digits"], "modeldeployments", "bbbb"),
    (["abort", "digits"], "modeldeployments", "bbbb"),
    (["retry", "digits"], "modeldeployments", "cccc"),
    (["retry", "om/digits"], "optimizedmodels", None),
    (["rollback-to", "digits", "00", "--now"], "modeldeployments", "0000"),
    (["pause", "digits"], "modeldeployments", None),
    (["resume", "digits"], "modeldeployments", None),
]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A canary on trial, and a model whose source was not there."""
    with api_server() as found:
        found.objects = {DEPLOYMENT: deployment(STATUS), MODEL: model("SourceNotFound")}
        yield found


def run(server: ApiServer, folder: Path, *words: str) -> Result:
    """stdout and stderr apart, as a program has them."""
    return CliRunner().invoke(main, [*words, "--kubeconfig", str(server.kubeconfig(folder))])


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
@pytest.mark.parametrize(("words", "resource", "revision"), ORDERS, ids=[" ".join(order[0]) for order in ORDERS])
def test_an_order_is_printed_as_it_was_written(
    server: ApiServer, tmp_path: Path, words: list[str], resource: str, revision: str | None, form: str, load: Any
) -> None:
    result = run(server, tmp_path, *words, "-o", form)
    assert (result.exit_code, result.stderr) == (0, "")
    order = load(result.stdout)
    ((_, path, body),) = server.written
    assert path == PATH.format("default", resource)
    assert order == {
        "command": words[0],
        "object": {"resource": resource, "namespace": "default", "name": "digits"},
        "revision": revision,
        "annotations": body["metadata"]["annotations"],
        "message": order["message"],
    }
    assert order["message"] in run(server, tmp_path, *words).stdout, "what people are told"


def test_the_annotations_of_an_order_are_named_whole(server: ApiServer, tmp_path: Path) -> None:
    back = json.loads(run(server, tmp_path, "rollback-to", "digits", "00", "--now", "-o", "json").stdout)
    assert set(back["annotations"]) == {"fettle.dev/rollback-to", "fettle.dev/promote-full"}
    on = json.loads(run(server, tmp_path, "resume", "digits", "-o", "json").stdout)
    assert on["annotations"] == {"fettle.dev/paused": None}, "null is one that was taken away"


@pytest.mark.parametrize(
    ("words", "refused", "code"),
    [
        (["promote", "nobody"], None, 1),
        (["abort", "digits"], 403, 1),
        (["rollback-to", "digits", "dead"], None, 2),
        (["retry", "pod/digits"], None, 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_program_that_is_refused_gets_a_line_on_stderr_and_no_document(
    server: ApiServer, tmp_path: Path, words: list[str], refused: int | None, code: int
) -> None:
    if refused is not None:
        server.refuse[DEPLOYMENT] = (refused, "no")
    result = run(server, tmp_path, *words, "-o", "json")
    assert (result.exit_code, result.stdout) == (code, "")
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("Error: ")
    assert server.written == []


def test_resume_of_what_the_spec_pauses_prints_no_order(server: ApiServer, tmp_path: Path) -> None:
    server.objects[DEPLOYMENT]["spec"]["paused"] = True
    result = run(server, tmp_path, "resume", "digits", "-o", "json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "set spec.paused to false" in result.stderr
    assert server.written[0][2] == {"metadata": {"annotations": {"fettle.dev/paused": None}}}, "its own part is done"
