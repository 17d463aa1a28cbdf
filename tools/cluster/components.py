"""The components: what each is called, what it is started with, what a change of its fingerprint means."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.cluster.network import enter
from tools.cluster.paths import API_PORT, NODE, Cluster, Paths
from tools.cluster.pki import CLIENTS, kubeconfig


@dataclass(frozen=True)
class Component:
    """One daemon. `files` are what it reads at start: when one changes, `up` restarts it."""

    name: str
    command: tuple[str, ...]
    files: tuple[Path, ...] = ()

    def fingerprint(self) -> str:
        digest = hashlib.sha256("\0".join(self.command).encode())
        for file in self.files:
            digest.update(file.read_bytes() if file.exists() else b"")
        program = Path(self.command[0])
        if program.is_absolute() and program.exists():
            digest.update(str(program.stat().st_mtime_ns).encode())
        return digest.hexdigest()[:16]

    def argv(self, cluster: Cluster) -> list[str]:
        return [*enter(cluster), *self.command]


def base(paths: Paths) -> list[Component]:
    """What needs no API server, in the order of starting."""
    config = paths.config
    containerd, registry = config / "containerd.toml", config / "registry.yaml"
    return [
        etcd(paths),
        Component("containerd", ("containerd", "--config", str(containerd)), (containerd,)),
        apiserver(paths),
        Component("registry", ("docker-registry", "serve", str(registry)), (registry,)),
    ]


def clients(paths: Paths) -> list[Component]:
    """What talks to the API server; started once it answers."""
    return [kubelet(paths), controller_manager(paths), scheduler(paths), kube_proxy(paths), provisioner(paths)]


def kubeconfig_file(paths: Paths, client: str) -> Path:
    return paths.config / f"{client}.kubeconfig"


def kubeconfigs(paths: Paths) -> dict[Path, str]:
    """The kubeconfig of every component that needs one."""
    return {kubeconfig_file(paths, each.name): kubeconfig(paths, each.name) for each in CLIENTS}


def etcd(paths: Paths) -> Component:
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return Component(
        "etcd",
        (
            "etcd",
            "--name=fettle",
            f"--data-dir={paths.state / 'etcd'}",
            "--unsafe-no-fsync",  # a test bed: speed before surviving a power cut
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=fettle={peer}",
            "--log-level=warn",
        ),
    )


def apiserver(paths: Paths) -> Component:
    pki = paths.pki
    return Component(
        "apiserver",
        (
            str(paths.bin / "kube-apiserver"),
            f"--advertise-address={paths.cluster.address}",
            f"--secure-port={API_PORT}",
            "--etcd-servers=http://127.0.0.1:2379",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={paths.cluster.services}",
            "--allow-privileged",
            "--kubelet-preferred-address-types=InternalIP",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--tls-cert-file={pki / 'server.crt'}",
            f"--tls-private-key-file={pki / 'server.key'}",
            f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            "--profiling=false",
        ),
        (pki / "ca.crt", pki / "server.crt", pki / "sa.pub"),
    )


def controller_manager(paths: Paths) -> Component:
    settings = kubeconfig_file(paths, "controller-manager")
    return Component(
        "controller-manager",
        (
            str(paths.bin / "kube-controller-manager"),
            f"--kubeconfig={settings}",
            "--use-service-account-credentials",
            f"--root-ca-file={paths.pki / 'ca.crt'}",
            f"--flex-volume-plugin-dir={paths.state / 'kubelet-plugins'}",  # it makes this folder
            "--allocate-node-cidrs",
            f"--cluster-cidr={paths.cluster.pods}",
            "--leader-elect=false",
            "--profiling=false",
        ),
        (settings,),
    )


def scheduler(paths: Paths) -> Component:
    settings = kubeconfig_file(paths, "scheduler")
    command = (
        str(paths.bin / "kube-scheduler"),
        f"--kubeconfig={settings}",
        "--leader-elect=false",
        "--profiling=false",
    )
    return Component("scheduler", command, (settings,))


def kubelet(paths: Paths) -> Component:
    config, settings = paths.config / "kubelet.yaml", kubeconfig_file(paths, "kubelet")
    return Component(
        "kubelet",
        (
            str(paths.bin / "kubelet"),
            f"--config={config}",
            f"--kubeconfig={settings}",
            f"--root-dir={paths.state / 'kubelet'}",
            f"--cert-dir={paths.state / 'kubelet-pki'}",
            f"--node-ip={paths.cluster.address}",
            f"--hostname-override={NODE}",
        ),
        (config, settings),
    )


def kube_proxy(paths: Paths) -> Component:
    settings = kubeconfig_file(paths, "kube-proxy")
    return Component(
        "kube-proxy",
        (
            str(paths.bin / "kube-proxy"),
            f"--kubeconfig={settings}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={paths.cluster.pods}",
            f"--hostname-override={NODE}",
            "--conntrack-max-per-core=0",
        ),
        (settings,),
    )


def provisioner(paths: Paths) -> Component:
    code = tuple(paths.module / name for name in ("provisioner.py", "api.py"))
    return Component("provisioner", (sys.executable, "-m", "tools.cluster.provisioner", paths.cluster.name), code)
