"""Up and down. Both begin by looking at what is there, so that both work after a crash of anything."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tools.cluster import addons, build, components, config, containers, host, network, pki, process
from tools.cluster.api import Api
from tools.cluster.components import Component
from tools.cluster.errors import ClusterError, ComponentDiedError, TakenError, UnsupportedError
from tools.cluster.paths import NODE, Cluster, Paths
from tools.cluster.shell import Progress, last_line, wait_until, write

# Those that keep nothing are not worth waiting for.
_GRACE = {"apiserver": 1.0}
_STOP_FIRST = ("kubelet", "kube-proxy", "provisioner", "scheduler", "controller-manager")


def install(paths: Paths, progress: Progress) -> None:
    """Everything that `up` needs, without starting anything."""
    host.check(paths)
    host.install_packages(progress)
    build.ensure(paths, progress)


def up(paths: Paths, progress: Progress, *, empty: bool = False) -> bool:
    """Start what does not run; whether anything had to be started. With `empty`, it starts without any object of before."""
    with _alone(progress):
        _take_over(paths, progress)
        install(paths, progress)
        if empty:
            clean(paths)
            forget_objects(paths)
        kept = (paths.state / "etcd").exists()
        try:
            return _Start(paths, progress).run()
        except UnsupportedError:
            clean(paths)
            raise
        except ComponentDiedError as error:
            if error.component != "etcd" or not kept:
                raise
            progress(f"the saved state is damaged ({error}); starting over")
            clean(paths)
            forget_objects(paths)
            return _Start(paths, progress).run()


def down(paths: Paths, progress: Progress, *, purge: bool = False) -> None:
    """Stop everything and leave nothing but files; with `purge`, not the cluster's state either."""
    with _alone(progress):
        other = owner(paths.cluster)
        if other is not None and other != paths and other.root.exists():
            raise TakenError(paths.cluster.name, other.root, other.kubeconfig)
        known = paths.cluster.run.exists() or paths.state.exists()
        clean(other or paths)
        if purge:
            shutil.rmtree(paths.state, ignore_errors=True)
        if known:  # of a cluster that never was, there is nothing to tell
            progress("stopped, " + ("and its state is removed" if purge else "its state is kept for the next start"))


def restart(paths: Paths, name: str, progress: Progress) -> None:
    """Kill one component of the running cluster and start it again, waited for."""
    record = process.records(paths.cluster.pids).get(name)
    if record is None or owner(paths.cluster) != paths:
        raise ClusterError(f"no {name} of cluster {paths.cluster.name} of {paths.root} is running")
    process.stop([record], grace=0)
    up(paths, progress)


def clean(paths: Paths) -> None:
    """Take every trace of a cluster out of the kernel, however much of it still works."""
    cluster, records = paths.cluster, process.records(paths.cluster.pids)
    process.stop([record for name, record in records.items() if name in _STOP_FIRST], grace=5)
    if containers.cgroups_exist(cluster):
        containers.kill_pods(cluster)
    if containers.answers(cluster.containerd_socket):
        with contextlib.suppress(ClusterError):  # the sweep below does without it
            containers.remove_containers(paths)
    process.stop([record for name, record in records.items() if name in _GRACE], grace=1)
    process.stop([record for name, record in records.items() if name not in {*_GRACE, *_STOP_FIRST}], grace=5)
    containers.kill_shims(cluster)
    if containers.cgroups_exist(cluster):
        containers.kill_pods(cluster)
    containers.unmount(cluster.run, paths.state)
    network.delete(cluster)
    containers.remove_cgroups(cluster)
    containers.remove_leftovers(paths)
    paths.kubeconfig.unlink(missing_ok=True)


def forget_objects(paths: Paths) -> None:
    """Remove what etcd's data referred to; images stay."""
    for name in ("etcd", "kubelet", "volumes"):
        shutil.rmtree(paths.state / name, ignore_errors=True)


