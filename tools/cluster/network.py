"""The cluster's own network namespace, joined to the host by one veth pair. The host's iptables stay as they are."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from pathlib import Path

from tools.cluster.errors import UnsupportedError
from tools.cluster.paths import ADDRESS, HOST_ADDRESS, HOST_DEVICE, NAMESPACE, NETNS, POD_RANGE, PREFIX, SERVICE_RANGE
from tools.cluster.shell import attempt, complaint

ROUTES = (SERVICE_RANGE, POD_RANGE)


def enter() -> list[str]:
    """The prefix of a command that runs inside. Not `ip netns exec`: that hides /sys/fs/cgroup from the kubelet."""
    return ["nsenter", f"--net={NETNS}"]


def create() -> None:
    """Make namespace, veth pair, addresses and routes. Raises UnsupportedError naming what the kernel refuses."""
    inside = ("ip", "-n", NAMESPACE)
    steps: list[tuple[str, tuple[str, ...]]] = [
        ("network namespaces", ("ip", "netns", "add", NAMESPACE)),
        (
            "veth devices",
            ("ip", "link", "add", HOST_DEVICE, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE),
        ),
        ("an address", ("ip", "addr", "add", f"{HOST_ADDRESS}/{PREFIX}", "dev", HOST_DEVICE)),
        ("a device", ("ip", "link", "set", HOST_DEVICE, "up")),
        ("an address", (*inside, "addr", "add", f"{ADDRESS}/{PREFIX}", "dev", "eth0")),
        ("a device", (*inside, "link", "set", "eth0", "up")),
        ("a device", (*inside, "link", "set", "lo", "up")),
        ("a route", (*inside, "route", "add", "default", "via", HOST_ADDRESS)),
        *((f"a route to {route}", ("ip", "route", "add", route, "via", ADDRESS)) for route in ROUTES),
        ("forwarding", (*enter(), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")),
        ("iptables' nat table", (*enter(), "iptables", "-w", "-t", "nat", "-S")),
    ]
    for what, command in steps:
        result = attempt(*command)
        if result.returncode:
            raise UnsupportedError(f"the kernel or its privileges refuse {what} ({complaint(result)})")


def delete() -> None:
    """Take away what create made, however much of it is there."""
    if device_exists():
        attempt("ip", "link", "del", HOST_DEVICE)  # its routes go with it
    if NETNS.exists():
        attempt("ip", "netns", "del", NAMESPACE)
        with contextlib.suppress(OSError):
            NETNS.unlink()  # a crash leaves the name without its mount, and `ip netns del` then fails
    parent = NETNS.parent
    if parent.is_dir() and not any(parent.iterdir()):
        attempt("umount", "-l", parent)  # `ip netns add` mounted it upon itself
        with contextlib.suppress(OSError):
            parent.rmdir()


def device_exists() -> bool:
    return Path("/sys/class/net", HOST_DEVICE).exists()


def whole() -> bool:
    """Whether the namespace, the device and both routes are there."""
    if not device_exists() or not _is_mounted(NETNS):
        return False
    gateways = {route.get("dst") for route in _routes() if route.get("gateway") == ADDRESS}
    return set(ROUTES) <= gateways


def traces() -> bool:
    """Whether anything of it is there."""
    return device_exists() or NETNS.exists()


def conflict() -> str | None:
    """A route of the host's that overlaps with the cluster's addresses, in words."""
    for route in _routes():
        destination = str(route.get("dst", ""))
        if route.get("dev") == HOST_DEVICE or destination in ("", "default"):
            continue
        if overlaps(destination):
            return f"the host routes {destination} to {route.get('dev', 'elsewhere')}, which the cluster would use"
    return None


def overlaps(destination: str) -> bool:
    """Whether a route's destination shares addresses with the cluster's networks."""
    try:
        network = ipaddress.ip_network(destination, strict=False)
    except ValueError:
        return False
    own = [ipaddress.ip_network(each, strict=False) for each in (*ROUTES, f"{HOST_ADDRESS}/{PREFIX}")]
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
