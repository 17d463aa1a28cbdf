"""Bring Fettle and the demo's files into the cluster: `helm install` and `fettle push`, as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tools.demo.kube import BIN, ROOT, DemoError, Kube

SYSTEM_NAMESPACE = "fettle-system"
IMAGES = ROOT / ".cluster" / "images.json"
DIGITS = ROOT / "examples" / "digits"


def images() -> dict[str, str]:
    """Image references by name, as `make images` left them."""
    if not IMAGES.exists():
        raise DemoError("the images are not built: run `make images`")
    refs: dict[str, str] = json.loads(IMAGES.read_text())
    return refs


def helm_arguments(refs: dict[str, str]) -> list[str]:
    """`--set` arguments that name the images."""
    arguments: list[str] = []
    for name, ref in refs.items():
        repository, _, tag = ref.rpartition(":")
        arguments += ["--set", f"image.{name}.repository={repository}", "--set-string", f"image.{name}.tag={tag}"]
    return arguments


def install(kube: Kube, *extra: str) -> None:
    """`helm upgrade --install` of charts/fettle, waited for."""
    refs = images()
    command = [str(BIN / "helm") if (BIN / "helm").exists() else "helm", "upgrade", "--install", "fettle"]
    command += [str(ROOT / "charts" / "fettle"), "--namespace", SYSTEM_NAMESPACE, "--create-namespace"]
    # tests/cluster brings operators of its own for namespaces test-*.
    command += ["--set", "ignoreNamespaces={test-*}"]
    command += [*helm_arguments(refs), *extra, "--wait", "--timeout", "5m"]
    done = subprocess.run(command, env=kube.environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pods = Kube(kube.target, SYSTEM_NAMESPACE).kubectl("get", "pods,events", check=False)
        raise DemoError(f"helm: {done.stderr.strip()}\n{pods}")


def push(kube: Kube, path: Path, uri: str) -> None:
    """`fettle push PATH URI`: a file or folder into a claim, which is made when missing."""
    command = [sys.executable, "-m", "fettle.cli.main", "push", str(path), uri, "--namespace", kube.namespace]
    command += ["--create", "--size", "1Gi", "--image", images()["server"]]
    done = subprocess.run(
        [*command, "--kubeconfig", str(kube.target.kubeconfig)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoError(f"fettle push: {(done.stderr or done.stdout).strip()}")
