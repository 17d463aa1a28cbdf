"""Upgrade, rollback and removal of the chart while a model serves 300 requests a second; and two releases side by side.

`earlier-chart.tgz` is the chart before its CustomResourceDefinitions had a default for status and its namespaced mode had Roles.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.target import Target
from tools.demo import install, watch
from tools.demo.kube import ROOT, DemoError, Kube, condition
from tools.demo.traffic import Load, bodies, foreign_failures

pytestmark = pytest.mark.timeout(3000)
EARLIER, CHART = Path(__file__).with_name("earlier-chart.tgz"), ROOT / "charts" / "fettle"
RATE = 300.0
NAME = "digits"
WAIT = 600.0  # seconds: far more than anything takes on an idle machine


@pytest.fixture(scope="module")
def system(target: Target) -> Kube:
    return Kube(target, "fettle-system")


def to_chart(system: Kube, chart: Path) -> None:
    """`helm upgrade --install`, waited for, and `helm test`. The tests of Argo CD may have left CustomResourceDefinitions that no release owns."""
    system.ensure_namespace()
    images = install.helm_arguments(install.images(system.target))
    command = ("upgrade", "--install", "fettle", str(chart), "--namespace", system.namespace, "--take-ownership")
    values = ("--set", "replicas=2,jobs.measureSeconds=3", "--set", "ignoreNamespaces={test-*}")
    install.helm(system, *command, *images, *values)
    rolled_out(system)
    if chart == CHART:
        install.helm(system, "test", "fettle", "--namespace", system.namespace)


def rolled_out(system: Kube) -> None:
    watch.deployed(system, "app.kubernetes.io/instance=fettle", WAIT)


@pytest.fixture(scope="module")
def team(system: Kube) -> Iterator[Kube]:
    """A namespace with a published model, served by three pods, by an operator that the earlier chart installed."""
    to_chart(system, EARLIER)
    kube = Kube(system.target, f"fettle-helm-{uuid.uuid4().hex[:6]}")
    kube.ensure_namespace()
    install.push(kube, ROOT / "examples" / "digits", "pvc://models/digits")
    model, deployment = (
        yaml.safe_load((install.DIGITS / f"{kind}.yaml").read_text()) for kind in ("optimizedmodel", "modeldeployment")
    )
    model["spec"]["recipes"] = [{"name": "prepared", "steps": [{"optimizeGraph": {}}]}]
    model["spec"]["targets"][0]["runtimes"] = ["onnxruntime"]
    kube.apply([model, deployment])
    watch.optimized(kube, NAME, 2 * WAIT, print)
    watch.serving(kube, NAME, WAIT, print)
    yield kube
    kube.kubectl("delete", "namespace", kube.namespace, "--wait=false")


@pytest.fixture(scope="module")
def load(team: Kube) -> Load:
    """300 requests a second from the first test that asks for it until the operator is gone."""
    requests, _ = bodies(install.DIGITS / "evaluation.npz", 20)
    load = Load(team, NAME, "load")
    load.start(requests, rate=RATE, clients=24, seconds=7200)
    return load


def pods(team: Kube) -> dict[str, Any]:
    """Serving pods, with what tells that their containers started again."""
    listed = json.loads(team.kubectl("get", "pods", "-l", f"fettle.dev/modeldeployment={NAME}", "-o", "json"))
    return {
        pod["metadata"]["uid"]: (
            [each["restartCount"] for each in pod["status"].get("containerStatuses", ())],
            pod["spec"],
        )
        for pod in listed["items"]
    }


def unhurt(load: Load) -> None:
    totals = load.totals()
    assert totals["sent"] > RATE, totals
    assert foreign_failures(totals, set()) == 0, totals


def stored(system: Kube, name: str) -> dict[str, Any]:
    """An object in a namespace that the operator ignores."""
    kube = Kube(system.target, "test-stored")
    kube.ensure_namespace()
    model = yaml.safe_load((install.DIGITS / "optimizedmodel.yaml").read_text())
    model["metadata"]["name"] = name
    kube.apply([model])
    return kube.get("om", name) or {}


def kept(now: Any, before: Any) -> bool:
    """Whether all that stood in a stored object still does."""
    if isinstance(before, dict):
        return isinstance(now, dict) and all(key in now and kept(now[key], value) for key, value in before.items())
    if isinstance(before, list):
        return isinstance(now, list) and len(now) == len(before) and all(map(kept, now, before))
    return bool(now == before)


def test_an_upgrade_under_load_fails_no_request_restarts_no_serving_pod_and_upgrades_stored_objects(
    system: Kube, team: Kube, load: Load
) -> None:
    before = stored(system, "old")
    assert "status" not in before
    serving, model = pods(team), team.get("om", NAME) or {}
    to_chart(system, CHART)
    after = Kube(system.target, "test-stored").get("om", "old") or {}
    assert after["status"] == {"observedGeneration": -1}
    assert kept(after["spec"], before["spec"]), "fields that are new have their defaults, and no other changed"
    for _ in watch.polls(WAIT):
        if condition(team.get("om", NAME), "Stalled").get("status") == "False":
            break
    upgraded = team.get("om", NAME) or {}
    assert condition(upgraded, "Stalled")["status"] == condition(upgraded, "Reconciling")["status"] == "False"
    assert upgraded["status"]["artifacts"] == model["status"]["artifacts"]
    assert pods(team) == serving
    unhurt(load)


def test_a_rollback_of_the_release_restarts_no_serving_pod_either(system: Kube, team: Kube, load: Load) -> None:
    serving = pods(team)
    install.helm(system, "rollback", "fettle", "--namespace", system.namespace)
    rolled_out(system)
    team.patch("mdep", NAME, {"spec": {"rollout": {"progressDeadlineSeconds": 601}}})
    watch.serving(team, NAME, WAIT, print)
    to_chart(system, CHART)
    assert pods(team) == serving
    unhurt(load)


def test_after_an_uninstall_the_pods_serve_on_and_an_installation_goes_on_where_it_ended(
    system: Kube, team: Kube, load: Load
) -> None:
    serving = pods(team)
    install.helm(system, "uninstall", "fettle", "--namespace", system.namespace, "--wait")
    operators = ("get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "name")
    for _ in watch.polls(WAIT):
        if not system.kubectl(*operators):
            break
    else:
        raise AssertionError("the operator's pods are still there")
    assert team.get("mdep", NAME) is not None and team.get("om", NAME) is not None
    sent = load.totals()["sent"]
    for _ in watch.polls(WAIT):
        if load.totals()["sent"] > sent + RATE:
            break
    assert pods(team) == serving
    to_chart(system, CHART)
    watch.serving(team, NAME, WAIT, print)
    assert pods(team) == serving
    totals = load.stop()
    assert foreign_failures(totals, set()) == 0, totals
    install.helm(system, "uninstall", "fettle", "--namespace", system.namespace, "--wait")


def told(kube: Kube) -> str:
    return str(condition(kube.get("mdep", "waits"), "Ready").get("reason", ""))


def test_two_releases_with_roles_only_work_side_by_side_each_in_its_namespace(target: Target, team: Kube) -> None:
    """Without any cluster role, and without a right in each other's namespace. The CustomResourceDefinitions are there."""
    teams = [Kube(target, f"fettle-helm-{name}-{uuid.uuid4().hex[:4]}") for name in "abc"]
    deployment = yaml.safe_load((install.DIGITS / "modeldeployment.yaml").read_text())
    deployment["metadata"]["name"] = "waits"
    for kube in teams:
        kube.ensure_namespace()
    for kube in teams[:2]:
        images = install.helm_arguments(install.images(target))
        values = ("--set", f"watchNamespaces={{{kube.namespace}}}", "--set", "crds.enabled=false,rbac.userRoles=false")
        install.helm(kube, "install", "fettle", str(CHART), "--namespace", kube.namespace, *images, *values)
    for kube in teams[:2]:
        watch.deployed(kube, "app.kubernetes.io/instance=fettle", WAIT)
    for kube in teams:
        kube.apply([deployment])
    for kube in teams[:2]:
        for _ in watch.polls(WAIT):
            if told(kube) == "ModelNotReady":
                break
        else:
            raise DemoError(f"{kube.namespace}: {kube.get('mdep', 'waits')}")
    assert told(teams[2]) == "", "a namespace that nobody watches"
    roles = teams[0].kubectl(
        "get", "clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/name=fettle", "-o", "name"
    )
    assert roles == ""
    account = f"--as=system:serviceaccount:{teams[0].namespace}:fettle"
    for kube, answer in ((teams[0], "yes"), (teams[1], "no")):
        assert kube.kubectl("auth", "can-i", "create", "jobs.batch", account, check=False).strip() == answer
    install.helm(teams[0], "uninstall", "fettle", "--namespace", teams[0].namespace, "--wait")
    teams[1].patch("mdep", "waits", {"spec": {"replicas": 2}})
    for _ in watch.polls(WAIT):
        found = teams[1].get("mdep", "waits") or {}
        if found["status"].get("observedGeneration") == found["metadata"]["generation"]:
            break
    else:
        raise DemoError("the other release stopped working")
    for kube in teams:
        kube.kubectl("delete", "namespace", kube.namespace, "--wait=false")
