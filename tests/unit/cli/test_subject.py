"""Objects and namespaces are named on the command line as kubectl takes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.unit.cli.api_server import ApiServer, api_server
from tests.unit.cli.test_kubectl import PATH, STATUS, deployment, model

from fettle.cli.kubectl import main
from fettle.cli.main import main as fettle

BASE = "/apis/fettle.dev/v1alpha1/namespaces/default"
MODEL_NAMES = (
    "om/digits",
    "optimizedmodel/digits",
    "optimizedmodels/digits",
    "OptimizedModel/digits",
    "optimizedmodel.fettle.dev/digits",
    "optimizedmodels.v1alpha1.fettle.dev/digits",
)
DEPLOYMENT_NAMES = (
    "mdep/digits",
    "modeldeployment/digits",
    "modeldeployments/digits",
    "ModelDeployment/digits",
    "modeldeployment.fettle.dev/digits",
)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """Both kinds under one name in two namespaces."""
    with api_server() as found:
        for namespace in ("default", "vision"):
            found.objects[PATH.format(namespace, "modeldeployments")] = deployment(STATUS)
            found.objects[PATH.format(namespace, "optimizedmodels")] = model("SourceNotFound")
        found.objects[f"{BASE}/optimizedmodels"] = {"items": [model("SourceNotFound")]}
        yield found


def run(server: ApiServer, folder: Path, *arguments: str, program: Any = main) -> Result:
    """One command line, with the cluster in front of the command."""
    return CliRunner().invoke(program, ["--kubeconfig", str(server.kubeconfig(folder)), *arguments])


@pytest.mark.parametrize("command", ["status", "why"])
@pytest.mark.parametrize("name", [*MODEL_NAMES, *DEPLOYMENT_NAMES, "digits"])
def test_only_the_kind_that_is_named_is_shown(server: ApiServer, tmp_path: Path, command: str, name: str) -> None:
    result = run(server, tmp_path, command, name)
    assert result.exit_code == 0, result.output
    output = result.output.replace("follows optimizedmodel/digits", "")  # what a ModelDeployment says of itself
    shown = {kind for kind in ("optimizedmodel", "modeldeployment") if f"{kind}/digits" in output}
    wanted = {"optimizedmodel"} if name in MODEL_NAMES else {"modeldeployment"}
    assert shown == ({"optimizedmodel", "modeldeployment"} if name == "digits" else wanted)


def test_a_kind_that_is_named_is_the_only_document_too(server: ApiServer, tmp_path: Path) -> None:
    server.objects[PATH.format("default", "optimizedmodels")]["kind"] = "OptimizedModel"
    result = run(server, tmp_path, "status", "om/digits", "-o", "yaml")
    assert result.exit_code == 0 and "kind: OptimizedModel" in result.output and "kind: List" not in result.output


@pytest.mark.parametrize("name", DEPLOYMENT_NAMES)
def test_a_command_for_a_rollout_takes_its_kind_in_front_of_the_name(
    server: ApiServer, tmp_path: Path, name: str
) -> None:
    result = run(server, tmp_path, "promote", name)
    assert result.exit_code == 0, result.output
    ((_, where, _),) = server.written
    assert where == PATH.format("default", "modeldeployments")


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_model_is_tried_again_by_any_name_of_its_kind(server: ApiServer, tmp_path: Path, name: str) -> None:
    result = run(server, tmp_path, "retry", name)
    assert result.exit_code == 0, result.output
    ((_, where, _),) = server.written
    assert where == PATH.format("default", "optimizedmodels")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("promote", "om/digits"), "om/digits: expected NAME or mdep/NAME (a modeldeployment)"),
        (("report", "mdep/digits"), "mdep/digits: expected NAME or om/NAME (an optimizedmodel)"),
        (("status", "pod/digits"), "expected NAME, mdep/NAME (a modeldeployment) or om/NAME (an optimizedmodel)"),
        (("status", "om/"), "om/: expected NAME"),
        (("status", "om/a/b"), "om/a/b: expected NAME"),
        (("status", "om/nobody"), "no optimizedmodel 'nobody' in namespace 'default' (optimizedmodels: digits)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_another_kind_is_refused_in_one_line(
    server: ApiServer, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = run(server, tmp_path, *arguments)
    assert result.exit_code in (1, 2) and said in result.output
    assert result.output.count("\n") == 1 and not server.written


@pytest.mark.parametrize("arguments", [("why", "digits"), ("status", "om/digits"), ("report", "digits")])
def test_what_is_in_another_namespace_is_found_there(
    server: ApiServer, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    for plural in ("modeldeployments", "optimizedmodels"):
        server.objects[f"{BASE.replace('default', 'team')}/{plural}"] = {"items": []}
        item = {"metadata": {"name": "digits", "namespace": "vision"}}
        server.objects[f"/apis/fettle.dev/v1alpha1/{plural}"] = {"items": [item]}
    result = run(server, tmp_path, "-n", "team", *arguments)
    assert result.exit_code == 1
    assert "there is one in namespace vision, which -n selects" in result.output
    assert any("fieldSelector=metadata.name%3Ddigits" in path for path in server.asked)


def test_whoever_may_not_look_into_all_namespaces_still_learns_of_the_option(server: ApiServer, tmp_path: Path) -> None:
    server.refuse["/apis/fettle.dev/v1alpha1/optimizedmodels"] = (403, "forbidden")
    result = run(server, tmp_path, "status", "om/nobody")
    assert result.exit_code == 1
    assert result.output.endswith("(optimizedmodels: digits); -n NAMESPACE selects another namespace\n")


@pytest.mark.parametrize(("model_name", "told"), [("digits-better", True), ("digits", False)])
def test_why_says_that_a_deployment_follows_a_model_of_another_name(
    server: ApiServer, tmp_path: Path, model_name: str, told: bool
) -> None:
    server.objects[PATH.format("default", "modeldeployments")]["spec"]["model"]["ref"]["name"] = model_name
    result = run(server, tmp_path, "why", "digits")
    assert result.exit_code == 0, result.output
    assert ("follows optimizedmodel/digits-better: kubectl fettle why om/digits-better" in result.output) is told


@pytest.mark.parametrize(
    ("arguments", "namespace"),
    [
        (("-n", "vision", "promote", "digits"), "vision"),
        (("--namespace=vision", "promote", "digits"), "vision"),
        (("promote", "digits", "-n", "vision"), "vision"),
        (("-n", "elsewhere", "promote", "digits", "-n", "vision"), "vision"),
        (("promote", "digits"), "default"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
@pytest.mark.parametrize("program", [main, fettle], ids=["kubectl fettle", "fettle"])
def test_the_namespace_may_stand_before_or_behind_the_command(
    server: ApiServer, tmp_path: Path, program: Any, arguments: tuple[str, ...], namespace: str
) -> None:
    result = run(server, tmp_path, *arguments, program=program)
    assert result.exit_code == 0, result.output
    ((_, where, _),) = server.written
    assert where == PATH.format(namespace, "modeldeployments")


@pytest.mark.parametrize("command", ["version", "optimize"])
def test_a_command_that_talks_to_no_cluster_takes_no_namespace(server: ApiServer, tmp_path: Path, command: str) -> None:
    result = run(server, tmp_path, "-n", "vision", command, program=fettle)
    assert (result.exit_code, "works without a cluster" in result.output) == (2, True), result.output
