"""Bring Fettle and the demo's files into the cluster: `helm install` and `fettle push`, as a user would."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tools.cluster.paths import checkout
from tools.cluster.target import Target
from tools.demo import watch
from tools.demo.kube import BIN, ROOT, DemoError, Kube

SYSTEM_NAMESPACE = "fettle-system"
DIGITS = ROOT / "examples" / "digits"


def images(target: Target) -> dict[str, str]:
    """References by name of the images in a cluster's registry, as `make images` left them."""
    file = checkout().images(target.registry or "")
    if not file.exists():
        raise DemoError(f"no images in {target.registry or 'any registry'} yet: run `make images`")
    refs: dict[str, str] = json.loads(file.read_text())
    return refs


def helm_arguments(refs: dict[str, str]) -> list[str]:
    """`--set` arguments that name the images."""
    arguments: list[str] = []
    for name, ref in refs.items():
        repository, _, tag = ref.rpartition(":")
        # optimizer-torch: image.optimizerTorch
        key = "image." + re.sub(r"-(\w)", lambda letter: letter[1].upper(), name)
        arguments += ["--set", f"{key}.repository={repository}", "--set-string", f"{key}.tag={tag}"]
    return arguments


def install(kube: Kube, *extra: str, release: str = "fettle", namespace: str = SYSTEM_NAMESPACE) -> None:
    """`helm upgrade --install` of charts/fettle, waited for."""
    command = ["upgrade", "--install", release, str(ROOT / "charts" / "fettle")]
    command += ["--namespace", namespace, "--create-namespace"]
    # tests/cluster brings operators of its own for namespaces test-*.
    command += ["--set", "ignoreNamespaces={test-*}"]
    command += [*helm_arguments(images(kube.target)), *extra]
    helm(kube, *command)
    watch.deployed(Kube(kube.target, namespace), f"app.kubernetes.io/instance={release}", 300)


def helm(kube: Kube, *arguments: str) -> str:
    """Run helm against this cluster; its output. Raises DemoError with its words."""
    program = str(BIN / "helm") if (BIN / "helm").exists() else "helm"
    done = subprocess.run([program, *arguments], env=kube.environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"helm: {done.stderr.strip()}")
    return done.stdout


def push(kube: Kube, path: Path, uri: str) -> None:
    """`fettle push PATH URI`: a file or folder into a claim, which is made when missing."""
    fettle(kube, "push", str(path), uri, "--create", "--size", "1Gi", "--image", images(kube.target)["server"])


def pull(kube: Kube, source: str, to: Path) -> None:
    """`fettle pull SOURCE TO`: a file, a folder or an artifact out of a claim."""
    fettle(kube, "pull", source, str(to), "--image", images(kube.target)["server"])


def report(kube: Kube, name: str, to: Path, *options: str) -> None:
    """`fettle report NAME TO`: the report of an OptimizedModel."""
    to.parent.mkdir(parents=True, exist_ok=True)
    fettle(kube, "report", name, str(to), *options)


def fettle(kube: Kube, *arguments: str) -> str:
    """Run `fettle` in this namespace; its output. Raises DemoError with its words."""
    command = [sys.executable, "-m", "fettle.cli.main", *arguments, "--namespace", kube.namespace]
    done = subprocess.run(
        [*command, "--kubeconfig", str(kube.target.kubeconfig)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoError(f"fettle {arguments[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
