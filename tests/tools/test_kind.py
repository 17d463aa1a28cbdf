"""The cluster of kind, as far as it can be driven without Docker: `docker`, `kind` and `kubectl` are programs that note what they are told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tools.cluster import images, kind
from tools.cluster.choice import Provider, choose, look
from tools.cluster.errors import ClusterError
from tools.cluster.paths import Paths
from tools.cluster.shell import Progress
from tools.cluster.target import Target, resolve_target

KIND = """
case "$1 $2" in
"get clusters") cat "$STATE/clusters" ;;
"get nodes") grep -qx "$4" "$STATE/clusters" && echo "$4-control-plane" ;;
"create cluster") if [ -e "$STATE/broken" ]; then echo "ERROR: failed to create cluster: no space left" >&2; exit 1; fi
  echo "$4" >>"$STATE/clusters"; date +%N >"$STATE/id"; printf 'current-context: kind-%s\\nclusters: []\\n' "$4" >"$6" ;;
"export kubeconfig") printf 'current-context: kind-%s\\nclusters: []\\n' "$4" >"$6" ;;
"delete cluster") grep -vx "$4" "$STATE/clusters" >"$STATE/rest"; mv "$STATE/rest" "$STATE/clusters"; rm -f "$6" ;;
"load docker-image") grep -qx "$3" "$STATE/built" && echo "$3" >>"$STATE/loaded" ;;
*) exit 2 ;;
esac
"""
DOCKER = """
case "$1" in
version) [ ! -e "$STATE/stopped" ] ;;
build) echo "attestations: ${BUILDX_NO_DEFAULT_ATTESTATIONS:-default}" >>"$STATE/builds"; echo "$5" >>"$STATE/built" ;;
exec) grep -qx "$6" "$STATE/loaded" ;;
start) ;;
inspect) cat "$STATE/id" ;;
*) exit 2 ;;
esac
"""


@dataclass
class Machine:
    """A checkout on a machine with the three programs."""

    paths: Paths
    state: Path

    @property
    def told(self) -> list[str]:
        """Every command, in order."""
        file = self.state / "told"
        return file.read_text().splitlines() if file.exists() else []

    def clear(self) -> None:
        (self.state / "told").unlink(missing_ok=True)

    def lines(self, name: str) -> list[str]:
        return (self.state / name).read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    state, programs, root = (tmp_path / name for name in ("state", "programs", "checkout"))
    for folder in (state, programs, root / "docker", root / "operator"):
        folder.mkdir(parents=True)
    for name, body in (("kind", KIND), ("docker", DOCKER), ("kubectl", ""), ("helm", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nSTATE="{state}"\necho "{name} $*" >>"$STATE/told"\n{body}\n')
        program.chmod(0o755)
    for name in ("clusters", "loaded", "built", "builds"):
        (state / name).touch()
    for name in images.NAMES:
        (root / "docker" / f"Dockerfile.{name}").write_text("FROM scratch\nCOPY operator /operator\n")
    (root / "operator" / "code.py").write_text("first")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FETTLE_CLUSTER", raising=False)
    monkeypatch.delenv("FETTLE_KUBECONFIG", raising=False)
    return Machine(Paths(root), state)


def up(machine: Machine) -> bool:
    return kind.up(machine.paths, Progress())


def test_a_cluster_that_is_missing_is_made_and_used(machine: Machine) -> None:
    assert choose(look(machine.paths), {}).provider is Provider.KIND
    assert up(machine)
    kubeconfig = machine.paths.kubeconfig
    assert f"kind create cluster --name fettle --kubeconfig {kubeconfig}" in machine.told
    assert yaml.safe_load(kubeconfig.read_text())["current-context"] == "kind-fettle"
    assert resolve_target({}, machine.paths) == Target(kubeconfig, "localhost", kind="fettle")
    assert choose(look(machine.paths), {}).provider is Provider.KIND


def test_one_that_is_there_is_started_again_and_kept(machine: Machine) -> None:
    up(machine)
    machine.paths.kubeconfig.unlink()
    machine.clear()
    assert not up(machine)
    assert not any(line.startswith("kind create") for line in machine.told)
    assert "docker start fettle-control-plane" in machine.told
    assert machine.paths.kubeconfig.exists()


def test_a_cluster_of_that_name_that_somebody_else_made_is_left_alone(machine: Machine) -> None:
    (machine.state / "clusters").write_text("fettle\n")
    with pytest.raises(
        ClusterError, match=r"did not make: delete it with `kind delete cluster --name fettle`.*FETTLE_KUBECONFIG"
    ):
        up(machine)
    assert machine.told == ["kind get clusters"]
    assert not kind.is_ours(machine.paths)


def test_one_that_cannot_be_made_says_why_and_is_not_taken_for_ours(machine: Machine) -> None:
    (machine.state / "broken").touch()
    with pytest.raises(ClusterError, match=r"failed to create cluster: no space left \(full log: .*kind.log"):
        up(machine)
    assert not kind.is_ours(machine.paths)


def test_down_deletes_ours_and_the_next_choice_is_free(machine: Machine) -> None:
    (machine.state / "clusters").write_text("theirs\n")
    up(machine)
    kind.down(machine.paths, Progress())
    assert machine.lines("clusters") == ["theirs"]
    assert not machine.paths.kubeconfig.exists()
    assert look(machine.paths).current is None
    kind.down(machine.paths, Progress())  # a second time, there is nothing to do


def test_a_cluster_that_took_the_name_of_ours_is_neither_used_nor_deleted(machine: Machine) -> None:
    up(machine)
    (machine.state / "id").write_text("made by somebody else\n")
    with pytest.raises(ClusterError, match="did not make"):
        up(machine)
    kind.down(machine.paths, Progress())
    assert machine.lines("clusters") == ["fettle"]
    assert not any(line.startswith("kind delete") for line in machine.told)


def test_images_are_built_by_docker_and_loaded_into_the_nodes_once(machine: Machine) -> None:
    up(machine)
    target = resolve_target({}, machine.paths)
    references = images.build(machine.paths, target, Progress())
    assert sorted(references) == sorted(images.NAMES)
    assert all(reference.startswith(f"localhost/fettle-{name}:") for name, reference in references.items())
    assert sorted(machine.lines("loaded")) == sorted(references.values())
    machine.clear()
    assert images.build(machine.paths, target, Progress()) == references
    assert not any(line.startswith(("docker build", "kind load")) for line in machine.told)
    (machine.paths.root / "operator" / "code.py").write_text("second")
    changed = images.build(machine.paths, target, Progress())
    assert set(changed.values()) <= set(machine.lines("loaded")) and not set(changed.values()) & set(
        references.values()
    )


def test_images_have_no_attestations_which_no_node_could_import(machine: Machine) -> None:
    up(machine)
    images.build(machine.paths, resolve_target({}, machine.paths), Progress())
    assert set(machine.lines("builds")) == {"attestations: 1"}


def test_without_its_engine_images_for_kind_are_refused_in_one_line(machine: Machine) -> None:
    up(machine)
    (machine.state / "stopped").touch()
    with pytest.raises(ClusterError, match=r"kind cluster fettle require its Docker engine.*FETTLE_REGISTRY"):
        images.build(machine.paths, resolve_target({}, machine.paths), Progress())


@pytest.mark.parametrize(
    ("registry", "expected"),
    [({}, ("localhost", "mine")), ({"FETTLE_REGISTRY": "localhost:5001"}, ("localhost:5001", None))],
)
def test_a_named_cluster_of_kind_needs_no_registry_but_keeps_the_one_it_has(
    machine: Machine, tmp_path: Path, registry: dict[str, str], expected: tuple[str, str | None]
) -> None:
    named = tmp_path / "named"
    named.write_text("current-context: kind-mine\nclusters: []\n")
    target = resolve_target({"FETTLE_KUBECONFIG": str(named), **registry}, machine.paths)
    assert (target.registry, target.kind) == expected
    assert not target.embedded
