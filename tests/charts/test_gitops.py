"""Argo CD and Flux see how an object stands, for every condition and reason that the operator writes, and its commands can be given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.charts.helm import only, render
from tests.charts.rules import CUSTOMIZATIONS, Object, RuleError, actions, after, health, kstatus
from tests.unit.plan.optimize.world import World as ModelWorld
from tests.unit.plan.rollout import test_settling as situations
from tests.unit.plan.rollout.conftest import world  # noqa: F401  the fixture that makes worlds

from fettle.api.base import API_VERSION
from fettle.api.conditions import READY, Condition, ConditionStatus
from fettle.api.optimizedmodel_status import CandidateStatus, OptimizedModelStatus
from fettle.api.reasons import Reason
from fettle.api.vocabulary import CandidateState, RuntimeName
from fettle.plan.commands import PAUSED_ANNOTATION, Command
from fettle.plan.run.retry import subject_of
from fettle.plan.run.status import IN_PROGRESS, settling

ARGO_CD = {"settled": "Healthy", "Reconciling": "Progressing", "Stalled": "Degraded"}
KSTATUS = {"settled": "Current", "Reconciling": "InProgress", "Stalled": "Failed"}
# Rollouts that wait for a person.
SUSPENDED = {
    situations.waiting_for_promote,
    situations.paused_on_its_way,
    situations.paused_before_a_rollout,
    situations.paused_with_nothing_to_do,
    situations.inconclusive,
    situations.unreachable,
}


def kinds() -> list[Path]:
    return sorted((CUSTOMIZATIONS / "fettle.dev").iterdir())


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def cases(file: str, key: str) -> list[Any]:
    """The cases of upstream's test files, each with the folder that its paths start from."""
    return [
        pytest.param((kind / file).parent, case, id=f"{kind.name}-{Path(case['inputPath']).stem}-{number}")
        for kind in kinds()
        for number, case in enumerate(read(kind / file)[key])
    ]


def obj(kind: str, status: Any, **metadata: Any) -> Object:
    """An object whose status speaks of its generation."""
    found = {"name": "digits", "namespace": "team", "resourceVersion": "1", "generation": 1, **metadata}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": found, "spec": {}, "status": status}


# --------------------------------------------------------------------------------------------------- the files for upstream


@pytest.mark.parametrize(("folder", "case"), cases("health_test.yaml", "tests"))
def test_health(folder: Path, case: Any) -> None:
    state, message = health(read(folder / case["inputPath"]))
    assert {"status": state, "message": message} == case["healthStatus"]


@pytest.mark.parametrize(("folder", "case"), cases("actions/action_test.yaml", "discoveryTests"))
def test_the_actions_that_are_offered(folder: Path, case: Any) -> None:
    found = [{"name": name, **action} for name, action in actions(read(folder / case["inputPath"])).items()]
    assert sorted(found, key=lambda each: each["name"]) == sorted(case["result"], key=lambda each: each["name"])


@pytest.mark.parametrize(("folder", "case"), cases("actions/action_test.yaml", "actionTests"))
def test_what_an_action_does(folder: Path, case: Any) -> None:
    before = read(folder / case["inputPath"])
    complaint = case.get("expectedErrorMessage")
    if complaint is not None:
        with pytest.raises(RuleError) as told:
            after(before, case["action"], case.get("parameters"))
        assert str(told.value) == complaint
        return
    assert after(before, case["action"], case.get("parameters")) == read(folder / case["expectedOutputPath"])


def test_every_action_is_tested_and_every_object_of_the_tests_is_used() -> None:
    for kind in kinds():
        tests = read(kind / "actions" / "action_test.yaml")
        assert {case["action"] for case in tests["actionTests"]} == {
            path.parent.name for path in kind.glob("actions/*/action.lua")
        }
        used = {
            (kind / place / case[key]).resolve()
            for place, listed in (
                ("", read(kind / "health_test.yaml")["tests"]),
                ("actions", [*tests["discoveryTests"], *tests["actionTests"]]),
            )
            for case in listed
            for key in ("inputPath", "expectedOutputPath")
            if key in case
        }
        assert used == set(kind.rglob("testdata/*.yaml"))


