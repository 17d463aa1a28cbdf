"""Which cluster a person gets from `make demo` and `make cluster`, and what is said where there is none to get."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner
from tools.cluster.choice import Machine, Provider, choose
from tools.cluster.cli import main
from tools.cluster.errors import ClusterError

NAMED, KIND, EMBEDDED = Provider.NAMED, Provider.KIND, Provider.EMBEDDED
WITH_DOCKER = Machine(docker=True, missing=(), root=False)
WITHOUT_KIND = Machine(docker=True, missing=("kind",), root=False)
ROOT = Machine(docker=False, missing=("kind", "helm"), root=True)
ROOT_WITH_DOCKER = Machine(docker=True, missing=(), root=True)
ROOT_WITHOUT_KIND = Machine(docker=True, missing=("kind",), root=True)
NOBODY = Machine(docker=False, missing=(), root=False)
ON_KIND = Machine(docker=True, missing=(), root=True, current=KIND)
ON_EMBEDDED = Machine(docker=True, missing=(), root=True, current=EMBEDDED)


@pytest.mark.parametrize(
    ("machine", "environment", "provider", "why"),
    [
        (WITH_DOCKER, {}, KIND, "a Docker engine answers"),
        (ROOT_WITH_DOCKER, {}, KIND, "a Docker engine answers"),
        (ROOT, {}, EMBEDDED, "no Docker engine answers"),
        (ROOT_WITHOUT_KIND, {}, EMBEDDED, r"kind is not installed \(see https://.*\); with it"),
        (ROOT_WITH_DOCKER, {"FETTLE_CLUSTER": "embedded"}, EMBEDDED, "FETTLE_CLUSTER=embedded"),
        (WITH_DOCKER, {"FETTLE_CLUSTER": "kind"}, KIND, "FETTLE_CLUSTER=kind"),
        (WITH_DOCKER, {"FETTLE_CLUSTER": ""}, KIND, "a Docker engine answers"),
        (ON_EMBEDDED, {}, EMBEDDED, "started here before"),
        (ON_KIND, {"FETTLE_CLUSTER": "kind"}, KIND, "started here before"),
        (ON_KIND, {"FETTLE_KUBECONFIG": "/mine"}, NAMED, "FETTLE_KUBECONFIG=/mine; nothing is started"),
        (NOBODY, {"FETTLE_KUBECONFIG": "/mine", "FETTLE_CLUSTER": "kind"}, NAMED, "FETTLE_KUBECONFIG=/mine"),
    ],
)
def test_a_person_gets_the_cluster_that_this_machine_can_run_and_is_told_why(
    machine: Machine, environment: dict[str, str], provider: Provider, why: str
) -> None:
    chosen = choose(machine, environment)
    assert chosen.provider is provider
    assert re.search(why, chosen.why)


@pytest.mark.parametrize(
    ("machine", "environment", "says"),
    [
        (NOBODY, {}, "no Docker engine answers, and this user is not root .*FETTLE_KUBECONFIG"),
        (WITHOUT_KIND, {}, r"kind is not installed \(see https://kind.*not root.*FETTLE_KUBECONFIG"),
        (NOBODY, {"FETTLE_CLUSTER": "kind"}, "FETTLE_CLUSTER=kind: no Docker engine answers"),
        (ROOT_WITHOUT_KIND, {"FETTLE_CLUSTER": "kind"}, "FETTLE_CLUSTER=kind: kind is not installed"),
        (WITH_DOCKER, {"FETTLE_CLUSTER": "minikube"}, "FETTLE_CLUSTER=minikube: expected kind or embedded"),
        (ON_KIND, {"FETTLE_CLUSTER": "embedded"}, r"another kind \(kind\).*make cluster-down"),
        (ON_EMBEDDED, {"FETTLE_CLUSTER": "kind"}, r"another kind \(embedded\).*make cluster-down"),
    ],
)
def test_without_a_cluster_to_start_the_error_says_what_to_install_or_to_stop(
    machine: Machine, environment: dict[str, str], says: str
) -> None:
    with pytest.raises(ClusterError, match=says) as caught:
        choose(machine, environment)
    assert "\n" not in str(caught.value)


def test_no_cluster_is_started_beside_one_that_is_named() -> None:
    result = CliRunner().invoke(main, ["up"], env={"FETTLE_KUBECONFIG": "/mine"})
    assert result.exit_code == 0
    assert "using the named cluster: FETTLE_KUBECONFIG=/mine; nothing is started" in result.output
    assert "export KUBECONFIG" not in result.output
