"""What builds images: docker, or buildah with chroot isolation and a base image made here where none can be pulled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tools.cluster import host, kind, package_index
from tools.cluster.errors import ClusterError
from tools.cluster.paths import CLUSTERS, Paths
from tools.cluster.shell import Progress, attempt, run, run_logged, tool_path
from tools.cluster.target import Target

BASE = "docker.io/library/python:3.11-slim-bookworm"
_BASE_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
_CA_FOLDERS = ("/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
PULL_SECONDS = 180


class Builder(Protocol):
    """Builds an image from the repository's root, and brings it to where the cluster's nodes find it."""

    def build(self, dockerfile: Path, reference: str, log: Path, arguments: Mapping[str, str]) -> None: ...

    def push(self, reference: str, log: Path) -> None: ...


def is_plain(host: str) -> bool:
    """Whether a registry speaks HTTP: this machine's own, by the habit of every container tool, and the embedded ones."""
    name = host.rpartition(":")[0] or host
    return name == "localhost" or name.startswith("127.") or host in {cluster.registry for cluster in CLUSTERS}


def choose_builder(paths: Paths, target: Target, progress: Progress) -> Builder:
    """Docker where its engine answers and can push there, else buildah. The nodes of kind take images from Docker alone."""
    if target.kind is not None:
        if not docker_answers():
            raise ClusterError(
                f"images for the kind cluster {target.kind} require its Docker engine, which does not answer; "
                "or set FETTLE_REGISTRY to a registry that the cluster can pull from"
            )
        return KindNodes(paths, target.kind)
    if not target.embedded and docker_answers():
        return Docker(paths)
    if shutil.which("buildah", path=tool_path()) is None:
        raise ClusterError("building images requires a Docker engine, or buildah: apt-get install buildah mmdebstrap")
    if os.geteuid() != 0:
        raise ClusterError("building images with buildah requires root; a Docker engine does not")
    builder = Buildah(paths, progress, plain=is_plain((target.registry or "").partition("/")[0]))
    builder.ensure_base()
    return builder


def options(arguments: Mapping[str, str]) -> tuple[str, ...]:
    """Build arguments as docker and buildah take them."""
    return tuple(f"--build-arg={name}={value}" for name, value in arguments.items())


def docker_answers() -> bool:
    return attempt("docker", "version", "--format", "{{.Server.Version}}").returncode == 0


class Docker:
    """An ordinary Docker engine."""

    def __init__(self, paths: Paths) -> None:
        self._root = paths.root

    def build(self, dockerfile: Path, reference: str, log: Path, arguments: Mapping[str, str]) -> None:
        log.unlink(missing_ok=True)
        # An image with attestations cannot be imported into a node of kind, and nobody here reads them.
        plain = {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        what = ("-f", str(dockerfile), "-t", reference, *options(arguments), ".")
        run_logged(log, "docker", "build", *what, cwd=self._root, env=plain)

    def push(self, reference: str, log: Path) -> None:
        run_logged(log, "docker", "push", reference, cwd=self._root)


class KindNodes(Docker):
    """The same, for a cluster of kind without a registry: images are loaded into its nodes."""

    def __init__(self, paths: Paths, cluster: str) -> None:
        super().__init__(paths)
        self._cluster = cluster

    def push(self, reference: str, log: Path) -> None:
        kind.load(self._cluster, reference, log, self._root)


class Buildah:
    """buildah with a store of its own, so that everything lies in .cluster/cache."""

    def __init__(self, paths: Paths, progress: Progress, *, plain: bool) -> None:
        self._paths = paths
        self._progress = progress
        self._plain = plain  # an embedded registry speaks HTTP
        driver = "overlay" if host.snapshotter(paths) == "overlayfs" else "vfs"
        store, run_folder = paths.cache / "buildah", paths.cache / "buildah-run"
        self._buildah = ("buildah", "--root", str(store), "--runroot", str(run_folder), "--storage-driver", driver)

    def build(self, dockerfile: Path, reference: str, log: Path, arguments: Mapping[str, str]) -> None:
        log.unlink(missing_ok=True)
        mounts = [f"{folder}:{folder}:ro" for folder in _CA_FOLDERS if Path(folder).is_dir()]
        mounts += package_index.mounts(self._paths.cache)
        volumes = [word for mount in mounts for word in ("-v", mount)]
        isolation = ("--isolation", "chroot", "--network", "host", "--layers", "--pull=false")
        what = ("-f", str(dockerfile), "-t", reference, *options(arguments), ".")
        run_logged(log, *self._buildah, "bud", *isolation, *volumes, *what, cwd=self._paths.root)

    def push(self, reference: str, log: Path) -> None:
        unsafe = ("--tls-verify=false",) if self._plain else ()
        run_logged(log, *self._buildah, "push", *unsafe, reference, cwd=self._paths.root)

    def ensure_base(self) -> None:
        """Have the base image: pulled, or made from Debian's packages where it cannot be pulled."""
        if attempt(*self._buildah, "inspect", "--type", "image", BASE).returncode == 0:
            return
        archive = self._paths.cache / "base.tar"
        if not archive.exists():
            self._progress(f"pulling {BASE}")
            pulled = attempt("timeout", str(PULL_SECONDS), *self._buildah, "pull", "-q", "--retry", "0", BASE)
            if pulled.returncode == 0:
                return
            self._progress("it cannot be pulled: building an equivalent image from Debian packages")
            self._bootstrap(archive)
        self._commit(archive)
        self._progress("base image ready")

    def _bootstrap(self, archive: Path) -> None:
        fresh = archive.with_name("base.new.tar")
        log = self._paths.logs / "image-base.log"
        log.unlink(missing_ok=True)
        archive.parent.mkdir(parents=True, exist_ok=True)
        include = f"--include={_BASE_PACKAGES}"
        run_logged(log, "mmdebstrap", "--variant=minbase", include, "bookworm", fresh, cwd=archive.parent)
        fresh.rename(archive)

    def _commit(self, archive: Path) -> None:
        """Make the archive an image in which `python` and `pip install` work as in the public one."""
        container = run(*self._buildah, "from", "scratch").strip()
        run(*self._buildah, "add", container, archive, "/")
        root = Path(run(*self._buildah, "mount", container).strip())
        (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
        (root / "usr/bin/python").symlink_to("python3")
        path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        run(*self._buildah, "config", "--env", path, "--cmd", "python3", container)
        run(*self._buildah, "umount", container)
        run(*self._buildah, "commit", "-q", "--rm", container, BASE)