# --------------------------------------------------------------------------------------------- whatever the operator writes


@pytest.mark.parametrize("reason", Reason)
def test_an_optimizedmodel_with_any_reason_is_told_by_argo_cd_and_kstatus(reason: Reason) -> None:
    ready = Condition(
        type=READY,
        status=ConditionStatus.TRUE if reason is Reason.PUBLISHED else ConditionStatus.FALSE,
        reason=reason,
        message="why",
    )
    two = [
        Condition(type=draft.kind, status=ConditionStatus.TRUE if draft.holds else ConditionStatus.FALSE, reason=reason)
        for draft in settling(reason, "why")
    ]
    status = OptimizedModelStatus(observed_generation=1, conditions=(ready, *two)).to_json()
    stands = "settled" if reason is Reason.PUBLISHED else "Reconciling" if reason in IN_PROGRESS else "Stalled"
    found = obj("OptimizedModel", status)
    assert (health(found)[0], kstatus(found)) == (ARGO_CD[stands], KSTATUS[stands])
    assert health(found)[1].startswith(reason)


SITUATIONS = next(
    mark.args[1]
    for mark in situations.test_a_modeldeployment_says_how_it_stands.pytestmark  # type: ignore[attr-defined]
    if mark.name == "parametrize"
)


@pytest.mark.parametrize(("situation", "expected"), SITUATIONS, ids=lambda each: getattr(each, "__name__", ""))
def test_a_modeldeployment_in_any_situation_is_told_by_argo_cd_and_kstatus(
    world: Any,  # noqa: F811
    situation: Callable[[Any], Any],
    expected: tuple[str, Reason],
) -> None:
    w = situation(world)
    found = obj("ModelDeployment", w.status.to_json(), generation=w.generation)
    wanted = "Suspended" if situation in SUSPENDED else ARGO_CD[expected[0]]
    assert (health(found)[0], kstatus(found)) == (wanted, KSTATUS[expected[0]])


def test_every_reason_of_a_rollout_occurs_in_these_situations() -> None:
    """Those of the analysis and of pauses; a fault of a pod is handled alike whatever its reason."""
    rollout = {Reason.DEPLOYING, Reason.SERVING, Reason.CANARY_RUNNING, Reason.WAITING_FOR_PROMOTE, Reason.PROMOTING}
    faults = {Reason.ANALYSIS_FAILED, Reason.ANALYSIS_INCONCLUSIVE, Reason.ANALYSIS_UNREACHABLE, Reason.ABORTED}
    waiting = {Reason.PAUSED_BY_USER, Reason.MODEL_NOT_READY, Reason.INVALID_SPEC, Reason.MODEL_LOAD_FAILED}
    assert rollout | faults | waiting <= {expected[1] for _, expected in SITUATIONS}


@pytest.mark.parametrize("kind", ["OptimizedModel", "ModelDeployment"])
def test_an_object_that_the_operator_has_not_seen_is_on_its_way(kind: str) -> None:
    """The API server's default: without it kstatus takes an object without conditions for one that is as it should be."""
    crds = {crd["spec"]["names"]["kind"]: crd for crd in render() if crd["kind"] == "CustomResourceDefinition"}
    (version,) = crds[kind]["spec"]["versions"]
    found = obj(kind, version["schema"]["openAPIV3Schema"]["properties"]["status"]["default"])
    assert (health(found)[0], kstatus(found)) == ("Progressing", "InProgress")


def test_a_rollback_in_force_is_told_by_argo_cd(world: Any) -> None:  # noqa: F811
    w = situations.rolled_back(world)
    state, message = health(obj("ModelDeployment", w.status.to_json(), generation=w.generation))
    assert (state, message.startswith("RolledBack: rolled back from revision b to a by rollback-to")) == (
        "Healthy",
        True,
    ), message


def test_a_spec_that_the_operator_has_not_seen_is_on_its_way(world: Any) -> None:  # noqa: F811
    w = situations.serving(world)
    found = obj("ModelDeployment", w.status.to_json(), generation=w.generation + 1)
    assert (health(found)[0], kstatus(found)) == ("Progressing", "InProgress")


