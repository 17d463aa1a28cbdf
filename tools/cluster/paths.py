"""Where everything lies, and the addresses of the cluster's network."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

NAMESPACE = "fettle"  # of the network, and the name of the kubeconfig's context
NODE = "node0"
HOST_DEVICE = "fettle0"
HOST_ADDRESS = "172.31.255.1"
ADDRESS = "172.31.255.2"  # of the node, the API server and the registry
PREFIX = 30
SERVICE_RANGE = "10.96.0.0/16"
POD_RANGE = "10.244.0.0/16"
NODE_POD_RANGE = "10.244.0.0/24"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
API_PORT = 6443
REGISTRY = f"{ADDRESS}:5000"
STORAGE_CLASS = "fettle-local"
PROVISIONER = "fettle.dev/local"
LONGEST_SOCKET = 107  # bytes of a unix socket's path

NETNS = Path("/run/netns") / NAMESPACE
# Pids, sockets, containerd's task state: what a reboot should forget. Short, because a socket's path ends at 107 bytes.
RUN = Path("/run/fettle")
CGROUP = "fettle"  # parent of all pods' cgroups, so that they are told from another kubelet's
DEBIAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Paths:
    """The folders of one checkout."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / ".cluster"

    @property
    def bin(self) -> Path:
        return self.home / "bin"

    @property
    def cache(self) -> Path:
        """Built and downloaded things that survive even a purge; all checkouts of a user share them."""
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fettle"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def state(self) -> Path:
        """What the cluster remembers between down and up: objects, images, volumes, certificates.

        In the checkout, unless its path is too long, or not plain enough, for the kubelet's sockets.
        """
        inside = self.home / "state"
        socket = f"{inside}/kubelet/pod-resources/kubelet.sock.1234567890"
        if len(socket.encode()) <= LONGEST_SOCKET and socket.isascii() and " " not in socket:
            return inside
        return Path("/var/lib/fettle") / hashlib.sha256(str(self.root).encode()).hexdigest()[:12]

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def config(self) -> Path:
        return self.state / "config"

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def kubeconfig(self) -> Path:
        return self.home / "kubeconfig"

    @property
    def module(self) -> Path:
        return self.root / "tools" / "cluster"

    @property
    def containerd_socket(self) -> Path:
        return RUN / "containerd" / "containerd.sock"


def checkout() -> Paths:
    """The checkout this code lies in."""
    return Paths(Path(__file__).resolve().parents[2])
