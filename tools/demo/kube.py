"""The cluster as the demo and the end-to-end tests drive it: kubectl for what a user types, the client for what is only watched."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.rest import ApiException

from tools.cluster.target import Target

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".cluster" / "bin"
PLURALS = {"om": "optimizedmodels", "mdep": "modeldeployments"}


class DemoError(Exception):
    """Something a person should read; the demo ends with it and exit status 1."""


class Kube:
    """One namespace of one cluster."""

    def __init__(self, target: Target, namespace: str) -> None:
        self.target, self.namespace = target, namespace
        self.api = config.new_client_from_config(str(target.kubeconfig))
        self.custom = client.CustomObjectsApi(self.api)
        self.core = client.CoreV1Api(self.api)

    def environment(self) -> dict[str, str]:
        """Our environment with this cluster's kubeconfig and the built tools first on the PATH."""
        return os.environ | {"KUBECONFIG": str(self.target.kubeconfig), "PATH": f"{BIN}:{os.environ['PATH']}"}

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl in this namespace; returns stdout. Raises DemoError with its stderr."""
        done = subprocess.run(
            ["kubectl", "--namespace", self.namespace, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment(),
            check=False,
        )
        if check and done.returncode != 0:
            raise DemoError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, objects: Iterable[dict[str, Any]] | str) -> None:
        """`kubectl apply` of manifests."""
        if not isinstance(objects, str):
            # As JSON: unquoted in YAML, kubectl reads N as false.
            objects = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "-f", "-", stdin=objects)

    def ensure_namespace(self, **labels: str) -> None:
        """Create the namespace at the restricted Pod Security level, if it is not there."""
        labels |= {"pod-security.kubernetes.io/enforce": "restricted"}
        self.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}}])

    def get(self, short: str, name: str) -> dict[str, Any] | None:
        """One of our objects by its kind's short name (om, mdep), or None."""
        try:
            found: dict[str, Any] = self.custom.get_namespaced_custom_object(
                "fettle.dev", "v1alpha1", self.namespace, PLURALS[short], name
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def patch(self, short: str, name: str, body: dict[str, Any]) -> None:
        """Merge-patch one of our objects, as `kubectl patch --type merge` does."""
        self.kubectl("patch", short, name, "--type", "merge", "-p", json.dumps(body))

    def replace_spec(self, short: str, name: str, spec: dict[str, Any]) -> None:
        """Put another spec in the place of one of our objects'."""
        change = [{"op": "replace", "path": "/spec", "value": spec}]
        self.kubectl("patch", short, name, "--type", "json", "-p", json.dumps(change))

    def pod_log(self, name: str, tail: int = 1) -> str:
        """The last lines of a pod's log; empty while it does not run."""
        return self.kubectl("logs", name, f"--tail={tail}", check=False)


def condition(found: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    """The condition of that type, or an empty dict."""
    conditions = ((found or {}).get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry["type"] == kind), {})


def is_current(found: dict[str, Any] | None) -> bool:
    """Whether the status speaks of the spec as it is now."""
    if not found:
        return False
    return bool((found.get("status") or {}).get("observedGeneration") == found["metadata"]["generation"])