# ------------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("failed", [False, True])
def test_a_retry_is_offered_where_the_command_line_takes_one(reason: Reason, failed: bool) -> None:
    row = CandidateStatus(
        name="int8", target="cpu", runtime=RuntimeName.OPENVINO, recipe="int8", state=CandidateState.FAILED
    )
    condition = Condition(type=READY, status=ConditionStatus.FALSE, reason=reason)
    status = OptimizedModelStatus(conditions=(condition,), candidates=(row,) if failed else ())
    offered = not actions(obj("OptimizedModel", status.to_json()))["retry"]["disabled"]
    assert offered == (subject_of(status) is not None)


ORDERS: list[tuple[Callable[[Any], Any], str, str | None, Callable[[Any], bool]]] = [
    (situations.waiting_for_promote, "promote", None, lambda w: w.stable == "b"),
    (situations.canary, "promote-full", None, lambda w: w.stable == "b"),
    (situations.canary, "abort", None, lambda w: w.status.failed_revision == "b"),
    (situations.aborted, "retry", None, lambda w: w.canary == "b"),
    (situations.canary, "pause", None, lambda w: w.condition("Paused") == ("True", Reason.PAUSED_BY_USER)),
    (situations.paused_on_its_way, "resume", None, lambda w: w.stable == "b"),
    (situations.promoted, "rollback-to", "a", lambda w: w.stable == "a"),
    (situations.promoted, "rollback-to", None, lambda w: w.stable == "a"),
]


@pytest.mark.parametrize(
    ("situation", "action", "revision", "done"), ORDERS, ids=[f"{each[1]}-{each[2]}" for each in ORDERS]
)
def test_the_operator_follows_what_an_action_writes(
    world: Any,  # noqa: F811
    situation: Callable[[Any], Any],
    action: str,
    revision: str | None,
    done: Callable[[Any], bool],
) -> None:
    w = situation(world)
    found = obj("ModelDeployment", w.status.to_json(), generation=w.generation, annotations=dict(w.annotations))
    assert not actions(found)[action]["disabled"]
    changed = after(found, action, {"revision": revision} if revision else None)
    assert {**changed, "metadata": {**changed["metadata"], "annotations": {}}} == {
        **found,
        "metadata": {**found["metadata"], "annotations": {}},
    }
    w.annotations = dict(changed["metadata"]["annotations"])
    w.until(done)


def test_there_is_an_action_for_every_command() -> None:
    found = actions(obj("ModelDeployment", {}))
    assert set(found) == {command.value for command in Command} | {"pause", "resume"}
    assert PAUSED_ANNOTATION == "fettle.dev/paused"


# ------------------------------------------------------------------------------------------------------------ the chart


def test_the_chart_has_the_scripts_as_argo_cd_reads_them_where_they_are_asked_for() -> None:
    assert "ConfigMap" not in {found["kind"] for found in render()}
    data = only(render({"argocd": {"customizations": True}}), "ConfigMap")["data"]
    assert set(data) == {
        f"resource.customizations.{what}.fettle.dev_{kind.name}" for kind in kinds() for what in ("health", "actions")
    }
    for kind in kinds():
        assert data[f"resource.customizations.health.fettle.dev_{kind.name}"].strip() == stripped(kind / "health.lua")
        told = yaml.safe_load(data[f"resource.customizations.actions.fettle.dev_{kind.name}"])
        assert told["discovery.lua"].strip() == stripped(kind / "actions" / "discovery.lua")
        assert {each["name"]: each["action.lua"].strip() for each in told["definitions"]} == {
            path.parent.name: stripped(path) for path in kind.glob("actions/*/action.lua")
        }


def stripped(path: Path) -> str:
    return "\n".join(line.rstrip() for line in path.read_text(encoding="utf-8").strip().splitlines())


def test_what_an_optimizedmodel_published_is_healthy_in_the_end() -> None:
    run = ModelWorld()
    run.settle()
    found = obj("OptimizedModel", run.status.to_json())
    assert (health(found)[0], kstatus(found)) == ("Healthy", "Current")
