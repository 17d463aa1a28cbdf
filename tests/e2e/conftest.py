"""A whole cluster with a kubelet, the chart installed as a user would, and a namespace of its own for each module."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator

import pytest
from tools.cluster.paths import TEST, checkout
from tools.cluster.target import Target, resolve_target
from tools.demo import install
from tools.demo.kube import DemoError, Kube
from tools.demo.room import PASSING_LABEL

DESCRIPTION = "end-to-end tests of Fettle"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs the whole cluster."""
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def target() -> Target:
    """The tests' own embedded cluster, or the one that FETTLE_KUBECONFIG names."""
    return resolve_target(paths=checkout(TEST))


@pytest.fixture(scope="session")
def operator(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Kube:
    """The operator's namespace, with the chart installed: two replicas, of which one leads."""
    kube = Kube(target, install.SYSTEM_NAMESPACE)
    # Files that run side by side share the release, and Helm takes one upgrade at a time.
    with (tmp_path_factory.getbasetemp().parent / "helm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refuse_anothers_release(kube)
        # What runs here is the chain, not a benchmark: the shortest clock there is, for which three process starts are enough.
        settings = ("--set", "replicas=2", "--set", "jobs.measureSeconds=1", "--description", DESCRIPTION)
        install.install(kube, *settings)
    return kube


def refuse_anothers_release(kube: Kube) -> None:
    """On a cluster that somebody named: a release that no test installed is somebody's, and an upgrade would replace it."""
    found = json.loads(
        install.helm(kube, "list", "--filter", "^fettle$", "--namespace", kube.namespace, "--output", "json")
    )
    if not found or os.environ.get("CONFIRM") == "yes":
        return
    release = json.loads(install.helm(kube, "status", "fettle", "--namespace", kube.namespace, "--output", "json"))
    if release["info"]["description"] != DESCRIPTION:
        raise DemoError(
            f"{kube.target.kubeconfig} has a release fettle in {kube.namespace} that these tests would replace: name another "
            "cluster, or none so that they start their own, or set CONFIRM=yes if that is meant"
        )


@pytest.fixture(scope="module")
def space(operator: Kube, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A fresh namespace; removed at the end unless a test failed."""
    kube = Kube(operator.target, f"fettle-e2e-{uuid.uuid4().hex[:6]}")
    kube.ensure_namespace(**{PASSING_LABEL: "true"})
    failed_before = request.session.testsfailed
    yield kube
    if request.session.testsfailed == failed_before:
        kube.kubectl("delete", "namespace", kube.namespace, "--wait=false")
    else:
        kube.kubectl("label", "namespace", kube.namespace, f"{PASSING_LABEL}-")  # what it holds stays, to be looked at


@pytest.fixture(scope="module")
def kube(space: Kube) -> Kube:
    """A fresh namespace with the digits files in the claim `models`."""
    install.push(space, install.DIGITS, "pvc://models/digits")
    return space
