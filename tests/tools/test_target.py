"""Which cluster demos and tests talk to."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tools.cluster.paths import CLUSTERS, FETTLE, TEST, Cluster, Paths
from tools.cluster.target import Target, TargetError, is_harmless, resolve_target


def a_kubeconfig(folder: Path, context: str, server: str = "https://192.0.2.1:6443") -> str:
    file = folder / "named"
    clusters = [{"name": "c", "cluster": {"server": server}}]
    file.write_text(yaml.safe_dump({"current-context": context, "clusters": clusters}))
    return str(file)


@pytest.mark.parametrize(
    ("context", "harmless"),
    [
        ("kind-test", True),
        ("minikube", True),
        ("minikube-2", True),
        ("fettle", True),
        ("fettle-ci", True),
        ("production", False),
        ("my-kind-cluster", False),
        ("Kind-test", False),
        ("", False),
    ],
)
def test_only_contexts_for_trying_things_are_harmless(context: str, harmless: bool) -> None:
    assert is_harmless(context) is harmless


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        (FETTLE, r"cluster fettle is not running: .*make cluster.*FETTLE_KUBECONFIG"),
        (TEST, r"cluster fettle-test is not running: .*make test.*up --name fettle-test.*FETTLE_KUBECONFIG"),
    ],
)
def test_without_its_cluster_the_error_says_how_to_get_it(tmp_path: Path, cluster: Cluster, says: str) -> None:
    with pytest.raises(TargetError, match=says):
        resolve_target({}, Paths(tmp_path, cluster))


def test_a_plain_kubeconfig_is_never_used(tmp_path: Path) -> None:
    with pytest.raises(TargetError):
        resolve_target({"KUBECONFIG": a_kubeconfig(tmp_path, "kind-a")}, Paths(tmp_path))


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_embedded_cluster_is_used_when_it_runs(tmp_path: Path, cluster: Cluster) -> None:
    paths = Paths(tmp_path, cluster)
    paths.folder.mkdir(parents=True)
    paths.kubeconfig.write_text("{}")
    assert resolve_target({"FETTLE_REGISTRY": "ignored"}, paths) == Target(paths.kubeconfig, cluster.registry, paths)


def test_a_demo_that_runs_is_never_taken_for_the_tests_cluster(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.folder.mkdir(parents=True)
    paths.kubeconfig.write_text("{}")
    with pytest.raises(TargetError, match="fettle-test is not running"):
        resolve_target({}, Paths(tmp_path, TEST))


def test_a_named_cluster_comes_with_its_registry(tmp_path: Path) -> None:
    named = a_kubeconfig(tmp_path, "kind-a")
    environment = {"FETTLE_KUBECONFIG": named, "FETTLE_REGISTRY": "localhost:5001/"}
    assert resolve_target(environment, Paths(tmp_path)) == Target(Path(named), "localhost:5001")


@pytest.mark.parametrize(("cluster", "address"), [(FETTLE, "172.31.255.2"), (TEST, "172.31.254.2")])
def test_another_checkouts_embedded_cluster_needs_no_registry_named(
    tmp_path: Path, cluster: Cluster, address: str
) -> None:
    named = a_kubeconfig(tmp_path, cluster.name, f"https://{address}:6443")
    target = resolve_target({"FETTLE_KUBECONFIG": named}, Paths(tmp_path))
    assert (target.registry, target.embedded) == (f"{address}:5000", False)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_named_cluster_of_this_checkout_is_known_as_its_own(tmp_path: Path, cluster: Cluster) -> None:
    own = Paths(tmp_path, cluster)
    own.folder.mkdir(parents=True)
    own.kubeconfig.write_text(Path(a_kubeconfig(tmp_path, cluster.name, cluster.server)).read_text())
    assert resolve_target({"FETTLE_KUBECONFIG": str(own.kubeconfig)}, Paths(tmp_path)).paths == own


def test_somebodys_cluster_is_used_only_when_confirmed(tmp_path: Path) -> None:
    environment = {"FETTLE_KUBECONFIG": a_kubeconfig(tmp_path, "production")}
    with pytest.raises(TargetError, match=r"production.*CONFIRM=yes"):
        resolve_target(environment, Paths(tmp_path))
    assert not resolve_target({**environment, "CONFIRM": "yes"}, Paths(tmp_path)).embedded


@pytest.mark.parametrize("content", [None, "[]", "a: [", ""])
def test_what_is_no_kubeconfig_gives_one_clear_line(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "named"
    if content is not None:
        file.write_text(content)
    with pytest.raises(TargetError) as caught:
        resolve_target({"FETTLE_KUBECONFIG": str(file)}, Paths(tmp_path))
    assert "\n" not in str(caught.value)
