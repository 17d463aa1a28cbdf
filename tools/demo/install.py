"""Bring Fettle and the demo's files into the cluster: `helm install` and `fettle push`, as a user would."""

from __future__ import annotations

import json
import re
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
        key = "image." + re.sub(
            r"-(\w)", lambda letter: letter[1].upper(), name
        )  # optimizer-torch: image.optimizerTorch
        arguments += ["--set", f"{key}.repository={repository}", "--set-string", f"{key}.tag={tag}"]
    return arguments


def install(kube: Kube, *extra: str, release: str = "fettle", namespace: str = SYSTEM_NAMESPACE) -> None:
    """`helm upgrade --install` of charts/fettle, waited for."""
    command = ["upgrade", "--install", release, str(ROOT / "charts" / "fettle")]
    command += ["--namespace", namespace, "--create-namespace"]
    # tests/cluster brings operators of its own for namespaces test-*.
    command += ["--set", "ignoreNamespaces={test-*}"]
    command += [*helm_arguments(images()), *extra, "--wait", "--timeout", "5m"]
    try:
        helm(kube, *command)
    except DemoError as error:
        pods = Kube(kube.target, namespace).kubectl("get", "pods,events", check=False)
        raise DemoError(f"{error}\n{pods}") from error


def helm(kube: Kube, *arguments: str) -> None:
    """Run helm against this cluster. Raises DemoError with its words."""
    program = str(BIN / "helm") if (BIN / "helm").exists() else "helm"
    done = subprocess.run([program, *arguments], env=kube.environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"helm: {done.stderr.strip()}")


def push(kube: Kube, path: Path, uri: str) -> None:
    """`fettle push PATH URI`: a file or folder into a claim, which is made when missing."""
    fettle(kube, "push", str(path), uri, "--create", "--size", "1Gi", "--image", images()["server"])


def pull(kube: Kube, source: str, to: Path) -> None:
    """`fettle pull SOURCE TO`: a file, a folder or an artifact out of a claim."""
    fettle(kube, "pull", source, str(to), "--image", images()["server"])


def report(kube: Kube, name: str, to: Path) -> None:
    """`fettle report NAME TO`: the report of an OptimizedModel."""
    to.parent.mkdir(parents=True, exist_ok=True)
    fettle(kube, "report", name, str(to), "--image", images()["server"])


def fettle(kube: Kube, *arguments: str) -> str:
    """Run `fettle` in this namespace; its output. Raises DemoError with its words."""
    command = [sys.executable, "-m", "fettle.cli.main", *arguments, "--namespace", kube.namespace]
    done = subprocess.run(
        [*command, "--kubeconfig", str(kube.target.kubeconfig)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoError(f"fettle {arguments[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
