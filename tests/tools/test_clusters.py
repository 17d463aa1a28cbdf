"""Two clusters on one machine have nothing in common that one of them could take from the other, and each command uses the right one."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml
from tools.cluster import components, config, containers, status
from tools.cluster.paths import CLUSTERS, FETTLE, INTEGRATIONS, PREFIX, TEST, Cluster, Paths

ROOT = Path(__file__).parents[2]
FETTLE_PATHS, TEST_PATHS = Paths(Path("/checkout")), Paths(Path("/checkout"), TEST)
OWN: dict[str, Callable[[Paths], object]] = {
    "network namespace": lambda paths: paths.cluster.netns,
    "network device": lambda paths: paths.cluster.device,
    "folder in /run": lambda paths: paths.cluster.run,
    "pid files": lambda paths: paths.cluster.pids,
    "containerd's socket": lambda paths: paths.cluster.containerd_socket,
    "API server": lambda paths: paths.cluster.server,
    "registry": lambda paths: paths.cluster.registry,
    "kubeconfig": lambda paths: paths.kubeconfig,
    "state": lambda paths: paths.state,
    "logs": lambda paths: paths.logs,
    "volumes": lambda paths: paths.volumes,
    "references of the images": lambda paths: paths.images(paths.cluster.registry),
    "cgroup": lambda paths: yaml.safe_load(config.kubelet(paths))["cgroupRoot"],
    "pods' network": lambda paths: yaml.safe_load(config.cni(paths.cluster))["name"],
    "etcd's data": lambda paths: components.etcd(paths).command,
    "provisioner": lambda paths: components.provisioner(paths).command,
}
SHARED: dict[str, Callable[[Paths], object]] = {
    "binaries": lambda paths: paths.bin,
    "what the registry holds": lambda paths: yaml.safe_load(config.registry(paths))["storage"],
    "cache": lambda paths: paths.cache,
}


@pytest.mark.parametrize("what", OWN)
def test_each_cluster_has_its_own(what: str) -> None:
    assert OWN[what](FETTLE_PATHS) != OWN[what](TEST_PATHS)


@pytest.mark.parametrize("what", SHARED)
def test_what_takes_long_to_make_is_made_once_for_both(what: str) -> None:
    assert SHARED[what](FETTLE_PATHS) == SHARED[what](TEST_PATHS)


def test_no_two_networks_overlap() -> None:
    networks = [
        ip_network(each, strict=False)
        for cluster in CLUSTERS
        for each in (cluster.services, cluster.pods, f"{cluster.address}/{PREFIX}")
    ]
    assert [(a, b) for i, a in enumerate(networks) for b in networks[i + 1 :] if a.overlaps(b)] == []


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_addresses_of_a_cluster_lie_in_its_ranges(cluster: Cluster) -> None:
    services, pods = ip_network(cluster.services), ip_network(cluster.pods)
    assert {ip_network(cluster.api_service), ip_network(cluster.dns_service)} <= set(services.subnets(new_prefix=32))
    assert ip_network(cluster.node_pods).subnet_of(pods)  # type: ignore[arg-type]
    assert len(cluster.device) <= 15, "the kernel takes no longer name of a device"


def test_taking_one_down_unmounts_and_removes_nothing_of_the_other() -> None:
    for own, other in ((FETTLE_PATHS, TEST_PATHS), (TEST_PATHS, FETTLE_PATHS)):
        removed = (own.cluster.run, own.state)
        assert not any(other.state.is_relative_to(each) or other.cluster.run.is_relative_to(each) for each in removed)


@pytest.mark.parametrize(
    ("name", "cluster", "sandbox"),
    [
        ("fettle-0a1b-eth0", FETTLE, "0a1b"),
        ("fettle-test-0a1b-eth0", TEST, "0a1b"),
        ("fettle-test-0a1b-eth0", FETTLE, None),
        ("fettle-0a1b-eth0", TEST, None),
        ("fettle-integrations-0a1b-eth0", FETTLE, None),
        ("kindnet-0a1b-eth0", FETTLE, None),
    ],
)
def test_addresses_that_cni_noted_are_those_of_one_cluster(name: str, cluster: Cluster, sandbox: str | None) -> None:
    assert containers.sandbox_of(name, cluster) == sandbox


def recipe(target: str, **environment: str) -> str:
    """What make would run for a target."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    command = ["make", "--dry-run", "--no-print-directory", target, *variables]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FETTLE_", "MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout


TARGETS = ["test", "test-cluster", "test-e2e", "test-torch", "test-integrations", "test-kills", "bench-rollout"]


@pytest.mark.parametrize("target", TARGETS)
def test_tests_and_benchmarks_run_in_a_cluster_of_their_own(target: str) -> None:
    lines = [
        line
        for line in recipe(target).splitlines()
        if any(each in line for each in ("tests/cluster", "tests/integrations", "bench.rollout", "e2e"))
    ]
    assert lines and all("-m tools.cluster run" in line for line in lines)
    assert "tools.cluster up" not in recipe(target)


@pytest.mark.parametrize("target", ["demo", "cluster"])
def test_a_person_gets_the_cluster_to_look_at(target: str) -> None:
    assert "-m tools.cluster up" in recipe(target)
    assert TEST.name not in recipe(target)


def test_ci_stops_what_the_tests_started_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "tools.cluster down" in line]
    assert [line.rpartition("down --name ")[2] for line in lines] == [TEST.name, INTEGRATIONS.name]


def test_ci_runs_targets_that_there_are_on_every_python_that_the_package_claims() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = {word for command in commands if command.startswith("make ") for word in command.split()[1:]}
    assert {"lint", "type", "verify", "test-unit", "coverage", "test-cluster", "demo"} <= targets
    assert all(recipe(target) for target in targets)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    claimed = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert jobs["unit"]["strategy"]["matrix"]["python"] == claimed


def test_the_package_and_the_chart_name_one_address() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert yaml.safe_load((ROOT / "charts" / "fettle" / "Chart.yaml").read_text()).get("home") == urls.get("Repository")


def test_a_cluster_that_is_stopped_is_no_fault_and_its_status_says_what_starts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.show_all([Paths(tmp_path, Cluster("fettle-nobody", 99))])
    told = capsys.readouterr().out
    assert "not running; make cluster starts it" in told
    assert "FAIL" not in told
