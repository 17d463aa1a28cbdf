"""A real API server with the CRDs as crds/ says them now, and a namespace of its own for each test."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests import warm
from tests.authorities import one_authority as one_authority
from tools.cluster.paths import TEST, checkout
from tools.cluster.shell import wait_until
from tools.cluster.target import Target, resolve_target

from fettle.cluster.client import Client

warm.imported("fettle.controller.process", "fettle.controller.reconcilers")
ROOT = Path(__file__).parents[2]
# As if the chart had installed them: a later `helm install fettle` then takes the CRDs over instead of refusing.
HELM_OWNERSHIP = {
    "labels": {"app.kubernetes.io/managed-by": "Helm"},
    "annotations": {
        "meta.helm.sh/release-name": "fettle",
        "meta.helm.sh/release-namespace": "fettle-system",
        "helm.sh/resource-policy": "keep",
    },
}


class Kubectl:
    """kubectl against one cluster, in one namespace if given."""

    def __init__(self, kubeconfig: Path, namespace: str | None = None) -> None:
        self.kubeconfig = kubeconfig
        self.namespace = namespace

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Standard output of `kubectl ARGUMENTS`. AssertionError with its words when it fails."""
        ours = checkout().bin / "kubectl"
        command = [str(ours) if ours.exists() else "kubectl", f"--kubeconfig={self.kubeconfig}"]
        command += [f"--namespace={self.namespace}"] if self.namespace else []
        environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
        done = subprocess.run(
            [*command, *arguments], input=stdin, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """What `kubectl get ARGUMENTS` finds, as an object."""
        found: dict[str, Any] = json.loads(self("get", *arguments, "-o", "json"))
        return found

    def create(self, body: Mapping[str, Any], *arguments: str) -> dict[str, Any]:
        """Create `body`; returns what the API server made of it."""
        text = self("create", "-f", "-", "-o", "json", *arguments, stdin=json.dumps(body))
        found: dict[str, Any] = json.loads(text)
        return found

    def apply(self, *objects: Mapping[str, Any]) -> str:
        """Apply `objects` on the server's side."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        return self("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)


@pytest.fixture(scope="session")
def target() -> Target:
    """The cluster to test against: the tests' embedded one, or what FETTLE_KUBECONFIG names. Fails with what to do without one."""
    return resolve_target(paths=checkout(TEST))


@pytest.fixture(scope="session")
def cluster(target: Target) -> Kubectl:
    """kubectl against that cluster, our CRDs installed and established."""
    kubectl = Kubectl(target.kubeconfig)
    install_crds(kubectl)
    return kubectl


def install_crds(kubectl: Kubectl) -> None:
    """As a chart would that runs no operator, and wait until they are served."""
    manifests = [yaml.load(path.read_text(), yaml.CSafeLoader) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    assert manifests, "crds/ is empty: run `make crds`"
    for manifest in manifests:
        manifest["metadata"] |= HELM_OWNERSHIP
    kubectl.apply(*manifests)
    names = [f"crd/{manifest['metadata']['name']}" for manifest in manifests]
    assert wait_until(lambda: all(is_established(kubectl.get(name)) for name in names), 60), "the CRDs are not served"
    # kubectl keeps for hours which kinds a server knows, and looks up no short name (om) in a list that is older than the CRDs.
    kubectl("api-resources", "--api-group=fettle.dev")


def is_established(crd: Mapping[str, Any]) -> bool:
    """Whether the API server serves a CRD. `kubectl wait` fails on one that is so new that its conditions are null."""
    conditions = (crd.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


@pytest.fixture
def namespace(cluster: Kubectl) -> Iterator[str]:
    """A fresh namespace at the restricted Pod Security level, deleted afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    cluster("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture
def kubectl(cluster: Kubectl, namespace: str) -> Kubectl:
    """kubectl in this test's own namespace."""
    return Kubectl(cluster.kubeconfig, namespace)


@pytest.fixture
def kubeconfig(cluster: Kubectl) -> str:
    """Path of the kubeconfig, for a process under test."""
    return str(cluster.kubeconfig)


@pytest.fixture
async def client(kubeconfig: str) -> AsyncIterator[Client]:
    """The operator's own client, with an administrator's rights."""
    client = await Client.connect(kubeconfig)
    yield client
    await client.close()