class _Start:
    """One run of `up` on a machine that has what it takes."""

    def __init__(self, paths: Paths, progress: Progress) -> None:
        self.paths = paths
        self.cluster = paths.cluster
        self.progress = progress
        self.snapshotter = host.snapshotter(paths)
        self.started: list[str] = []
        self.since = dt.datetime.min.replace(tzinfo=dt.UTC)

    def run(self) -> bool:
        cold = self._prepare()
        for component in components.base(self.paths):
            self._start(component)
        with ThreadPoolExecutor(1) as pool:
            images = pool.submit(self._fill_containerd, cold)
            api = Api(self.paths)
            self._wait("API server", api.ready, 90)
            images.result()
        if cold:
            addons.mark_pods_not_ready(api)
        for component in components.clients(self.paths):
            self._start(component)
        addons.apply(api, self.cluster, containers.coredns_image(self.paths))
        self._wait("node", lambda: addons.node_ready(api, NODE, self.since), 90)
        self._wait("registry", lambda: registry_answers(self.cluster), 30)
        self._wait("DNS", lambda: addons.dns_answers(self.cluster), 120)
        write(self.paths.kubeconfig, pki.kubeconfig(self.paths, "admin"), 0o600)
        return bool(self.started)

    def _prepare(self) -> bool:
        """Configuration, network, cgroups; whether the start is a cold one."""
        paths, cluster = self.paths, self.cluster
        cold = not _runs(cluster)
        if cold or not network.whole(cluster):
            if (
                process.records(cluster.pids)
                or network.traces(cluster)
                or containers.cgroups_exist(cluster)
                or containers.mounts(cluster.run, paths.state)
            ):
                self.progress("removing leftovers of the last run")
                clean(paths)
            cold = True
        for folder in (paths.logs / "pods", paths.volumes, paths.registry):
            folder.mkdir(parents=True, exist_ok=True)
        (paths.state / "etcd").mkdir(mode=0o700, exist_ok=True)
        pki.ensure(paths)
        for file, text in config.files(paths, self.snapshotter).items():
            write(file, text)
        for file, text in components.kubeconfigs(paths).items():
            write(file, text, 0o600)
        if cold:
            if problem := network.conflict(cluster):
                raise UnsupportedError(problem)
            write(_owner_file(cluster), str(paths.root))
            network.create(cluster)
            containers.create_cgroups(cluster)
            self.progress("network ready")
        _allow_open_files()
        return cold

    def _start(self, component: Component) -> None:
        """Start a component that does not run, or runs with another configuration."""
        fingerprint = component.fingerprint()
        record = process.records(self.cluster.pids).get(component.name)
        if record is not None and process.alive(record):
            if record.fingerprint == fingerprint:
                return
            process.stop([record], grace=_GRACE.get(component.name, 5))
        if component.name == "kubelet":
            self.since = dt.datetime.now(dt.UTC).replace(microsecond=0)
        log = self.paths.logs / f"{component.name}.log"
        process.start(
            self.cluster.pids, component.name, component.argv(self.cluster), fingerprint, log, self.paths.root
        )
        self.started.append(component.name)

    def _fill_containerd(self, cold: bool) -> None:
        """Images in, and containers of a crashed run out."""
        self._await_containerd()
        if cold and containers.remove_containers(self.paths):
            process.stop([process.records(self.cluster.pids)["containerd"]])  # it learned of them when it started
            self._start(components.base(self.paths)[1])
            self._await_containerd()
        containers.import_images(self.paths, self.snapshotter)

    def _await_containerd(self) -> None:
        self._wait("", lambda: containers.answers(self.cluster.containerd_socket), 30)

    def _wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for something, unless a component that it may need ends."""

        def settled() -> bool:
            self._check_alive()
            return condition()

        if not wait_until(settled, seconds):
            raise ClusterError(
                f"{what or 'containerd'} is not ready after {seconds:.0f} s; the logs are in {self.paths.logs}"
            )
        if what and self.started:
            self.progress(f"{what} ready")

    def _check_alive(self) -> None:
        for name in self.started:
            record = process.records(self.cluster.pids).get(name)
            if record is None or not process.alive(record):
                log = self.paths.logs / f"{name}.log"
                raise ComponentDiedError(name, log, last_line(log))


def registry_answers(cluster: Cluster) -> bool:
    try:
        return httpx.get(f"http://{cluster.registry}/v2/", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _owner_file(cluster: Cluster) -> Path:
    return cluster.run / "owner"


def owner(cluster: Cluster) -> Paths | None:
    """The checkout whose cluster of that name runs, or ran when the machine crashed."""
    try:
        return Paths(Path(_owner_file(cluster).read_text(encoding="utf-8").strip()), cluster)
    except FileNotFoundError:
        return None


def _runs(cluster: Cluster) -> bool:
    return any(process.alive(record) for record in process.records(cluster.pids).values())


def _take_over(paths: Paths, progress: Progress) -> None:
    """Refuse to disturb another checkout's running cluster; sweep up after a dead one."""
    other = owner(paths.cluster)
    if other is None or other == paths:
        return
    if _runs(paths.cluster) and other.root.exists():
        raise TakenError(paths.cluster.name, other.root, other.kubeconfig)
    progress(f"removing leftovers of {other.root}")
    clean(other)


def _allow_open_files() -> None:
    """containerd and etcd want more files than a login shell is given."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _alone(progress: Progress) -> Iterator[None]:
    """One up or down at a time on this machine. An abstract socket: it leaves no file, and ends with its process."""
    if os.name != "posix" or not hasattr(socket, "AF_UNIX"):
        raise UnsupportedError("Linux is required")
    with socket.socket(socket.AF_UNIX) as lock:
        told = False
        while True:
            try:
                lock.bind("\0fettle-cluster")
                break
            except OSError:
                if not told:
                    progress("waiting for another up or down to finish")
                told = True
                time.sleep(0.2)
        yield
