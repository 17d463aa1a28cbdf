"""`kubectl fettle`: what it writes into a ModelDeployment, and what it says when it cannot."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from tests.unit.cli.api_server import ApiServer, api_server

from fettle.cli.kubectl import CLUSTER_COMMANDS, main
from fettle.cli.main import LATER
from fettle.cli.main import main as fettle
from fettle.plan.commands import Command

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
    "desiredRevision": "bbbb",
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
        assert f"{command} requested for revision {revision}" in result.output
    values = [body["metadata"]["annotations"][f"fettle.dev/{command}"] for _, _, body in server.written]
    assert all(re.fullmatch(rf"{revision}/[0-9a-f]{{8}}", value) for value in values)
    assert values[0] != values[1]
    assert [(method, where) for method, where, _ in server.written] == [("PATCH", path)] * 2


def model(reason: str, *candidates: dict[str, Any]) -> dict[str, Any]:
    """An OptimizedModel whose run came to `reason`."""
    ready = {"type": "Ready", "status": "False", "reason": reason, "message": "it was said", "observedGeneration": 1}
    spec = {"source": {"uri": "pvc://models/digits.onnx"}, "targets": [{"name": "cpu"}]}
    status = {"observedGeneration": 1, "conditions": [ready], "candidates": list(candidates)}
    return {"metadata": {"name": "digits", "generation": 1}, "spec": spec, "status": status}


BROKEN = {"name": "int8", "target": "cpu", "runtime": "openvino", "recipe": "int8", "settings": {}, "state": "Failed"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (model("SourceNotFound"), "retry requested (SourceNotFound)"),
        (model("Published"), "retry requested (nothing failed; checking that the published artifacts are complete)"),
        (model("Published", BROKEN), "retry requested (1 failed candidate: cpu/int8)"),
        (model("ConstraintsNotMet", BROKEN), "retry requested (1 failed candidate: cpu/int8)"),
        (model("Measuring", BROKEN), "retry requested, after the current measurement (1 failed candidate: cpu/int8)"),
    ],
    ids=[
        "a fault",
        "what is published",
        "a candidate",
        "a candidate of a run without a winner",
        "a candidate, while others are measured",
    ],
)
@pytest.mark.parametrize("name", ["digits", "om/digits"])
def test_a_retry_of_a_model_is_a_token_that_acts_once(
    server: ApiServer, tmp_path: Path, name: str, found: dict[str, Any], said: str
) -> None:
    path = PATH.format("default", "optimizedmodels")
    server.objects[path] = found
    if name == "om/digits":
        server.objects[PATH.format("default", "modeldeployments")] = deployment(STATUS)
    result = run(server, tmp_path, "retry", name)
    assert (result.exit_code, said in result.output) == (0, True), result.output
    ((method, where, body),) = server.written
    assert (method, where) == ("PATCH", path)
    assert re.fullmatch("[0-9a-f]{8}", body["metadata"]["annotations"]["fettle.dev/retry"])


@pytest.mark.parametrize(
    ("name", "found", "code", "message"),
    [
        ("om/digits", model("NotFaster"), 2, "no failed task to retry (its Ready condition has reason NotFaster)"),
        ("digits", model("ConstraintsNotMet"), 2, "for another outcome, change the spec"),
        ("digits", model("Preparing"), 2, "its Ready condition has reason Preparing"),
        ("pod/digits", model("SourceNotFound"), 2, "expected NAME, mdep/NAME"),
        ("mdep/digits", model("SourceNotFound"), 1, "not found"),
        ("om/digits", None, 1, "not found"),
    ],
)
def test_a_retry_where_nothing_failed_is_refused_in_one_line(
    server: ApiServer, tmp_path: Path, name: str, found: dict[str, Any] | None, code: int, message: str
) -> None:
    for plural in ("modeldeployments", "optimizedmodels"):
        server.objects[f"/apis/fettle.dev/v1alpha1/namespaces/default/{plural}"] = {"items": []}
    if found is not None:
        server.objects[PATH.format("default", "optimizedmodels")] = found
    result = run(server, tmp_path, "retry", name)
    assert (result.exit_code, message in result.output) == (code, True), result.output
    assert len(result.output.splitlines()) == 1
    assert server.written == []


@pytest.mark.parametrize("command", ["status", "why"])
def test_a_run_that_ended_with_a_fault_names_the_command_that_tries_it_again(
    server: ApiServer, tmp_path: Path, command: str
) -> None:
    path = PATH.format("default", "optimizedmodels")
    server.objects[path] = model("SourceNotFound")
    assert (
        "SourceNotFound (to retry: kubectl fettle retry om/digits)" in run(server, tmp_path, command, "digits").output
    )
    for reason in ("Preparing", "ConstraintsNotMet"):
        server.objects[path] = model(reason)
        assert "retry" not in run(server, tmp_path, command, "digits").output


def test_every_command_of_the_operator_has_its_word_here() -> None:
    assert {command.value for command in Command} <= set(CLUSTER_COMMANDS)


@pytest.mark.parametrize("program", [main, fettle])
@pytest.mark.parametrize("command", sorted(CLUSTER_COMMANDS))
def test_every_command_says_what_it_does_with_an_example(program: Any, command: str) -> None:
    result = CliRunner().invoke(program, [command, "--help"])
    assert result.exit_code == 0
    assert re.search(rf"^\s+(kubectl fettle|fettle|source <\(fettle) {command}", result.output, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(LATER))
def test_the_list_of_commands_has_the_first_sentence_of_each_help(name: str) -> None:
    command = fettle.get_command(click.Context(fettle), name)
    assert command is not None and command.help is not None
    sentence = re.match(r"(.+?\.)(\s|$)", " ".join(inspect.cleandoc(command.help).split()))
    assert sentence is not None and sentence[1] == LATER[name][1]


@pytest.mark.parametrize(("given", "target"), [("0000", "0000"), ("00", "0000"), ("aaaa", "aaaa")])
def test_rollback_to_names_what_it_flees_from_and_where_to(
    server: ApiServer, tmp_path: Path, given: str, target: str
) -> None:
    server.objects[PATH.format("default", "modeldeployments")] = deployment(STATUS)
    result = run(server, tmp_path, "rollback-to", "digits", given)
    assert result.exit_code == 0, result.output
    ((_, _, body),) = server.written
    notes = body["metadata"]["annotations"]
    assert set(notes) == {"fettle.dev/rollback-to"}
    assert re.fullmatch(rf"bbbb/{target}/[0-9a-f]{{8}}", notes["fettle.dev/rollback-to"])


NEVER_SERVED = {"revision": "dddd", "artifact": "x", "left": "2026-01-03T00:00:00Z", "reason": "AnalysisFailed"}
DESIRED = {"revision": "bbbb", "artifact": "x", "entered": "2026-01-04T00:00:00Z"}
BACK_AGAIN = {"revision": "aaaa", "artifact": "x", "entered": "2026-01-05T00:00:00Z"}


def test_rollback_to_without_a_revision_goes_to_the_one_that_served_before(server: ApiServer, tmp_path: Path) -> None:
    status = {**STATUS, "revisions": [*STATUS["revisions"], NEVER_SERVED, DESIRED]}
    server.objects[PATH.format("default", "modeldeployments")] = deployment(status)
    result = run(server, tmp_path, "rollback-to", "digits", "--now")
    assert result.exit_code == 0, result.output
    assert "rollback from revision bbbb to aaaa, the previous revision, requested" in result.output
    notes = server.written[0][2]["metadata"]["annotations"]
    assert notes["fettle.dev/rollback-to"].startswith("bbbb/aaaa/")
    assert notes["fettle.dev/promote-full"].startswith("aaaa/")


def test_rollback_to_now_skips_the_steps_with_the_same_token(server: ApiServer, tmp_path: Path) -> None:
    server.objects[PATH.format("default", "modeldeployments")] = deployment(STATUS)
    assert run(server, tmp_path, "rollback-to", "digits", "0000", "--now").exit_code == 0
    notes = server.written[0][2]["metadata"]["annotations"]
    token = notes["fettle.dev/rollback-to"].split("/")[2]
    assert notes["fettle.dev/promote-full"] == f"0000/{token}"


def test_a_rollback_on_its_way_may_still_be_told_to_skip_the_steps(server: ApiServer, tmp_path: Path) -> None:
    server.objects[PATH.format("default", "modeldeployments")] = deployment(GOING_BACK)
    assert run(server, tmp_path, "rollback-to", "digits", "--now").exit_code == 0
    assert server.written[0][2]["metadata"]["annotations"]["fettle.dev/promote-full"].startswith("aaaa/")


@pytest.mark.parametrize(("command", "value"), [("pause", "true"), ("resume", None)])
def test_pause_and_resume_are_one_annotation(
    server: ApiServer, tmp_path: Path, command: str, value: str | None
) -> None:
    server.objects[PATH.format("default", "modeldeployments")] = deployment(STATUS)
    assert run(server, tmp_path, command, "digits").exit_code == 0
    assert server.written[0][2] == {"metadata": {"annotations": {"fettle.dev/paused": value}}}


def test_resume_says_that_the_spec_pauses_it_too(server: ApiServer, tmp_path: Path) -> None:
    found = deployment(STATUS)
    found["spec"]["paused"] = True
    server.objects[PATH.format("default", "modeldeployments")] = found
    result = run(server, tmp_path, "resume", "digits")
    assert (result.exit_code, "set spec.paused to false" in result.output) == (2, True)


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


IN_FORCE = {"rollback": {"desired": "bbbb", "target": "aaaa"}, "revisions": [*STATUS["revisions"], DESIRED, BACK_AGAIN]}
ROLLED_BACK = {**STATUS, **IN_FORCE, "canary": None}
GOING_BACK = {
    **STATUS,
    **IN_FORCE,
    "stable": {**STATUS["stable"], "revision": "bbbb"},
    "canary": {**STATUS["canary"], "revision": "aaaa"},
}
FORBIDDEN = 'digits is forbidden: User "jo" cannot get resource "modeldeployments" in API group "fettle.dev"'
TWINS = {**STATUS, "revisions": [*STATUS["revisions"], {"revision": "0001", "artifact": "x"}]}
REFUSALS = [
    ("there is no canary", {**STATUS, "canary": None}, None, ["promote"], 2, "has no canary to promote"),
    ("nothing failed", {**STATUS, "failedRevision": None}, None, ["retry"], 2, "optimizedmodel that it follows: kubectl fettle retry om/"),
    ("no such object", None, None, ["promote"], 1, "not found; existing: other"),
    ("not allowed", STATUS, (403, FORBIDDEN), ["promote"], 1, "permission to get modeldeployments.fettle.dev: "),
    ("a login that ran out", STATUS, (401, "Unauthorized"), ["promote"], 1, "log in again"),
    ("a server that is overloaded", STATUS, (429, "too many requests"), ["promote"], 1, "too many requests (ClusterUnreachable)"),
    ("a server without its etcd", STATUS, (503, "etcd is away"), ["promote"], 1, "etcd is away (ClusterUnreachable)"),
    ("a request that makes no sense", STATUS, (422, "no"), ["promote"], 1, "no (InvalidSpec)"),
    ("no such revision", STATUS, None, ["rollback-to", "dead"], 2, "no revision 'dead' in the ledger"),
    ("what is asked for", STATUS, None, ["rollback-to", "bbbb"], 2, "is already the one that modeldeployment digits asks for"),
    ("no revision before it", {**STATUS, "revisions": [NEVER_SERVED, DESIRED]}, None, ["rollback-to"], 2, "no other revision of"),
    ("a rollback that is done", ROLLED_BACK, None, ["rollback-to", "--now"], 2, "to go further back: kubectl fettle rollback-to digits 0000"),
    ("a rollback on its way", GOING_BACK, None, ["rollback-to"], 2, "is already being rolled back (--now skips the steps) from"),
    ("a revision of two", TWINS, None, ["rollback-to", "0"], 2, "2 revisions start with '0'"),
    ("a model not ready", {**STATUS, "desiredRevision": None}, None, ["rollback-to", "0000"], 2, "is not ready"),
    ("no such context", STATUS, None, ["promote", "--context", "nowhere"], 2, "context 'nowhere' not found"),
    ("neither of both", None, None, ["status"], 1, "optimizedmodel 'digits' in namespace 'default' (modeldeployments: other; optimizedmodels: none)"),
]  # fmt: skip


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
    listed = "/apis/fettle.dev/v1alpha1/namespaces/default"
    server.objects[f"{listed}/modeldeployments"] = {"items": [{"metadata": {"name": "other"}}]}
    server.objects[f"{listed}/optimizedmodels"] = {"items": []}
    if status is not None:
        server.objects[path] = deployment({key: value for key, value in status.items() if value is not None})
    if refusal is not None:
        server.refuse[path] = refusal
    result = run(server, tmp_path, arguments[0], "digits", *arguments[1:])
    assert result.exit_code == code, result.output
    assert message in result.output
    assert len(result.output.splitlines()) == 1
    assert server.written == []


def test_a_kubeconfig_that_is_not_there_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["promote", "digits", "--kubeconfig", "/nowhere/kubeconfig"])
    assert result.exit_code == 2
    assert "no usable kubeconfig" in result.output


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with api_server() as server:
        kubeconfig = server.kubeconfig(tmp_path)
    result = CliRunner().invoke(main, ["promote", "digits", "--kubeconfig", str(kubeconfig)])
    assert result.exit_code == 1
    assert "the API server does not answer" in result.output
    assert "check that the cluster is running" in result.output
    assert len(result.output.splitlines()) == 1


def test_a_cluster_without_fettle_is_told_so(server: ApiServer, tmp_path: Path) -> None:
    result = run(server, tmp_path, "promote", "digits")
    assert "the cluster has no resource modeldeployments.fettle.dev: is Fettle installed?" in result.output
