"""Requests with real images: a few predictions compared with their labels, and a constant load from a pod."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.demo import watch
from tools.demo.install import images
from tools.demo.kube import DemoError, Kube

LOAD = Path(__file__).with_name("load.py")
PROTOCOLS = Path(__file__).with_name("protocols.py")
WAYS = ("HTTP, JSON", "HTTP, bytes", "gRPC")  # as protocols.py tells them
Totals = dict[str, Any]


def bodies(data: Path, count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """V2 request bodies of `count` evaluation items, one image each, and their labels."""
    arrays = np.load(data)
    chosen = np.random.default_rng(seed).permutation(len(arrays["labels"]))[:count]
    requests = []
    for index in chosen:
        image = arrays["image"][index : index + 1]
        values = [round(float(value), 4) for value in image.ravel()]
        tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": values}
        requests.append(json.dumps({"inputs": [tensor]}, separators=(",", ":")))
    return requests, [int(arrays["labels"][index]) for index in chosen]


def _pod(name: str, image: str, config: str, command: list[str]) -> list[dict[str, Any]]:
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    container = {
        "name": "main",
        "image": image,
        "command": command,
        "securityContext": security,
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [{"name": "files", "mountPath": "/files"}],
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 40,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "files", "configMap": {"name": config}}],
    }
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}]


def _put(kube: Kube, name: str, files: dict[str, str]) -> None:
    """Files for a pod. Server-side, because the last-applied annotation of a client-side apply could not hold the images."""
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": files}
    kube.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(config))


def _printed(log: str) -> list[Totals]:
    """The lines of JSON in a log."""
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def over_each_protocol(kube: Kube, deployment: str, requests: list[str], name: str = "demo-protocols") -> list[Totals]:
    """What a pod heard that sent these requests to the Service over each protocol (`protocols.py`). Raises DemoError."""
    kube.kubectl("delete", "pod", name, "--ignore-not-found", "--wait=true", "--grace-period=1")
    _put(kube, name, {"protocols.py": PROTOCOLS.read_text(), "bodies": "\n".join(requests)})
    command = ["python", "/files/protocols.py", "--host", deployment, "--model", deployment]
    command += ["--bodies", "/files/bodies"]
    kube.apply(_pod(name, images(kube.target)["server"], name, command))
    log = ""
    for _ in watch.polls(120, kube=kube):
        log = kube.pod_log(name, tail=-1)
        told = _printed(log)
        if len(told) == len(WAYS):
            kube.kubectl("delete", "pod", name, "--wait=false")
            return told
        if "Traceback" in log:
            break
    raise DemoError(f"not every protocol was answered: {log or kube.kubectl('describe', 'pod', name)}")


class Load:
    """A pod that keeps sending requests; `stop` returns the totals."""

    def __init__(self, kube: Kube, deployment: str, name: str = "demo-load") -> None:
        self.kube, self.deployment, self.name = kube, deployment, name

    def start(self, requests: list[str], *, rate: float, clients: int, seconds: float) -> None:
        """Start sending; replaces a pod that an earlier run left."""
        self.kube.kubectl("delete", "pod", self.name, "--ignore-not-found", "--wait=true", "--grace-period=1")
        files = {"load.py": LOAD.read_text(), "bodies": "\n".join(requests)}
        _put(self.kube, self.name, files)
        url = f"http://{self.deployment}:8080/v2/models/{self.deployment}/infer"
        command = ["python", "/files/load.py", "--url", url, "--bodies", "/files/bodies"]
        command += ["--rate", str(rate), "--clients", str(clients), "--seconds", str(seconds)]
        self.kube.apply(_pod(self.name, images(self.kube.target)["server"], self.name, command))
        for _ in watch.polls(120, kube=self.kube):
            if self.totals().get("sent", 0) >= clients:
                return
        raise DemoError(f"the load generator did not start: {self.kube.kubectl('describe', 'pod', self.name)}")

    def totals(self) -> Totals:
        """What happened so far; empty while the pod does not run."""
        lines = _printed(self.kube.pod_log(self.name, tail=1))
        return lines[-1] if lines else {}

    def history(self) -> list[Totals]:
        """The totals of every second so far, oldest first."""
        return _printed(self.kube.pod_log(self.name, tail=-1))

    def stop(self) -> Totals:
        """Stop sending, wait for the last answers, return the totals and remove the pod."""
        self.kube.kubectl("exec", self.name, "--", "python", "-c", "import os,signal; os.kill(1, signal.SIGTERM)")
        for _ in range(120):
            totals = self.totals()
            if totals.get("final"):
                self.kube.kubectl("delete", "pod", self.name, "--wait=false")
                return totals
            time.sleep(0.5)
        raise DemoError("the load generator did not end")


def foreign_failures(totals: Totals, own: set[str]) -> int:
    """Requests that failed though no model under test produced the failure: transport errors, and 5xx of revisions not in `own`."""
    server = sum(int(count) for revision, count in totals["serverErrors"].items() if revision not in own)
    return int(totals["transport"]) + server
