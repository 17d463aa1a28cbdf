"""Programs of other systems, built from Go modules once for all checkouts of a user."""

from __future__ import annotations

import fcntl
import hashlib
from dataclasses import dataclass
from pathlib import Path

from tools.cluster import build
from tools.cluster.paths import Paths, checkout
from tools.cluster.shell import Progress, run

MODULES = Path(__file__).parent


@dataclass(frozen=True)
class Program:
    """A program of one Go module: its name, the module's folder, the package, and what it shall call itself."""

    name: str
    package: str = "."
    flags: str = "-s -w"

    @property
    def module(self) -> Path:
        return MODULES / self.name

    def stamp(self) -> str:
        """What the program is made of: it is built again when that changes."""
        digest = hashlib.sha256(f"{self.package} {self.flags}".encode())
        for file in sorted(self.module.iterdir()):
            digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()[:16]


RULES = Program("rules")
ARGOCD = Program("argocd", "github.com/argoproj/argo-cd/v3/cmd")
REDIS = Program("redis")
VERSITYGW = Program("versitygw", "github.com/versity/versitygw/cmd/versitygw")


def ensure(program: Program, progress: Progress, paths: Paths | None = None) -> Path:
    """The program's file, built where it is not there. Several may ask at once. Raises ClusterError."""
    paths = paths or checkout()
    folder = paths.cache / "programs" / f"{program.name}-{program.stamp()}"
    binary = folder / program.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if binary.exists():
            return binary
        go, version = build.toolchain(paths, program.module, progress)
        progress(f"building {program.name} with {version}, once")
        fresh = folder / "new"
        build.compile_packages(
            go, program.module, [program.package], str(fresh), program.flags, folder / "build.log", progress
        )
        fresh.rename(binary)
    return binary


def module_folder(path: str, program: Program, progress: Progress, paths: Paths | None = None) -> Path:
    """Where a module that a program is built from lies, with all its files."""
    go, _ = build.toolchain(paths or checkout(), program.module, progress)
    return Path(run(go, "list", "-m", "-f", "{{.Dir}}", path, cwd=program.module).strip())
