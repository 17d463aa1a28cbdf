"""A cluster's own network namespace, joined to the host by one veth pair. The host's iptables stay as they are."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from pathlib import Path

from tools.cluster.errors import UnsupportedError
from tools.cluster.paths import PREFIX, Cluster
from tools.cluster.shell import attempt, complaint


def routes(cluster: Cluster) -> tuple[str, str]:
    """What the host routes to the cluster."""
    return cluster.services, cluster.pods


def enter(cluster: Cluster) -> list[str]:
    """The prefix of a command that runs inside. Not `ip netns exec`: that hides /sys/fs/cgroup from the kubelet."""
    return ["nsenter", f"--net={cluster.netns}"]


def create(cluster: Cluster) -> None:
    """Make namespace, veth pair, addresses and routes. Raises UnsupportedError naming what the kernel refuses."""
    name, device = cluster.name, cluster.device
    inside = ("ip", "-n", name)
    steps: list[tuple[str, tuple[str, ...]]] = [
        ("network namespaces", ("ip", "netns", "add", name)),
        ("veth devices", ("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name)),
        ("an address", ("ip", "addr", "add", f"{cluster.host_address}/{PREFIX}", "dev", device)),
        ("a device", ("ip", "link", "set", device, "up")),
        ("an address", (*inside, "addr", "add", f"{cluster.address}/{PREFIX}", "dev", "eth0")),
        ("a device", (*inside, "link", "set", "eth0", "up")),
        ("a device", (*inside, "link", "set", "lo", "up")),
        ("a route", (*inside, "route", "add", "default", "via", cluster.host_address)),
        *((f"a route to {route}", ("ip", "route", "add", route, "via", cluster.address)) for route in routes(cluster)),
        ("forwarding", (*enter(cluster), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")),
        ("iptables' nat table", (*enter(cluster), "iptables", "-w", "-t", "nat", "-S")),
    ]
    for what, command in steps:
        result = attempt(*command)
        if result.returncode:
            raise UnsupportedError(f"the kernel or its privileges refuse {what} ({complaint(result)})")


def delete(cluster: Cluster) -> None:
    """Take away what create made, however much of it is there."""
    if device_exists(cluster):
        attempt("ip", "link", "del", cluster.device)  # its routes go with it
    if cluster.netns.exists():
        attempt("ip", "netns", "del", cluster.name)
        with contextlib.suppress(OSError):
            cluster.netns.unlink()  # a crash leaves the name without its mount, and `ip netns del` then fails
    parent = cluster.netns.parent
    if parent.is_dir() and not any(parent.iterdir()):
        attempt("umount", "-l", parent)  # `ip netns add` mounted it upon itself
        with contextlib.suppress(OSError):
            parent.rmdir()


def device_exists(cluster: Cluster) -> bool:
    return Path("/sys/class/net", cluster.device).exists()


def whole(cluster: Cluster) -> bool:
    """Whether the namespace, the device and both routes are there."""
    if not device_exists(cluster) or not _is_mounted(cluster.netns):
        return False
    gateways = {route.get("dst") for route in _routes() if route.get("gateway") == cluster.address}
    return set(routes(cluster)) <= gateways


def traces(cluster: Cluster) -> bool:
    """Whether anything of it is there."""
    return device_exists(cluster) or cluster.netns.exists()


def conflict(cluster: Cluster) -> str | None:
    """A route of the host's that overlaps with the cluster's addresses, in words."""
    for route in _routes():
        destination = str(route.get("dst", ""))
        if route.get("dev") == cluster.device or destination in ("", "default"):
            continue
        if overlaps(destination, cluster):
            return (
                f"the host routes {destination} to {route.get('dev', 'elsewhere')}, which cluster {cluster.name} needs"
            )
    return None


def overlaps(destination: str, cluster: Cluster) -> bool:
    """Whether a route's destination shares addresses with the cluster's networks."""
    try:
        network = ipaddress.ip_network(destination, strict=False)
    except ValueError:
        return False
    own = [ipaddress.ip_network(each, strict=False) for each in (*routes(cluster), f"{cluster.host_address}/{PREFIX}")]
    return any(network.version == each.version and network.overlaps(each) for each in own)


def _routes() -> list[dict[str, object]]:
    result = attempt("ip", "-j", "route", "show")
    routes: list[dict[str, object]] = json.loads(result.stdout or b"[]") if result.returncode == 0 else []
    return routes


def _is_mounted(path: Path) -> bool:
    """A namespace's name is a mount of nsfs; after a crash it may be just an empty file."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False
