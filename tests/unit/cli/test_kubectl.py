"""`kubectl fettle`: what it writes into a ModelDeployment, and what it says when it cannot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.unit.cli.api_server import ApiServer, api_server
from tests.unit.plan.optimize.world import World

from fettle.cli.kubectl import COMMANDS, main
from fettle.plan.rollout_commands import Command

PATH = "/apis/fettle.dev/v1alpha1/namespaces/{}/{}/digits"
STATUS: dict[str, Any] = {
    "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "message": "3 of 3 pods"}],
    "address": {"url": "http://digits.team:8080"},
    "stable": {"revision": "aaaa", "artifact": "pvc://s/artifacts/1", "replicas": 3, "ready": 3},
    "canary": {
        "revision": "bbbb",
        "artifact": "pvc://s/artifacts/2",
        "replicas": 1,
        "ready": 1,
        "weight": 10,
        "actualWeight": 25,
        "step": 1,
        "analysis": {"windowStart": "", "requests": 80, "failures": 2, "verdict": "Bad", "message": "successRate 0.975"},
    },
    "failedRevision": "cccc",
    "revisions": [
        {"revision": "0000", "artifact": "x", "entered": "2026-01-01T00:00:00Z", "left": "2026-01-02T00:00:00Z", "reason": "Superseded"},
        {"revision": "aaaa", "artifact": "x", "entered": "2026-01-02T00:00:00Z"},
    ],
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """An empty cluster."""
    with api_server() as found:
        yield found


def deployment(status: dict[str, Any]) -> dict[str, Any]:
    """A ModelDeployment."""
    spec = {"model": {"ref": {"name": "digits", "target": "cpu"}}}
    return {"metadata": {"name": "digits"}, "spec": spec, "status": status}


def run(server: ApiServer, folder: Path, *arguments: str, namespace: str | None = None) -> Result:
    """One command line against that cluster."""
    kubeconfig = server.kubeconfig(folder, namespace=namespace)
    return CliRunner().invoke(main, [*arguments, "--kubeconfig", str(kubeconfig)])


@pytest.mark.parametrize(
    ("command", "revision"), [("promote", "bbbb"), ("promote-full", "bbbb"), ("abort", "bbbb"), ("retry", "cccc")]
)
def test_a_command_names_its_revision_and_a_token_that_acts_once(
    server: ApiServer, tmp_path: Path, command: str, revision: str
) -> None:
    path = PATH.format("default", "modeldeployments")
    server.objects[path] = deployment(STATUS)
    for _ in range(2):
        result = run(server, tmp_path, command, "digits")
        assert result.exit_code == 0, result.output
        assert f"{command} of revision {revision} ordered" in result.output
    values = [body["metadata"]["annotations"][f"fettle.dev/{command}"] for _, _, body in server.written]
    assert all(re.fullmatch(rf"{revision}/[0-9a-f]{{8}}", value) for value in values)
    assert values[0] != values[1]
    assert [(method, where) for method, where, _ in server.written] == [("PATCH", path)] * 2


def test_every_command_of_the_operator_has_its_word_here() -> None:
    assert {name for name, *_ in COMMANDS} == {command.value for command in Command}


@pytest.mark.parametrize(
    ("arguments", "namespace", "expected"),
    [
        ([], None, "default"),
        ([], "team", "team"),
        (["-n", "other"], "team", "other"),
        (["--context", "there"], "team", "elsewhere"),
    ],
)
def test_the_namespace_is_found_as_kubectl_finds_it(
    server: ApiServer, tmp_path: Path, arguments: list[str], namespace: str | None, expected: str
) -> None:
    server.objects[PATH.format(expected, "modeldeployments")] = deployment(STATUS)
    assert run(server, tmp_path, "abort", "digits", *arguments, namespace=namespace).exit_code == 0


REFUSALS = [
    ("there is no canary", {**STATUS, "canary": None}, None, ["promote"], 2, "has no canary to promote"),
    ("nothing failed", {**STATUS, "failedRevision": None}, None, ["retry"], 2, "has no failed revision to retry"),
    ("no such object", None, None, ["promote"], 1, "not found"),
    ("not allowed", STATUS, (403, "user cannot get"), ["promote"], 1, "user cannot get (Forbidden)"),
    ("no such context", STATUS, None, ["promote", "--context", "nowhere"], 2, "no context 'nowhere'"),
    ("neither of both", None, None, ["status"], 1, "neither a modeldeployment nor an optimizedmodel 'digits'"),
]


@pytest.mark.parametrize(
    ("what", "status", "refusal", "arguments", "code", "message"), REFUSALS, ids=[line[0] for line in REFUSALS]
)
def test_what_cannot_be_done_is_one_line(
    server: ApiServer,
    tmp_path: Path,
    what: str,
    status: dict[str, Any] | None,
    refusal: tuple[int, str] | None,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    path = PATH.format("default", "modeldeployments")
    if status is not None:
        server.objects[path] = deployment({key: value for key, value in status.items() if value is not None})
    if refusal is not None:
        server.refuse[path] = refusal
    result = run(server, tmp_path, arguments[0], "digits", *arguments[1:])
    assert result.exit_code == code
    assert message in result.output
    assert len(result.output.splitlines()) == 1
    assert server.written == []


def test_a_kubeconfig_that_is_not_there_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["promote", "digits", "--kubeconfig", "/nowhere/kubeconfig"])
    assert result.exit_code == 2
    assert "no usable kubeconfig" in result.output


def test_status_shows_both_objects_of_a_name(server: ApiServer, tmp_path: Path) -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    server.objects[PATH.format("default", "modeldeployments")] = deployment(STATUS)
    model = {"metadata": {"name": "digits"}, "spec": world.spec.to_json(), "status": world.status.to_json()}
    server.objects[PATH.format("default", "optimizedmodels")] = model
    result = run(server, tmp_path, "status", "digits")
    assert result.exit_code == 0, result.output
    for words in (
        "modeldeployment/digits",
        "Ready          True     Serving: 3 of 3 pods",
        "stable     aaaa  3/3 ready",
        "canary     bbbb  1/1 ready, weight 25 % (asked 10 %), step 1",
        "analysis   Bad (80 requests, 2 failed): successRate 0.975",
        "failed     cccc",
        "aaaa  entered 2026-01-02T00:00:00Z  serves",
        "0000  entered 2026-01-01T00:00:00Z  left 2026-01-02T00:00:00Z, Superseded",
        "optimizedmodel/digits",
        "artifact   cpu: int8-openvino in openvino, pvc://fettle-store/artifacts/",
        "int8-onnxruntime-in-openvino",
    ):
        assert words in result.output
