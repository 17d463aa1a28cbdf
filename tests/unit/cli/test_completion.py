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

from fettle.cli.completion import kubectl_complete
from fettle.cli.main import main


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A cluster with one object of each kind, as the context that is current."""
    with api_server() as server:
        server.objects[f"{BASE}/modeldeployments"] = {"items": [{"metadata": {"name": "digits"}}]}
        server.objects[f"{BASE}/optimizedmodels"] = {"items": [{"metadata": {"name": "diagrams"}}]}
        server.objects[f"{BASE}/modeldeployments/digits"] = on_trial()
        monkeypatch.setattr(
            "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(server.kubeconfig(tmp_path))
        )
        yield server


def completed(*arguments: str) -> list[str]:
    """What would be offered after these words, of which the last is not finished."""
    *before, incomplete = arguments
    found = ShellComplete(main, {}, "fettle", "_FETTLE_COMPLETE").get_completions(before, incomplete)
    return [item.value for item in found]


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
    assert completed("retry", "md/") == ["md/digits"]
    assert completed("retry", "pod/") == []


@pytest.mark.usefixtures("kubeconfig")
def test_revisions_of_the_deployment_that_was_named() -> None:
    assert completed("rollback-to", "digits", "") == ["cccc", "aaaa"]
    assert completed("rollback-to", "digits", "a") == ["aaaa"]


def test_without_a_cluster_nothing_is_offered_and_nothing_is_said(
    kubeconfig: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeconfig.refuse[f"{BASE}/modeldeployments"] = (403, "no")
    assert completed("promote", "d") == []
    assert completed("rollback-to", "nobody", "") == []
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("kubeconfig")
def test_kubectl_asks_in_its_own_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["kubectl_complete-fettle", "rollback-to", "digits", "a"])
    kubectl_complete()
    assert capsys.readouterr().out.splitlines() == ["aaaa\tserves", ":4"]
