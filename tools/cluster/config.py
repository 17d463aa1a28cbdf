"""The configuration files of the components, as text. Pure: paths in, text out."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tools.cluster.paths import Cluster, Paths

PAUSE_IMAGE = "localhost/pause:1"


def files(paths: Paths, snapshotter: str) -> dict[Path, str]:
    """Every configuration file by where it belongs."""
    config, cluster = paths.config, paths.cluster
    return {
        config / "containerd.toml": containerd(paths, snapshotter),
        config / "certs.d" / cluster.registry / "hosts.toml": registry_hosts(cluster),
        config / "cni" / "10-fettle.conflist": cni(cluster),
        config / "kubelet.yaml": kubelet(paths),
        config / "registry.yaml": registry(paths),
        # The cluster knows no resolver above its own; a pod with dnsPolicy Default gets the same one.
        config / "resolv.conf": f"nameserver {cluster.dns_service}\n",
    }


def containerd(paths: Paths, snapshotter: str) -> str:
    """containerd 1.6/1.7 (2.x converts it). `json.dumps` quotes a path as TOML wants it."""

    def quoted(path: Path) -> str:
        return json.dumps(str(path), ensure_ascii=False)

    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = {quoted(paths.state / "containerd")}
state = {quoted(paths.cluster.run / "containerd" / "state")}
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]

[grpc]
  address = {quoted(paths.cluster.containerd_socket)}

[plugins."io.containerd.internal.v1.opt"]
  path = {quoted(paths.state / "containerd-opt")}

[{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  netns_mounts_under_state_dir = true
  # Without CAP_SYS_RESOURCE runc cannot lower a score, and dies of the attempt.
  restrict_oom_score_adj = true
  max_concurrent_downloads = 4

[{cri}.cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = {quoted(paths.config / "cni")}

[{cri}.containerd]
  snapshotter = "{snapshotter}"
  default_runtime_name = "runc"

[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
  SystemdCgroup = false
  Root = {quoted(paths.cluster.run / "runc")}

[{cri}.registry]
  config_path = {quoted(paths.config / "certs.d")}
"""


def registry_hosts(cluster: Cluster) -> str:
    return f"""server = "http://{cluster.registry}"

[host."http://{cluster.registry}"]
  capabilities = ["pull", "resolve"]
"""


def cni(cluster: Cluster) -> str:
    """Pods on one bridge, without masquerading: the host routes to them."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(cluster.run / "cni"),
            "ranges": [[{"subnet": cluster.node_pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "0.4.0", "name": cluster.name, "plugins": [bridge, portmap]}, indent=2)


def kubelet(paths: Paths) -> str:
    """The kubelet's settings; every folder it writes to is ours."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{paths.cluster.name}",
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "containerRuntimeEndpoint": f"unix://{paths.cluster.containerd_socket}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(paths.pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDNS": [paths.cluster.dns_service],
            "clusterDomain": "cluster.local",
            "resolvConf": str(paths.config / "resolv.conf"),
            "podLogsDir": str(paths.logs / "pods"),
            "volumePluginDir": str(paths.state / "kubelet-plugins"),
            # "0" is refused; a nearly full disk is the user's business, not a reason to evict.
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "serializeImagePulls": False,
            "maxPods": 110,
        },
        sort_keys=False,
    )


def registry(paths: Paths) -> str:
    return yaml.safe_dump(
        {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(paths.registry)}, "delete": {"enabled": True}},
            "http": {"addr": paths.cluster.registry},
        },
        sort_keys=False,
    )
