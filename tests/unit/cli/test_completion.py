"""Shell completion: scripts for three shells; names and revisions from the cluster, silence where there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from tests.unit.cli.api_server import ApiServer, api_server
from tests.unit.cli.test_look import BASE, on_trial

from fettle.cli.kubectl import CLUSTER_COMMANDS, complete
from fettle.cli.main import main


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A cluster with one object of each kind, as the context that is current."""
    with api_server() as server:
        server.objects[f"{BASE}/modeldeployments"] = {"items": [{"metadata": {"name": "digits"}}]}
        server.objects[f"{BASE}/optimizedmodels"] = {"items": [{"metadata": {"name": "diagrams"}}]}
        server.objects[f"{BASE}/modeldeployments/digits"] = on_trial()
        spaces = [{"metadata": {"name": "default"}}, {"metadata": {"name": "vision"}}]
        server.objects["/api/v1/namespaces"] = {"items": spaces}
        monkeypatch.setattr(
            "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(server.kubeconfig(tmp_path))
        )
        yield server


FILES_OF_THE_SHELL = "(files)"


def completed(*arguments: str) -> list[str]:
    """What would be offered after these words, of which the last is not finished."""
    *before, incomplete = arguments
    found = ShellComplete(main, {}, "fettle", "_FETTLE_COMPLETE").get_completions(before, incomplete)
    return [item.value if item.type == "plain" else FILES_OF_THE_SHELL for item in found]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_calls_back(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell], prog_name="fettle")
    assert result.exit_code == 0
    assert "_FETTLE_COMPLETE" in result.output


def test_commands_are_completed() -> None:
    assert completed("pro") == ["promote", "promote-full"]


@pytest.mark.usefixtures("kubeconfig")
def test_names_of_deployments_or_of_both_kinds() -> None:
    assert completed("promote", "d") == ["digits"]
    assert completed("status", "d") == ["digits", "diagrams"]


@pytest.mark.usefixtures("kubeconfig")
def test_names_of_either_kind_behind_its_short_name() -> None:
    assert completed("retry", "d") == ["digits", "diagrams"]
    assert completed("retry", "om/d") == ["om/diagrams"]
    assert completed("retry", "mdep/") == ["mdep/digits"]
    assert completed("retry", "pod/") == []
    assert completed("status", "OptimizedModels.fettle.dev/") == ["OptimizedModels.fettle.dev/diagrams"]
    assert (completed("promote", "mdep/"), completed("promote", "om/")) == (["mdep/digits"], [])
    assert completed("-n", "default", "promote", "d") == ["digits"]


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize("command", ["abort", "history", "pause", "promote", "promote-full", "resume", "rollback-to"])
def test_every_command_for_a_rollout_knows_its_names(command: str) -> None:
    assert completed(command, "") == ["digits"]


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(
    ("command", "offered"), [("why", ["digits", "diagrams"]), ("report", ["diagrams"]), ("tensorboard", ["diagrams"])]
)
def test_every_other_command_knows_the_names_of_its_kinds(command: str, offered: list[str]) -> None:
    assert completed(command, "") == offered


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize("option", ["--namespace", "--context", "--kubeconfig"])
@pytest.mark.parametrize("command", sorted(set(CLUSTER_COMMANDS) - {"completion"}))
def test_what_says_which_cluster_is_completed_with_every_command(command: str, option: str) -> None:
    offered = {
        "--namespace": ["default", "vision"],
        "--context": ["here", "there"],
        "--kubeconfig": [FILES_OF_THE_SHELL],
    }
    assert completed(command, option, "") == offered[option]


@pytest.mark.parametrize(
    "command",
    ["abort", "history", "pause", "promote", "promote-full", "resume", "retry", "rollback-to", "status", "why"],
)
def test_the_formats_for_programs_are_completed(command: str) -> None:
    assert completed(command, "digits", "-o", "") == ["json", "yaml"]


@pytest.mark.usefixtures("kubeconfig")
def test_a_model_that_is_pulled_is_named_behind_its_kind() -> None:
    assert completed("pull", "om/d") == ["om/diagrams"]


@pytest.mark.parametrize("words", [("push", ""), ("pull", ""), ("optimize", "-f", ""), ("optimize", "--store", "")])
def test_files_are_left_to_the_shell(words: tuple[str, ...]) -> None:
    assert completed(*words) == [FILES_OF_THE_SHELL]


@pytest.mark.usefixtures("kubeconfig")
def test_revisions_of_the_deployment_that_was_named() -> None:
    assert completed("rollback-to", "digits", "") == ["cccc", "aaaa"]
    assert completed("rollback-to", "digits", "a") == ["aaaa"]


def test_without_a_cluster_nothing_is_offered_and_nothing_is_said(
    kubeconfig: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeconfig.refuse[f"{BASE}/modeldeployments"] = kubeconfig.refuse["/api/v1/namespaces"] = (403, "no")
    assert completed("promote", "d") == []
    assert completed("rollback-to", "nobody", "") == []
    assert completed("promote", "-n", "") == []
    assert completed("promote", "--kubeconfig", "/nowhere", "--context", "") == []
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("kubeconfig")
def test_kubectl_asks_in_its_own_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["kubectl_complete-fettle", *words])
        complete()
        return capsys.readouterr().out.splitlines()

    assert asked("rollback-to", "digits", "a") == ["aaaa\tserves", ":4"]
    assert asked("push", "mod") == [":0"], "files are left to its shell"
