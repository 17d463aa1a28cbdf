"""What runs in the cluster besides its components: DNS and the default StorageClass."""

from __future__ import annotations

import datetime as dt
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from string import Template

import yaml

from tools.cluster.api import Api, Object
from tools.cluster.errors import ClusterError
from tools.cluster.paths import PROVISIONER, STORAGE_CLASS, Cluster

PODS = "/api/v1/pods"


def manifests(cluster: Cluster, coredns_image: str) -> list[Object]:
    """The objects of addons.yaml."""
    text = Path(__file__).with_name("addons.yaml").read_text(encoding="utf-8")
    filled = Template(text).substitute(
        storage_class=STORAGE_CLASS,
        provisioner=PROVISIONER,
        dns_service=cluster.dns_service,
        coredns_image=coredns_image,
    )
    return list(yaml.safe_load_all(filled))


def apply(api: Api, cluster: Cluster, coredns_image: str, seconds: float = 30) -> None:
    """Apply them all. A server that just became ready may lack its first namespaces and priority classes for a moment."""
    deadline = time.monotonic() + seconds
    for thing in manifests(cluster, coredns_image):
        while True:
            try:
                api.apply(thing)
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                break


def mark_pods_not_ready(api: Api) -> None:
    """Say that no pod runs yet. Until its kubelet speaks, the API would show the conditions of before the last stop, and
    `kubectl wait` and Services would believe them."""
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for pod in api.items(PODS):
        ready = [each for each in _conditions(pod) if each["type"] in ("Ready", "ContainersReady")]
        if not any(each["status"] == "True" for each in ready):
            continue
        change = {"status": "False", "reason": "NodeRestarted", "lastTransitionTime": now}
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        api.patch(path, {"status": {"conditions": [{"type": each["type"], **change} for each in ready]}})


def node_ready(api: Api, node: str, since: dt.datetime) -> bool:
    """Whether the kubelet itself said Ready at or after a moment."""
    try:
        found = api.get(f"/api/v1/nodes/{node}")
    except ClusterError:
        return False
    return any(
        each["type"] == "Ready"
        and each["status"] == "True"
        and dt.datetime.fromisoformat(each["lastHeartbeatTime"]) >= since
        for each in _conditions(found)
    )


def _conditions(thing: Object) -> Iterator[Object]:
    yield from thing.get("status", {}).get("conditions", [])


def dns_query(name: str, identity: int = 0x1234) -> bytes:
    """A question for a name's A record (RFC 1035, section 4)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", identity, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)


def dns_answers(cluster: Cluster, seconds: float = 0.5) -> bool:
    """Whether the cluster's DNS tells the API's address. That takes node, pod network, kube-proxy and CoreDNS."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(seconds)
        try:
            client.sendto(dns_query("kubernetes.default.svc.cluster.local"), (cluster.dns_service, 53))
            answer = client.recv(512)
        except OSError:
            return False
    return answer.endswith(socket.inet_aton(cluster.api_service))
