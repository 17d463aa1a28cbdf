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
from tools.cluster.errors import ClusterError, ComponentDiedError, UnsupportedError
from tools.cluster.paths import NODE, REGISTRY, RUN, Paths
from tools.cluster.shell import Progress, last_line, wait_until, write

OWNER = RUN / "owner"
# Those that keep nothing are not worth waiting for.
_GRACE = {"apiserver": 1.0}
_STOP_FIRST = ("kubelet", "kube-proxy", "provisioner", "scheduler", "controller-manager")


def install(paths: Paths, progress: Progress) -> None:
    """Everything that `up` needs, without starting anything."""
    host.check(paths)
    host.install_packages(progress)
    build.ensure(paths, progress)


def up(paths: Paths, progress: Progress) -> bool:
    """Start what does not run; whether anything had to be started."""
    with _alone(progress):
        _take_over(paths, progress)
        install(paths, progress)
        kept = (paths.state / "etcd").exists()
        try:
            return _Start(paths, progress).run()
        except UnsupportedError:
            clean(paths)
            raise
        except ComponentDiedError as error:
            if error.component != "etcd" or not kept:
                raise
            progress(f"the kept state is damaged ({error}); starting over")
            clean(paths)
            forget_objects(paths)
            return _Start(paths, progress).run()


def down(paths: Paths, progress: Progress, *, purge: bool = False) -> None:
    """Stop everything and leave nothing but files; with `purge`, not the cluster's state either."""
    with _alone(progress):
        owner = _owner()
        if owner is not None and owner != paths and owner.root.exists():
            raise ClusterError(f"the cluster that runs belongs to {owner.root}: run `down` there")
        clean(owner or paths)
        if purge:
            shutil.rmtree(paths.state, ignore_errors=True)
        progress("nothing left" + (", not even the state" if purge else "; the state is kept for the next up"))


def restart(paths: Paths, name: str, progress: Progress) -> None:
    """Kill one component of the running cluster and start it again, waited for."""
    record = process.records().get(name)
    if record is None or _owner() != paths:
        raise ClusterError(f"no {name} of {paths.root} runs: start the cluster with `make cluster`")
    process.stop([record], grace=0)
    up(paths, progress)


def clean(paths: Paths) -> None:
    """Take every trace of a cluster out of the kernel, however much of it still works."""
    records = process.records()
    process.stop([record for name, record in records.items() if name in _STOP_FIRST], grace=5)
    if containers.cgroups_exist():
        containers.kill_pods()
    if containers.answers(paths.containerd_socket):
        with contextlib.suppress(ClusterError):  # the sweep below does without it
            containers.remove_containers(paths)
    process.stop([record for name, record in records.items() if name in _GRACE], grace=1)
    process.stop([record for name, record in records.items() if name not in {*_GRACE, *_STOP_FIRST}], grace=5)
    containers.kill_shims(paths)
    if containers.cgroups_exist():
        containers.kill_pods()
    containers.unmount(RUN, paths.state)
    network.delete()
    containers.remove_cgroups()
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
            api = Api(self.paths.pki)
            self._wait("API server", api.ready, 90)
            images.result()
        if cold:
            addons.mark_pods_not_ready(api)
        for component in components.clients(self.paths):
            self._start(component)
        addons.apply(api, containers.coredns_image(self.paths))
        self._wait("node", lambda: addons.node_ready(api, NODE, self.since), 90)
        self._wait("registry", registry_answers, 30)
        self._wait("DNS", addons.dns_answers, 120)
        write(self.paths.kubeconfig, pki.kubeconfig(self.paths.pki, "admin"), 0o600)
        return bool(self.started)

    def _prepare(self) -> bool:
        """Configuration, network, cgroups; whether the start is a cold one."""
        paths = self.paths
        cold = not any(process.alive(record) for record in process.records().values())
        if cold or not network.whole():
            if (
                process.records()
                or network.traces()
                or containers.cgroups_exist()
                or containers.mounts(RUN, paths.state)
            ):
                self.progress("removing what is left of the last run")
                clean(paths)
            cold = True
        for folder in (paths.logs / "pods", paths.volumes, paths.state / "registry"):
            folder.mkdir(parents=True, exist_ok=True)
        (paths.state / "etcd").mkdir(mode=0o700, exist_ok=True)
        pki.ensure(paths.pki)
        for file, text in config.files(paths, self.snapshotter).items():
            write(file, text)
        for file, text in components.kubeconfigs(paths).items():
            write(file, text, 0o600)
        if cold:
            if problem := network.conflict():
                raise UnsupportedError(problem)
            write(OWNER, str(paths.root))
            network.create()
            containers.create_cgroups()
            self.progress("network ready")
        _allow_open_files()
        return cold

    def _start(self, component: Component) -> None:
        """Start a component that does not run, or runs with another configuration."""
        fingerprint = component.fingerprint()
        record = process.records().get(component.name)
        if record is not None and process.alive(record):
            if record.fingerprint == fingerprint:
                return
            process.stop([record], grace=_GRACE.get(component.name, 5))
        if component.name == "kubelet":
            self.since = dt.datetime.now(dt.UTC).replace(microsecond=0)
        log = self.paths.logs / f"{component.name}.log"
        process.start(component.name, component.argv(), fingerprint, log, self.paths.root)
        self.started.append(component.name)

    def _fill_containerd(self, cold: bool) -> None:
        """Images in, and containers of a crashed run out."""
        self._await_containerd()
        if cold and containers.remove_containers(self.paths):
            process.stop([process.records()["containerd"]])  # it learned of them when it started
            self._start(components.base(self.paths)[1])
            self._await_containerd()
        containers.import_images(self.paths, self.snapshotter)

    def _await_containerd(self) -> None:
        self._wait("", lambda: containers.answers(self.paths.containerd_socket), 30)

    def _wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for something, unless a component that it may need ends."""

        def settled() -> bool:
            self._check_alive()
            return condition()

        if not wait_until(settled, seconds):
            raise ClusterError(
                f"{what or 'containerd'} is not ready after {seconds:.0f} s; the logs lie in {self.paths.logs}"
            )
        if what and self.started:
            self.progress(f"{what} ready")

    def _check_alive(self) -> None:
        for name in self.started:
            record = process.records().get(name)
            if record is None or not process.alive(record):
                log = self.paths.logs / f"{name}.log"
                raise ComponentDiedError(name, log, last_line(log))


def registry_answers() -> bool:
    try:
        return httpx.get(f"http://{REGISTRY}/v2/", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _owner() -> Paths | None:
    """The checkout whose cluster runs, or ran when the machine crashed."""
    try:
        return Paths(Path(OWNER.read_text(encoding="utf-8").strip()))
    except FileNotFoundError:
        return None


def _take_over(paths: Paths, progress: Progress) -> None:
    """Refuse to disturb another checkout's running cluster; sweep up after a dead one."""
    owner = _owner()
    if owner is None or owner == paths:
        return
    running = any(process.alive(record) for record in process.records().values())
    if running and owner.root.exists():
        raise ClusterError(
            f"the cluster of {owner.root} runs on this machine: run `down` there, or use it with "
            f"FETTLE_KUBECONFIG={owner.kubeconfig}"
        )
    progress(f"removing what {owner.root} left")
    clean(owner)


def _allow_open_files() -> None:
    """containerd and etcd want more files than a login shell is given."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _alone(progress: Progress) -> Iterator[None]:
    """One up or down at a time on this machine. An abstract socket: it leaves no file, and ends with its process."""
    if os.name != "posix" or not hasattr(socket, "AF_UNIX"):
        raise UnsupportedError("it needs Linux")
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
