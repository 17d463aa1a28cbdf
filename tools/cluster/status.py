"""What `status` tells."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from tools.cluster import addons, components, kind, network, process
from tools.cluster.api import Api
from tools.cluster.containers import shims
from tools.cluster.errors import ClusterError
from tools.cluster.lifecycle import owner, registry_answers
from tools.cluster.paths import NODE, Paths
from tools.cluster.shell import megabytes


def show_all(clusters: Sequence[Paths]) -> bool:
    """Print the state of each cluster; whether all is well of those that run."""
    well = True
    for index, paths in enumerate(clusters):
        click.echo(click.style(f"cluster {paths.cluster.name}", bold=True))
        stopped = not process.records(paths.cluster.pids) and not network.traces(paths.cluster)
        if kind.is_ours(paths):
            well = _kind(paths) and well
        elif stopped:
            how = "tests and benchmarks start and stop it" if index else "make cluster starts it"
            _line("cluster", True, f"not running; {how}")
        else:
            well = show(paths) and well
    return well


def _kind(paths: Paths) -> bool:
    try:
        names = kind.nodes(kind.NAME)
    except ClusterError as error:
        return _line("kind", False, str(error))
    well = _line("kind", kind.nodes_ready(paths), f"nodes in Docker: {', '.join(names)}")
    _line("kubeconfig", paths.kubeconfig.exists(), str(paths.kubeconfig))
    return well


def show(paths: Paths) -> bool:
    """Print the state of everything; whether all of it is well."""
    cluster, other = paths.cluster, owner(paths.cluster)
    if other is not None and other != paths:
        return _line("cluster", False, f"{other.root} is running {cluster.name} on this machine")
    well = _line("network", network.whole(cluster), "namespace, veth pair, routes")
    if not (paths.pki / "admin.crt").exists():
        _line("cluster", False, f"{cluster.name} was never started: make cluster")
        return False
    records = process.records(cluster.pids)
    for component in [*components.base(paths), *components.clients(paths)]:
        record = records.get(component.name)
        running = record is not None and process.alive(record)
        detail = f"pid {record.pid}, {_megabytes(record.pid)} MB" if running and record else "not running"
        well = _line(component.name, running, detail) and well
    well = _objects(Api(paths)) and well
    well = _line("DNS", addons.dns_answers(cluster), "kubernetes.default.svc.cluster.local") and well
    well = _line("registry", registry_answers(cluster), f"http://{cluster.registry}") and well
    _line("containers", True, f"{len(shims(cluster))} pod sandboxes")
    _line("disk", True, _disk(paths))
    _line("kubeconfig", paths.kubeconfig.exists(), str(paths.kubeconfig))
    return well


def _objects(api: Api) -> bool:
    if not api.ready():
        return _line("API", False, "does not respond to /readyz")
    try:
        node = api.get(f"/api/v1/nodes/{NODE}")
        phases = Counter(pod["status"].get("phase", "Unknown") for pod in api.items(addons.PODS))
        volumes = api.items("/api/v1/persistentvolumes")
    except ClusterError as error:
        return _line("API", False, str(error))
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])
    version = node["status"]["nodeInfo"]["kubeletVersion"]
    well = _line("node", ready, f"{NODE} {'Ready' if ready else 'NotReady'}, Kubernetes {version}")
    _line("pods", True, ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items())) or "none")
    _line("volumes", True, str(len(volumes)))
    return well


def _line(name: str, well: bool, detail: str) -> bool:
    mark = click.style("ok  ", fg="green") if well else click.style("FAIL", fg="red")
    click.echo(f"{mark} {name:<20}{detail}")
    return well


def _megabytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")), 0)


def _disk(paths: Paths) -> str:
    free = shutil.disk_usage(paths.root).free // 2**30
    return f"{megabytes(paths.home)} MB in {paths.home}, {free} GB free"
