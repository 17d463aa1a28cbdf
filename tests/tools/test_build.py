"""When the cluster's binaries are built, and what they call themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tools.cluster import build
from tools.cluster.errors import ClusterError
from tools.cluster.paths import checkout

SOURCES = ("go.mod", "go.sum", "coredns/main.go", "kubernetes/main.go")
GO_MOD = (checkout().module / "go.mod").read_text()


@pytest.fixture
def module(tmp_path: Path) -> Path:
    source = checkout().module
    for name in SOURCES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(source / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", SOURCES)
def test_a_changed_input_changes_the_stamp(module: Path, name: str) -> None:
    before = build.stamp(module, "go1.26.0")
    (module / name).write_text((module / name).read_text() + "// changed\n")
    assert build.stamp(module, "go1.26.0") != before


def test_another_compiler_changes_the_stamp(module: Path) -> None:
    assert build.stamp(module, "go1.26.0") == build.stamp(module, "go1.26.0") != build.stamp(module, "go1.26.1")


def test_every_staging_module_is_of_the_release_that_is_built() -> None:
    patch = build.module_version(GO_MOD, "k8s.io/kubernetes").removeprefix("v1.")
    replaced = [line.split()[-1] for line in GO_MOD.splitlines() if "=> k8s.io/" in line]
    assert len(replaced) == 31
    assert set(replaced) == {f"v0.{patch}"}


def test_binaries_tell_their_version() -> None:
    flags = build.linker_flags(GO_MOD)
    assert "-X k8s.io/component-base/version.gitVersion=v1.34.4" in flags
    assert "-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=34" in flags


def test_a_module_that_is_not_required_has_no_version() -> None:
    with pytest.raises(ClusterError, match="does not require example"):
        build.module_version(GO_MOD, "example.org/none")


def test_the_go_that_is_wanted_is_that_of_go_mod() -> None:
    assert build.wanted_go("module a\n\ngo 1.24.3\n") == (1, 24, 3)
