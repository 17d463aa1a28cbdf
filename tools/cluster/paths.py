"""Where everything lies, and the addresses of each cluster's network."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

NODE = "node0"
PREFIX = 30
API_PORT = 6443
STORAGE_CLASS = "fettle-local"
PROVISIONER = "fettle.dev/local"
LONGEST_SOCKET = 107  # bytes of a unix socket's path
DEBIAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Cluster:
    """One of this machine's embedded clusters. Nothing that it has in the kernel is another's, so that they run side by side.

    `name`: of its network namespace, of its pods' parent cgroup, of its folder in /run, of its kubeconfig's context.
    `number`: what its addresses are counted from.
    """

    name: str
    number: int

    @property
    def device(self) -> str:
        """The host's end of the veth pair."""
        return f"{self.name[:14]}0"  # the kernel takes 15 characters

    @property
    def host_address(self) -> str:
        return f"172.31.{255 - self.number}.1"

    @property
    def address(self) -> str:
        """Of the node, the API server and the registry."""
        return f"172.31.{255 - self.number}.2"

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.address}:{API_PORT}"

    @property
    def registry(self) -> str:
        return f"{self.address}:5000"

    @property
    def services(self) -> str:
        """The Services' range of addresses."""
        return f"10.{96 + self.number}.0.0/16"

    @property
    def api_service(self) -> str:
        return f"10.{96 + self.number}.0.1"

    @property
    def dns_service(self) -> str:
        return f"10.{96 + self.number}.0.10"

    @property
    def pods(self) -> str:
        """The pods' range of addresses; the one node has its first /24."""
        return f"10.{244 + self.number}.0.0/16"

    @property
    def node_pods(self) -> str:
        return f"10.{244 + self.number}.0.0/24"

    @property
    def netns(self) -> Path:
        return Path("/run/netns") / self.name

    @property
    def run(self) -> Path:
        """Pids, sockets, containerd's task state: what a reboot should forget. Short, because a socket's path ends at 107 bytes."""
        return Path("/run") / self.name

    @property
    def pids(self) -> Path:
        return self.run / "pids"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd" / "containerd.sock"


# What a person looks at: `make cluster`, `make demo`. What tests and benchmarks fill and throw away. And the same for the tests with
# other systems, which bring CustomResourceDefinitions and controllers of their own.
FETTLE = Cluster("fettle", 0)
TEST = Cluster("fettle-test", 1)
INTEGRATIONS = Cluster("fettle-integrations", 2)
CLUSTERS = (FETTLE, TEST, INTEGRATIONS)


@dataclass(frozen=True)
class Paths:
    """The folders of one checkout, and of one cluster in it."""

    root: Path
    cluster: Cluster = FETTLE

    @property
    def home(self) -> Path:
        return self.root / ".cluster"

    @property
    def folder(self) -> Path:
        """What belongs to this cluster alone; those of the others lie in folders of their own below that of `fettle`."""
        return self.home if self.cluster == FETTLE else self.home / self.cluster.name

    @property
    def bin(self) -> Path:
        return self.home / "bin"

    @property
    def cache(self) -> Path:
        """Built and downloaded things that survive even a purge; all checkouts and clusters of a user share them."""
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fettle"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def state(self) -> Path:
        """What the cluster remembers between down and up: objects, images, volumes, certificates.

        In the checkout, unless its path is too long, or not plain enough, for the kubelet's sockets.
        """
        inside = self.folder / "state"
        socket = f"{inside}/kubelet/pod-resources/kubelet.sock.1234567890"
        if len(socket.encode()) <= LONGEST_SOCKET and socket.isascii() and " " not in socket:
            return inside
        return Path("/var/lib/fettle") / hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]

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
        return self.folder / "kubeconfig"

    @property
    def module(self) -> Path:
        return self.root / "tools" / "cluster"

    @property
    def registry(self) -> Path:
        """What the registry holds. Shared, so that an image is built and pushed once for all clusters."""
        return self.cache / "registry"

    def images(self, registry: str) -> Path:
        """Where `make images` leaves the references of the images in a registry."""
        return self.home / "images" / f"{registry.replace('/', '_').replace(':', '_')}.json"


def checkout(cluster: Cluster = FETTLE) -> Paths:
    """The checkout this code lies in."""
    return Paths(Path(__file__).resolve().parents[2], cluster)
