"""Configuration files, certificates and objects of the embedded cluster."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID
from tools.cluster import addons, components, config, network, pki, provisioner
from tools.cluster.api import path_of
from tools.cluster.archive import docker_archive
from tools.cluster.paths import CLUSTERS, FETTLE, INTEGRATIONS, TEST, Cluster, Paths


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder whose path is short enough for a cluster's state to be in it: pytest's are not, and what is put elsewhere would stay there."""
    with tempfile.TemporaryDirectory(prefix="fettle-") as folder:
        assert Paths(Path(folder), INTEGRATIONS).state.is_relative_to(folder)
        yield Path(folder)


def test_containerds_configuration_is_toml_whatever_the_path(tmp_path: Path) -> None:
    paths = Paths(tmp_path / 'a "quoted" päth')
    settings = tomllib.loads(config.containerd(paths, "native"))
    assert settings["root"] == str(paths.state / "containerd")
    assert settings["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"] == "native"
    assert settings["plugins"]["io.containerd.grpc.v1.cri"]["restrict_oom_score_adj"] is True


def test_every_file_lies_in_the_state_folder(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert all(file.is_relative_to(paths.state) for file in config.files(paths, "overlayfs"))


def test_eviction_thresholds_are_small_but_positive(tmp_path: Path) -> None:
    settings = yaml.safe_load(config.kubelet(Paths(tmp_path)))
    assert settings["evictionHard"] == {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"}


def test_a_change_of_command_or_file_changes_a_components_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "config"
    component = components.Component("x", ("program", "--a"), (file,))
    without = component.fingerprint()
    file.write_text("1")
    assert (
        len({without, component.fingerprint(), components.Component("x", ("program", "--b"), (file,)).fingerprint()})
        == 3
    )


def test_certificates_are_made_once_and_name_their_bearers(home: Path) -> None:
    paths = Paths(home)
    assert pki.ensure(paths)
    assert not pki.ensure(paths)
    node = x509.load_pem_x509_certificate((paths.pki / "kubelet.crt").read_bytes()).subject
    assert node.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:node:node0"
    assert node.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"
    assert (paths.pki / "ca.key").stat().st_mode & 0o777 == 0o600


def test_a_lost_key_makes_all_certificates_anew(home: Path) -> None:
    paths = Paths(home)
    pki.ensure(paths)
    before = (paths.pki / "ca.crt").read_bytes()
    (paths.pki / "admin.key").unlink()
    assert pki.ensure(paths)
    assert (paths.pki / "ca.crt").read_bytes() != before


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_kubeconfig_names_its_cluster_and_holds_its_certificates(home: Path, cluster: Cluster) -> None:
    paths = Paths(home, cluster)
    pki.ensure(paths)
    settings = yaml.safe_load(pki.kubeconfig(paths, "admin"))
    assert settings["current-context"] == cluster.name
    assert settings["clusters"][0]["cluster"]["server"] == f"https://{cluster.address}:6443"
    data = settings["users"][0]["user"]["client-certificate-data"]
    assert base64.b64decode(data) == (paths.pki / "admin.crt").read_bytes()


@pytest.mark.parametrize(
    ("destination", "overlaps"),
    [
        ("10.96.0.0/12", [FETTLE, TEST, INTEGRATIONS]),
        ("10.244.3.0/24", [FETTLE]),
        ("10.245.3.0/24", [TEST]),
        ("172.31.0.0/16", [FETTLE, TEST, INTEGRATIONS]),
        ("172.31.255.3", [FETTLE]),
        ("172.31.254.0/30", [TEST]),
        ("172.30.0.0/16", []),
        ("192.168.0.0/16", []),
        ("fd00::/8", []),
        ("unreachable", []),
    ],
)
def test_routes_of_the_host_that_overlap_are_noticed(destination: str, overlaps: list[Cluster]) -> None:
    assert [cluster for cluster in CLUSTERS if network.overlaps(destination, cluster)] == overlaps


def test_addons_are_objects_with_a_path_each() -> None:
    things = addons.manifests(FETTLE, "localhost/coredns:abc")
    assert [path_of(thing) for thing in things] == [
        "/apis/storage.k8s.io/v1/storageclasses/fettle-local",
        "/api/v1/namespaces/kube-system/serviceaccounts/coredns",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/fettle-cluster-coredns",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/fettle-cluster-coredns",
        "/api/v1/namespaces/kube-system/configmaps/coredns",
        "/api/v1/namespaces/kube-system/services/kube-dns",
        "/apis/apps/v1/namespaces/kube-system/deployments/coredns",
    ]


def test_a_dns_question_is_what_rfc_1035_draws() -> None:
    assert addons.dns_query("a.bc", 1) == b"\0\1\1\0\0\1\0\0\0\0\0\0\1a\2bc\0\0\1\0\1"


def test_an_image_archive_holds_the_binary_at_its_entrypoint(tmp_path: Path) -> None:
    binary = tmp_path / "program"
    binary.write_bytes(b"ELF")
    image = docker_archive(binary, ["/pause", "-P"], "localhost/pause:1", "x86_64")
    with tarfile.open(fileobj=io.BytesIO(image)) as archive:
        manifest = json.loads(archive.extractfile("manifest.json").read())[0]  # type: ignore[union-attr]
        with tarfile.open(fileobj=archive.extractfile(manifest["Layers"][0])) as layer:
            assert layer.getmember("pause").mode == 0o755
    assert manifest["RepoTags"] == ["localhost/pause:1"]


def a_claim(**spec: object) -> dict[str, object]:
    wanted = {
        "storageClassName": "fettle-local",
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
    }
    return {"metadata": {"name": "data", "namespace": "default", "uid": "u1"}, "spec": {**wanted, **spec}}


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({}, True),
        ({"volumeName": "pvc-u1"}, False),
        ({"storageClassName": "other"}, False),
        ({"storageClassName": None}, False),
        ({"volumeMode": "Block"}, False),
    ],
)
def test_only_pending_claims_of_our_class_get_a_volume(spec: dict[str, object], wanted: bool) -> None:
    assert provisioner.is_wanted(a_claim(**spec)) is wanted


def test_a_volume_is_local_and_bound_to_its_claim() -> None:
    volume = provisioner.volume_for(a_claim(), Path("/v/pvc-u1"))
    assert volume["spec"]["local"] == {"path": "/v/pvc-u1"}
    assert volume["spec"]["claimRef"]["uid"] == "u1"
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize(
    ("phase", "released"), [("Bound", False), ("Available", False), ("Released", True), ("Failed", True)]
)
def test_a_volume_goes_with_its_claim(phase: str, released: bool) -> None:
    volume = {**provisioner.volume_for(a_claim(), Path("/v")), "status": {"phase": phase}}
    assert provisioner.is_released(volume) is released
    volume["metadata"]["annotations"] = {}
    assert not provisioner.is_released(volume)
