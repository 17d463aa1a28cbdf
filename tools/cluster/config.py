"""The configuration files of the components, as text. Pure: paths in, text out."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tools.cluster.paths import CGROUP, DNS_SERVICE, NODE_POD_RANGE, REGISTRY, RUN, Paths

PAUSE_IMAGE = "localhost/pause:1"
CNI_NETWORK = "fettle"


def files(paths: Paths, snapshotter: str) -> dict[Path, str]:
    """Every configuration file by where it belongs."""
    config = paths.config
    return {
        config / "containerd.toml": containerd(paths, snapshotter),
        config / "certs.d" / REGISTRY / "hosts.toml": registry_hosts(),
        config / "cni" / "10-fettle.conflist": cni(),
        config / "kubelet.yaml": kubelet(paths),
        config / "registry.yaml": registry(paths),
        # The cluster knows no resolver above its own; a pod with dnsPolicy Default gets the same one.
        config / "resolv.conf": f"nameserver {DNS_SERVICE}\n",
    }


def containerd(paths: Paths, snapshotter: str) -> str:
    """containerd 1.6/1.7 (2.x converts it). `json.dumps` quotes a path as TOML wants it."""

    def quoted(path: Path) -> str:
        return json.dumps(str(path), ensure_ascii=False)

    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = {quoted(paths.state / "containerd")}
state = {quoted(RUN / "containerd" / "state")}
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]

[grpc]
  address = {quoted(paths.containerd_socket)}

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
  Root = {quoted(RUN / "runc")}

[{cri}.registry]
  config_path = {quoted(paths.config / "certs.d")}
"""


def registry_hosts() -> str:
    return f"""server = "http://{REGISTRY}"

[host."http://{REGISTRY}"]
  capabilities = ["pull", "resolve"]
"""


def cni() -> str:
    """Pods on one bridge, without masquerading: the host routes to them."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(RUN / "cni"),
            "ranges": [[{"subnet": NODE_POD_RANGE}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "0.4.0", "name": CNI_NETWORK, "plugins": [bridge, portmap]}, indent=2)


def kubelet(paths: Paths) -> str:
    """The kubelet's settings; every folder it writes to is ours."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CGROUP}",
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "containerRuntimeEndpoint": f"unix://{paths.containerd_socket}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(paths.pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDNS": [DNS_SERVICE],
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
            "storage": {"filesystem": {"rootdirectory": str(paths.state / "registry")}, "delete": {"enabled": True}},
            "http": {"addr": REGISTRY},
        },
        sort_keys=False,
    )
