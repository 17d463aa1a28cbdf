"""Argo CD brings Fettle and its models from git: without ignore rules, with a health that is true, whatever is committed.

One story in order, as a platform team lives it; examples/gitops and docs/guides/gitops.md tell the same.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.charts.helm import CHART, helm
from tests.charts.rules import CUSTOMIZATIONS
from tests.integrations.repository import APPS, MODELS, Repository
from tools.cluster.shell import Progress
from tools.cluster.target import Target
from tools.demo import install, watch
from tools.demo.kube import ROOT, DemoError, Kube, condition
from tools.demo.traffic import Load, bodies, foreign_failures
from tools.integrations import argocd
from tools.integrations.argocd import ArgoCD, state

pytestmark = pytest.mark.timeout(3000)
GITOPS = Path("examples/gitops")
MODEL, DEPLOYMENT = MODELS / "optimizedmodel.yaml", MODELS / "modeldeployment.yaml"
RECIPES = [{"name": "prepared", "steps": [{"optimizeGraph": {}}]}]
NAME = "digits"
WAIT = 600.0  # seconds: far more than anything takes on an idle machine
WAVE = "argocd.argoproj.io/sync-wave"


@pytest.fixture(scope="module")
def argo(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArgoCD]:
    with argocd.running(target, tmp_path_factory.mktemp("argocd"), Progress("Argo CD")) as found:
        yield found


@pytest.fixture(scope="module")
def team(target: Target) -> Kube:
    """The team's namespace with its models in a claim, as the example's README says."""
    kube = Kube(target, "vision")
    kube.ensure_namespace()
    install.push(kube, install.DIGITS, "pvc://models/digits")
    return kube


@pytest.fixture(scope="module")
def repository(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    made = Repository(tmp_path_factory.mktemp("git") / "platform", install.images(target))
    made.edit(MODEL, quick)
    made.edit(DEPLOYMENT, lambda each: each["spec"]["rollout"]["analysis"].update(intervalSeconds=5))
    for wave, path in enumerate((MODEL, DEPLOYMENT)):
        made.edit(path, lambda obj, wave=wave: obj["metadata"].update(annotations={WAVE: str(wave)}))
    made.commit("a quick plan, in waves")
    return made


def quick(model: Any) -> None:
    model["spec"]["recipes"] = RECIPES
    model["spec"]["targets"][0]["runtimes"] = ["onnxruntime"]


@pytest.fixture(scope="module")
def load(team: Kube) -> Iterator[Load]:
    """Constant traffic from the first test that asks for it to the end of the story."""
    requests, _ = bodies(install.DIGITS / "evaluation.npz", 20)
    load = Load(team, NAME, "load")
    load.start(requests, rate=25, clients=6, seconds=7200)
    yield load


def comes(argo: ArgoCD, app: str, wanted: Callable[[Any], bool], seconds: float = WAIT, *, look: bool = False) -> Any:
    """The Application once it is so. Fails with what it says instead. `look`: at git, again and again."""
    found: Any = {}
    for elapsed in watch.polls(seconds):
        if look and int(elapsed) % 5 == 0:
            argo.refresh(app)
        found = argo.app(app)
        if found and wanted(found):
            return found
    told = yaml.safe_dump({key: (found.get("status") or {}).get(key) for key in TOLD})
    raise AssertionError(f"{app} is {state(found)}:\n{told}\n{argo.logs()[-6000:]}")


TOLD = ("conditions", "health", "sync", "operationState", "resources")


def healthy(app: Any) -> bool:
    return state(app) == ("Synced", "Healthy")


def follow(argo: ArgoCD, repository: Repository, app: str, message: str) -> str:
    """Commit, and wait until the Application is about that commit."""
    repository.commit(message)
    return at_head(argo, repository, app)


def at_head(argo: ArgoCD, repository: Repository, app: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(repository.folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    head = done.stdout.strip()
    comes(argo, app, lambda found: synced_to(found) == head, look=True)
    return head


def synced_to(app: Any) -> str:
    result = ((app.get("status") or {}).get("operationState") or {}).get("syncResult") or {}
    sync = (app.get("status") or {}).get("sync") or {}
    return str(result.get("revision", "")) if sync.get("revision") == result.get("revision") else ""


def health_of(argo: ArgoCD, kind: str) -> dict[str, str]:
    """What Argo CD says of the health of our one object of a kind."""
    found = argo.resources("models").get((kind, NAME), {}).get("health") or {}
    return dict(found)


def pods(team: Kube) -> dict[str, list[int]]:
    """Serving pods, and how often their containers were started again."""
    listed = json.loads(team.kubectl("get", "pods", "-l", f"fettle.dev/modeldeployment={NAME}", "-o", "json"))
    return {
        pod["metadata"]["uid"]: [each["restartCount"] for each in pod["status"].get("containerStatuses", ())]
        for pod in listed["items"]
        if not pod["metadata"].get("deletionTimestamp")
    }


# ------------------------------------------------------------------------------------------------------------ the story


def test_the_root_brings_the_operator_then_the_model_then_what_serves_it(
    argo: ArgoCD, team: Kube, repository: Repository
) -> None:
    argo.kube.kubectl("patch", "configmap", "argocd-cm", "--patch-file", str(ROOT / GITOPS / "argocd-cm.yaml"))
    merge_customizations(argo)
    argo.kube.kubectl("apply", "-f", str(repository.folder / GITOPS / "root.yaml"))
    comes(argo, "fettle", healthy)
    app = comes(argo, "models", healthy, 2 * WAIT)
    assert app["status"]["operationState"]["phase"] == "Succeeded"
    comes(argo, "fettle-root", healthy)
    model, deployment = team.get("om", NAME), team.get("mdep", NAME)
    assert model is not None and deployment is not None
    assert condition(model, "Ready")["lastTransitionTime"] <= deployment["metadata"]["creationTimestamp"]
    assert health_of(argo, "OptimizedModel")["status"] == health_of(argo, "ModelDeployment")["status"] == "Healthy"
    operator = argo.app("fettle")["metadata"]["creationTimestamp"]
    assert operator <= app["metadata"]["creationTimestamp"]


def merge_customizations(argo: ArgoCD) -> None:
    """As the guide says."""
    asked = ("--set", "argocd.customizations=true", "--show-only", "templates/argocd.yaml")
    rendered = helm("template", "fettle", str(CHART), "--namespace", "default", *asked)
    printed = ("create", "--dry-run=client", "--filename", "-", "--output", "jsonpath={.data}")
    data = Kube(argo.kube.target, "default").kubectl(*printed, stdin=rendered)
    argo.kube.kubectl("patch", "configmap", "argocd-cm", "--type", "merge", "--patch", f'{{"data": {data}}}')


def test_without_waves_a_commit_is_synced_at_once(argo: ArgoCD, repository: Repository) -> None:
    """The rest of the story: with waves a sync lasts as long as a run, and no other commit is applied before it is over."""
    for path in (MODEL, DEPLOYMENT):
        repository.edit(path, lambda obj: obj["metadata"].pop("annotations"))
    follow(argo, repository, "models", "no waves")
    comes(argo, "models", healthy)


def test_there_is_no_ignore_rule_anywhere(argo: ArgoCD, repository: Repository) -> None:
    texts = [file.read_text() for file in (repository.folder / GITOPS).rglob("*.yaml")]
    settings = argo.kube.kubectl("get", "configmap", "argocd-cm", "-o", "yaml")
    assert not any("ignoreDifferences" in text or "ignoreUpdates" in text for text in [*texts, settings])


def test_what_an_autoscaler_sets_is_no_difference_and_stays(argo: ArgoCD, team: Kube) -> None:
    team.kubectl("scale", "mdep", NAME, "--replicas=2")
    watch.serving(team, NAME, WAIT, print)
    argo.cli("app", "get", "models", "--hard-refresh")
    comes(argo, "models", healthy)
    assert argo.cli("app", "diff", "models") == ""
    assert (team.get("mdep", NAME) or {})["spec"]["replicas"] == 2


def test_a_commit_that_changes_the_model_is_followed_to_the_end(
    argo: ArgoCD, team: Kube, repository: Repository, load: Load
) -> None:
    before = (team.get("mdep", NAME) or {})["status"]["stable"]["revision"]
    better = "pvc://models/digits/better/model.onnx"
    repository.edit(MODEL, lambda model: model["spec"]["source"].update(uri=better))
    follow(argo, repository, "models", "a better model")
    seen: list[tuple[str, str]] = []

    def promoted(app: Any) -> bool:
        now = (
            health_of(argo, "OptimizedModel").get("status", ""),
            health_of(argo, "ModelDeployment").get("status", ""),
        )
        if not seen or seen[-1] != now:
            seen.append(now)
        revision = (team.get("mdep", NAME) or {})["status"]["stable"]["revision"]
        return revision != before and healthy(app)

    comes(argo, "models", promoted, 2 * WAIT)
    assert ("Progressing", "Healthy") in seen, "while the model is optimized, what serves it is as before"
    assert any(pair == ("Healthy", "Progressing") for pair in seen), f"the rollout was not followed: {seen}"
    assert not any("Degraded" in pair for pair in seen)
    assert argo.cli("app", "diff", "models") == ""


def test_a_commit_of_a_model_that_is_not_there_is_degraded_with_the_reason_and_what_serves_goes_on(
    argo: ArgoCD, team: Kube, repository: Repository
) -> None:
    serving = pods(team)
    missing = "pvc://models/digits/none/model.onnx"
    repository.edit(MODEL, lambda model: model["spec"]["source"].update(uri=missing))
    repository.commit("a model that is not there")
    app = comes(argo, "models", lambda found: state(found)[1] == "Degraded", look=True)
    assert state(app)[0] == "Synced"
    told = health_of(argo, "OptimizedModel")
    assert told["status"] == "Degraded" and told["message"].startswith("SourceNotFound: "), told
    assert health_of(argo, "ModelDeployment")["status"] == "Healthy"
    assert (team.get("om", NAME) or {})["spec"]["source"]["uri"] == missing, "git is the truth"
    repository.revert()
    at_head(argo, repository, "models")
    comes(argo, "models", healthy)
    assert pods(team) == serving, "neither the commit nor its revert restarted a serving pod"


def test_a_commit_of_an_artifact_at_an_address_of_another_one_is_rolled_back_with_the_reason(
    argo: ArgoCD, team: Kube, repository: Repository
) -> None:
    published = (team.get("om", NAME) or {})["status"]["artifacts"][0]["uri"]
    fixed = {"uri": published, "sha256": "0" * 64, "runtime": "onnxruntime"}
    before = (team.get("mdep", NAME) or {})["status"]["stable"]["revision"]
    repository.edit(DEPLOYMENT, lambda deployment: deployment["spec"].update(model=fixed))
    repository.commit("an artifact with another digest")
    app = comes(argo, "models", lambda found: state(found)[1] == "Degraded", look=True)
    assert state(app)[0] == "Synced"
    told = health_of(argo, "ModelDeployment")
    assert told["message"].startswith("ArtifactNotFound: revision "), told
    found = team.get("mdep", NAME) or {}
    assert found["status"]["stable"]["revision"] == before
    assert found["spec"]["model"] == fixed, "git is the truth: the operator writes no spec"
    repository.revert()
    at_head(argo, repository, "models")
    comes(argo, "models", healthy)
    assert (team.get("mdep", NAME) or {})["status"]["stable"]["revision"] == before


def test_drift_is_healed(argo: ArgoCD, team: Kube) -> None:
    team.patch("mdep", NAME, {"spec": {"rollout": {"progressDeadlineSeconds": 5000}}})

    def healed(app: Any) -> bool:
        found = team.get("mdep", NAME) or {}
        return healthy(app) and found["spec"]["rollout"]["progressDeadlineSeconds"] == 600

    comes(argo, "models", healed)


def test_an_action_of_argo_cd_is_followed_and_is_no_drift(argo: ArgoCD, team: Kube) -> None:
    def run(action: str) -> None:
        argo.cli("app", "actions", "run", "models", action, "--kind", "ModelDeployment", "--resource-name", NAME)

    listed = argo.cli("app", "actions", "list", "models", "--kind", "ModelDeployment", "--resource-name", NAME)
    assert all(name in listed for name in ("promote", "abort", "rollback-to", "pause", "resume"))
    run("pause")
    comes(argo, "models", lambda app: state(app) == ("Synced", "Suspended"))
    assert health_of(argo, "ModelDeployment")["message"].startswith("PausedByUser")
    argo.cli("app", "get", "models", "--hard-refresh")
    assert (team.get("mdep", NAME) or {})["metadata"]["annotations"]["fettle.dev/paused"] == "true"
    run("resume")
    comes(argo, "models", healthy)


def test_an_upgrade_of_the_operator_by_a_commit_restarts_no_serving_pod_and_loses_no_request(
    argo: ArgoCD, team: Kube, repository: Repository, load: Load
) -> None:
    serving, system = pods(team), Kube(argo.kube.target, "fettle-system")
    listed = ("get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "jsonpath={.items[*].metadata.uid}")
    operators = set(system.kubectl(*listed).split())

    def upgrade(app: Any) -> None:
        values = app["spec"]["source"]["helm"]["valuesObject"]
        values["operator"] = {"podAnnotations": {"example.com/upgrade": "1"}}
        values["serving"] = {"drainSeconds": 12}

    repository.edit(APPS / "fettle.yaml", upgrade)
    repository.commit("an upgrade of the operator")
    argo.refresh("fettle-root")
    comes(argo, "fettle", lambda app: healthy(app) and not operators & set(system.kubectl(*listed).split()))
    comes(argo, "models", healthy)
    assert pods(team) == serving
    totals = load.stop()
    assert totals["sent"] > 100
    assert foreign_failures(totals, set()) == 0


def test_what_leaves_git_is_pruned_with_its_children_and_nothing_else_is(
    argo: ArgoCD, team: Kube, repository: Repository
) -> None:
    (repository.folder / DEPLOYMENT).unlink()
    repository.commit("no serving any more")
    at_head(argo, repository, "models")
    owned = ("get", "pods,deployments,services,controllerrevisions", "-l", f"fettle.dev/modeldeployment={NAME}")
    for _ in watch.polls(WAIT):
        left = team.kubectl(*owned, "-o", "name")
        if team.get("mdep", NAME) is None and not left:
            break
    else:
        raise AssertionError(f"left: {left}")
    assert comes(argo, "models", healthy)["status"]["resources"][0]["kind"] == "OptimizedModel"
    assert {"models", "fettle-store"} <= set(
        team.kubectl("get", "pvc", "-o", "jsonpath={.items[*].metadata.name}").split()
    )


def test_the_operator_can_be_removed_and_its_kinds_and_their_objects_stay(
    argo: ArgoCD, team: Kube, repository: Repository
) -> None:
    argo.cli("app", "set", "fettle-root", "--sync-policy", "none")
    argo.cli("app", "delete", "fettle", "--cascade", "--yes", "--wait")
    assert team.get("om", NAME) is not None
    left = Kube(argo.kube.target, "fettle-system").kubectl("get", "deployments", "-o", "name")
    assert left == ""


# ----------------------------------------------------------------------------- the scripts, as Argo CD itself reads and runs them


@pytest.mark.parametrize("kind", ["OptimizedModel", "ModelDeployment"])
def test_argo_cds_own_engine_agrees_with_the_files_for_upstream(argo: ArgoCD, kind: str) -> None:
    folder = CUSTOMIZATIONS / "fettle.dev" / kind
    settings = argo.folder / "argocd-cm.yaml"
    settings.write_text(argo.kube.kubectl("get", "configmap", "argocd-cm", "-o", "yaml"))
    command = ("admin", "settings", "resource-overrides")
    given = ("--argocd-cm-path", str(settings))
    for case in yaml.safe_load((folder / "health_test.yaml").read_text())["tests"]:
        told = argo.run(*command, "health", str(folder / case["inputPath"]), *given)
        assert f"STATUS: {case['healthStatus']['status']}" in told
        assert f"MESSAGE: {case['healthStatus']['message']}" in told
    tests = yaml.safe_load((folder / "actions" / "action_test.yaml").read_text())
    for case in tests["discoveryTests"]:
        told = argo.run(*command, "list-actions", str(folder / "actions" / case["inputPath"]), *given)
        rows = dict(line.split()[:2] for line in told.splitlines())
        assert rows.pop("NAME") == "DISABLED"
        assert rows == {each["name"]: str(each["disabled"]).lower() for each in case["result"]}
    for case in tests["actionTests"]:
        parameters = [f"--param={name}={value}" for name, value in case.get("parameters", {}).items()]
        run = ("run-action", str(folder / "actions" / case["inputPath"]), case["action"], *parameters)
        if "expectedErrorMessage" in case:
            with pytest.raises(DemoError, match=re.escape(case["expectedErrorMessage"])):
                argo.run(*command, *run, *given)
            continue
        told = argo.run(*command, *run, *given)
        before, after = (yaml.safe_load((folder / "actions" / case[key]).read_text()) for key in PATHS)
        changed = annotations(before) ^ annotations(after)
        assert {line[1:].strip() for line in told.splitlines() if re.match(r"^[<>] ", line)} - {"annotations:"} == {
            f"{name}: {value}" for name, value in changed
        }


PATHS = ("inputPath", "expectedOutputPath")


def annotations(obj: Any) -> set[tuple[str, str]]:
    """As a diff of YAML shows them."""
    found = obj["metadata"].get("annotations") or {}
    return {(name, '"true"' if value == "true" else value) for name, value in found.items()}
