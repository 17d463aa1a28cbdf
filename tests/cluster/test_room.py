"""A pod that the real scheduler refuses ends a wait with the scheduler's words, not by its time."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cluster.conftest import Kubectl
from tools.cluster.target import Target
from tools.demo import room, watch
from tools.demo.kube import DemoError, Kube

pytestmark = pytest.mark.cluster


def a_pod(cpu: str) -> dict[str, Any]:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "main",
        "image": "none.invalid/none",
        "securityContext": security,
        "resources": {"requests": {"cpu": cpu}},
    }
    pod = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "large"},
        "spec": {"containers": [container], "securityContext": pod, "automountServiceAccountToken": False},
    }


def test_a_wait_ends_once_a_pod_waits_in_vain(
    kubectl: Kubectl, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PATIENCE_SECONDS", 1)
    monkeypatch.setattr(room, "EVERY_SECONDS", 0.5)
    assert kubectl.namespace is not None
    kube = Kube(target, kubectl.namespace)
    kube.apply([a_pod("1000")])
    with pytest.raises(DemoError, match=r"large cannot be scheduled: .*Insufficient cpu.* 1000 is requested") as caught:
        for _ in watch.polls(60, kube=kube):
            pass
    assert "\n" not in str(caught.value)


def test_a_wait_goes_on_beside_a_pod_that_has_its_node(kubectl: Kubectl, target: Target) -> None:
    assert kubectl.namespace is not None
    kube = Kube(target, kubectl.namespace)
    kube.apply([a_pod("1m")])
    kubectl("wait", "pod/large", "--for=condition=PodScheduled", "--timeout=60s")
    assert list(watch.polls(1, kube=kube))
