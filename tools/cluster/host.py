"""What the machine must have: privileges, kernel features, programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.cluster.containers import missing_controllers
from tools.cluster.errors import ClusterError, UnsupportedError
from tools.cluster.paths import Paths
from tools.cluster.shell import Progress, attempt, complaint, tool_path

# Program -> the Debian package that has it. Looked up by program: another packaging of it is as good.
PROGRAMS: Mapping[str, str] = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "nsenter": "util-linux",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "catatonit": "catatonit",
    "docker-registry": "docker-registry",
}
_SERVICE_POLICY = Path("/usr/sbin/policy-rc.d")


def check(paths: Paths) -> None:
    """Raise UnsupportedError for the first thing that is missing; what only a try can tell is tried later."""
    if sys.platform != "linux":
        raise UnsupportedError("Linux is required")
    if os.geteuid() != 0:
        raise UnsupportedError("root is required")
    missing = missing_controllers()
    if missing:
        raise UnsupportedError(f"the kernel has no cgroup controller {', '.join(missing)}")
    if attempt("unshare", "--net", "--mount", "true").returncode:
        raise UnsupportedError("the kernel or its privileges refuse new namespaces (CAP_SYS_ADMIN)")


def snapshotter(paths: Paths) -> str:
    """containerd's way to stack layers on this file system: overlayfs, or plain copies where that cannot be mounted."""
    paths.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.state) as scratch:
        folders = {name: Path(scratch, name) for name in ("lower", "upper", "work", "merged")}
        for folder in folders.values():
            folder.mkdir()
        options = ",".join(f"{name}dir={folders[name]}" for name in ("lower", "upper", "work"))
        mounted = attempt("mount", "-t", "overlay", "overlay", "-o", options, folders["merged"])
        if mounted.returncode:
            return "native"
        attempt("umount", folders["merged"])
        return "overlayfs"


def missing_packages() -> list[str]:
    """The Debian packages of the programs that are not there."""
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program, path=tool_path()) is None}
    return sorted(missing)


def install_packages(progress: Progress) -> None:
    """Install what is missing; nothing else is upgraded, removed or started."""
    packages = missing_packages()
    if not packages:
        return
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise UnsupportedError(f"these programs are missing, and there is no apt-get to install them: {names}")
    progress(f"installing Debian packages: {names}")
    command = ("apt-get", "install", "-y", "-q", "--no-install-recommends", "--no-remove", *packages)
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        result = attempt(*command, env=environment)
        if result.returncode:  # the lists may be missing or old
            attempt("apt-get", "update", "-q", env=environment)
            result = attempt(*command, env=environment)
    if result.returncode:
        raise ClusterError(f"apt-get install {names}: {complaint(result)}")
    progress("Debian packages installed")


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Keep packages from starting their services: the cluster runs its own."""
    if _SERVICE_POLICY.exists():
        yield
        return
    _SERVICE_POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    _SERVICE_POLICY.chmod(0o755)
    try:
        yield
    finally:
        _SERVICE_POLICY.unlink(missing_ok=True)
