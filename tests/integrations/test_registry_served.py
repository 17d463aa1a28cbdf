"""On a cluster: the winner of a run is pushed to an OCI registry, and a ModelDeployment serves it from there, in a namespace without a store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import yaml
from tools.cluster.target import Target
from tools.demo import install, watch
from tools.demo.kube import Kube

pytestmark = pytest.mark.timeout(1800)
NAME = "digits"
WAIT = 600.0  # seconds: far more than anything takes on an idle machine
PLAIN = """
apiVersion: v1
kind: Secret
metadata: {name: registry}
stringData: {PLAIN_HTTP: "true"}
"""


@pytest.fixture
def operator(target: Target) -> Iterator[Kube]:
    """The operator, installed by the chart. Earlier tests may have left CustomResourceDefinitions that no release owns."""
    system = Kube(target, install.SYSTEM_NAMESPACE)
    install.install(system, "--take-ownership", "--set", "jobs.measureSeconds=1")
    yield system
    install.helm(system, "uninstall", "fettle", "--namespace", system.namespace, "--wait")


@pytest.fixture
def teams(operator: Kube) -> Iterator[tuple[Kube, Kube]]:
    """The namespace that optimizes, and the one that serves."""
    made = [Kube(operator.target, f"fettle-{name}-{uuid.uuid4().hex[:6]}") for name in ("train", "serve")]
    with ExitStack() as stack:
        for kube in made:
            kube.ensure_namespace()
            stack.callback(kube.kubectl, "delete", "namespace", kube.namespace, "--wait=false")
            kube.apply(PLAIN)
        yield made[0], made[1]


def test_a_winner_is_pushed_to_a_registry_and_served_from_it_where_there_is_no_store(teams: tuple[Kube, Kube]) -> None:
    training, serving = teams
    install.push(training, install.DIGITS, "pvc://models/digits")
    model, deployment = (
        yaml.safe_load((install.DIGITS / f"{kind}.yaml").read_text()) for kind in ("optimizedmodel", "modeldeployment")
    )
    model["spec"]["recipes"] = [{"name": "prepared", "steps": [{"optimizeGraph": {}}]}]
    model["spec"]["targets"][0]["runtimes"] = ["onnxruntime"]
    repository = f"oci://{training.target.registry}/models/digits"
    model["spec"]["publish"] = {"uri": repository, "secretName": "registry"}
    training.apply([model])
    watch.optimized(training, NAME, WAIT, print)
    (artifact,) = (training.get("om", NAME) or {})["status"]["artifacts"]
    assert artifact["registryUri"].startswith(f"{repository}@sha256:")
    deployment["spec"]["model"] = {
        "uri": artifact["registryUri"],
        "secretName": "registry",
        "sha256": artifact["sha256"],
        "runtime": artifact["runtime"],
    }
    serving.apply([deployment])
    watch.serving(serving, NAME, WAIT, print)
    assert serving.kubectl("get", "pvc", "-o", "name") == ""
