"""containerd's images and containers, and everything that pods leave in the kernel: cgroups, shims, mounts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import signal
import socket
import time
from pathlib import Path

from tools.cluster.archive import docker_archive
from tools.cluster.config import PAUSE_IMAGE
from tools.cluster.errors import ClusterError, UnsupportedError
from tools.cluster.paths import Cluster, Paths
from tools.cluster.shell import attempt, run

CGROUPS = Path("/sys/fs/cgroup")
_NEEDED = ("cpu", "cpuacct", "cpuset", "memory", "pids")


def answers(path: Path) -> bool:
    """Whether somebody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _ctr(paths: Paths, *arguments: str, input_bytes: bytes | None = None) -> str:
    return run("ctr", "-a", paths.cluster.containerd_socket, "-n", "k8s.io", *arguments, input_bytes=input_bytes)


def coredns_image(paths: Paths) -> str:
    """Named by content, so that a rebuilt binary is a new image."""
    with (paths.bin / "coredns").open("rb") as binary:
        return f"localhost/coredns:{hashlib.file_digest(binary, 'sha256').hexdigest()[:12]}"


def import_images(paths: Paths, snapshotter: str) -> None:
    """Give containerd the two images that the cluster itself needs, where it lacks them."""
    catatonit = shutil.which("catatonit", path="/usr/bin:/usr/libexec/podman:/usr/local/bin")
    if catatonit is None:
        raise ClusterError("catatonit is not installed: apt-get install catatonit")
    wanted = {
        PAUSE_IMAGE: (Path(catatonit), ["/pause", "-P"]),
        coredns_image(paths): (paths.bin / "coredns", ["/coredns"]),
    }
    present = set(_ctr(paths, "images", "ls", "-q").split())
    for tag, (binary, entrypoint) in wanted.items():
        if tag not in present:
            archive = docker_archive(binary, entrypoint, tag, platform.machine())
            _ctr(paths, "images", "import", "--snapshotter", snapshotter, "-", input_bytes=archive)


def remove_containers(paths: Paths) -> int:
    """Remove every task and container that containerd knows; how many there were."""
    tasks, containers = _ctr(paths, "tasks", "ls", "-q").split(), _ctr(paths, "containers", "ls", "-q").split()
    for kind, names in (("tasks", tasks), ("containers", containers)):
        if names:
            force = ["-f"] if kind == "tasks" else []
            attempt("ctr", "-a", paths.cluster.containerd_socket, "-n", "k8s.io", kind, "rm", *force, *names)
    return len(containers)


def hierarchies() -> list[Path]:
    """The root of every cgroup hierarchy: one with cgroup v2, one a controller with v1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [folder for folder in sorted(CGROUPS.iterdir()) if folder.is_dir() and not folder.is_symlink()]


def missing_controllers() -> list[str]:
    """The cgroup controllers that the kubelet needs and the kernel does not offer."""
    if not CGROUPS.is_dir():
        return list(_NEEDED)
    if (CGROUPS / "cgroup.controllers").exists():
        offered = set((CGROUPS / "cgroup.controllers").read_text().split()) | {"cpuacct"}
    else:
        offered = {name for folder in CGROUPS.iterdir() for name in folder.name.split(",")}
    return [name for name in _NEEDED if name not in offered]


def create_cgroups(cluster: Cluster) -> None:
    """Make the parent of all pods' cgroups. The v2 branch follows the documentation; it was never run on such a kernel."""
    for root in hierarchies():
        try:
            if (root / "cgroup.controllers").exists() and root == CGROUPS:
                offered = (root / "cgroup.controllers").read_text().split()
                (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in offered))
            folder = root / cluster.name
            folder.mkdir(exist_ok=True)
            # With v1 a new cpuset is empty, and a process cannot enter it before it has processors and memory.
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (folder / file).exists() and (root / "tasks").exists():
                    (folder / file).write_text((root / file).read_text())
        except OSError as error:
            raise UnsupportedError(f"cannot create cgroups in {root} ({error.strerror})") from error


def _nested(root: Path, cluster: Cluster) -> list[Path]:
    """Our cgroups in a hierarchy, innermost first. os.walk, because they vanish while one looks."""
    return [Path(folder) for folder, _, _ in os.walk(root / cluster.name, topdown=False)]


def _processes(cluster: Cluster) -> set[int]:
    found: set[int] = set()
    for folder in (folder for root in hierarchies() for folder in _nested(root, cluster)):
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
    return found


def cgroups_exist(cluster: Cluster) -> bool:
    return CGROUPS.is_dir() and any((root / cluster.name).exists() for root in hierarchies())


def kill_pods(cluster: Cluster, seconds: float = 5) -> None:
    """KILL every process in our pods' cgroups, and only those, until none is left."""
    deadline = time.monotonic() + seconds
    while (pids := _processes(cluster)) and time.monotonic() < deadline:
        for pid in pids - {0, os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def remove_cgroups(cluster: Cluster) -> None:
    for root in hierarchies():
        for folder in _nested(root, cluster):
            _remove_cgroup(folder)


def _remove_cgroup(folder: Path) -> None:
    """A cgroup whose last process just ended is busy for some milliseconds."""
    for _ in range(20):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return


def shims(cluster: Cluster) -> list[int]:
    """The shims of our containerd, known by the socket they were given."""
    socket_of = str(cluster.containerd_socket).encode()
    return [pid for pid, words in _commands() if b"-address" in words and socket_of in words]


def _commands() -> list[tuple[int, list[bytes]]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append((int(entry.name), (entry / "cmdline").read_bytes().split(b"\0")))
    return found


def kill_shims(cluster: Cluster) -> None:
    for pid in shims(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def mounts(*roots: Path) -> list[str]:
    """Mount points under some folders, deepest first."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    points = [line.split(" ")[4].encode().decode("unicode_escape") for line in lines]
    prefixes = tuple(f"{root}/" for root in roots)
    return [point for point in reversed(points) if point.startswith(prefixes)]


def unmount(*roots: Path) -> None:
    for point in sorted(mounts(*roots), key=len, reverse=True):
        attempt("umount", "-l", point)


def sandbox_of(result: str, cluster: Cluster) -> str | None:
    """The pod sandbox whose address is in a file of /var/lib/cni/results, if it is this cluster's; one's name may begin another's."""
    found = re.fullmatch(rf"{re.escape(cluster.name)}-([0-9a-f]+)-\w+", result)
    return found[1] if found else None


def remove_leftovers(paths: Paths) -> None:
    """What kubelet, containerd and CNI write at fixed places outside of our folders, and the run folder itself."""
    results = Path("/var/lib/cni/results")
    for result in results.glob("*"):
        sandbox = sandbox_of(result.name, paths.cluster)
        if sandbox:
            (results / f"cni-loopback-{sandbox}-lo").unlink(missing_ok=True)
            result.unlink(missing_ok=True)
    links, shim_sockets, plugins = (
        Path("/var/log/containers"),
        Path("/run/containerd/s"),
        Path("/var/lib/kubelet/device-plugins"),
    )
    for link in links.glob("*"):
        if link.is_symlink() and str(link.readlink()).startswith(f"{paths.logs}/"):
            link.unlink()
    for left in (*shim_sockets.glob("*"), plugins / "kubelet.sock"):
        if left.is_socket() and not answers(left):  # another containerd's or kubelet's would answer
            left.unlink()
    for folder in (results, results.parent, links, shim_sockets, shim_sockets.parent, plugins, plugins.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where it is empty now
    shutil.rmtree(paths.cluster.run, ignore_errors=True)
