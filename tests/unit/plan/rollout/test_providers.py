"""What every traffic provider promises, the registered ones and the toys: traffic goes only where pods can take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.plan.rollout.toys import weighted
from tests.unit.plan.rollout.world import at_weight

from fettle.api.modeldeployment import TrafficProvider
from fettle.api.reasons import Reason
from fettle.errors import FettleError
from fettle.plan.rollout import providers
from fettle.plan.rollout.providers.base import Allocation, Demand, Leaving, Provider
from fettle.plan.rollout.state import Routes, Workload

Make = Callable[..., Any]
WITHOUT_ROUTES = {str(name): provider for name, provider in providers.PROVIDERS.items()}
WITH_ROUTES: dict[str, Provider] = {"split by percent": weighted.provider, "all or nothing": weighted.switch}


def each(table: Mapping[str, Provider]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("provider", table.values(), ids=table.keys())


@st.composite
def workloads(draw: st.DrawFn, revision: str) -> Workload:
    replicas = draw(st.integers(0, 6))
    ready = draw(st.integers(0, replicas))
    return Workload(revision, replicas=replicas, ready=ready, available=draw(st.integers(0, ready)), pods=replicas)


@st.composite
def routes(draw: st.DrawFn, revisions: tuple[str, ...]) -> Routes:
    """Percents that sum to 100, or none at all."""
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=len(revisions) - 1, max_size=len(revisions) - 1)))
    shares = [high - low for low, high in zip([0, *cuts], [*cuts, 100], strict=True)]
    weights = {revision: share for revision, share in zip(revisions, shares, strict=True) if share}
    return Routes(weights if draw(st.booleans()) else {}, settled=draw(st.booleans()))


@st.composite
def demands(draw: st.DrawFn, routed: bool) -> Demand:
    """Stable `a`, perhaps a canary `b`, `c` that leaves without fault and `d` that failed."""
    weight = draw(st.integers(0, 100))
    return Demand(
        replicas=draw(st.integers(0, 6)),
        stable=draw(workloads("a")),
        canary=draw(st.one_of(st.none(), workloads("b"))),
        weight=weight,
        in_force=draw(st.integers(0, min(weight, 99))),
        keep_stable=draw(st.booleans()),
        frozen=draw(st.booleans()),
        leaving=(Leaving(draw(workloads("c")), failed=False), Leaving(draw(workloads("d")), failed=True)),
        routes=draw(routes(("a", "b", "c", "d"))) if routed else None,
    )


@dataclass(frozen=True)
class Sides:
    """A demand and its answer, as traffic by revision."""

    demand: Demand
    allocation: Allocation

    @property
    def workloads(self) -> dict[str, Workload]:
        everybody = (*self.demand.staying, *(one.workload for one in self.demand.leaving))
        return {workload.revision: workload for workload in everybody}

    @property
    def ready(self) -> set[str]:
        return {revision for revision, workload in self.workloads.items() if workload.ready}

    def now(self, revision: str) -> int:
        return self.demand.routes.weights.get(revision, 0) if self.demand.routes is not None else 0

    def next(self, revision: str) -> int:
        return self.allocation.routes.get(revision, 0)


def hold(sides: Sides) -> None:
    """The promises, one after the other."""
    demand, allocation = sides.demand, sides.allocation
    assert allocation.replicas.keys() == sides.workloads.keys()
    assert all(count >= 0 for count in allocation.replicas.values())
    kept = {revision: min(sides.workloads[revision].ready, count) for revision, count in allocation.replicas.items()}
    good = sum(workload.ready for revision, workload in sides.workloads.items() if revision != "d")
    assert sum(kept.values()) >= min(demand.replicas, good), "ready pods were taken away that nobody stands in for"
    if not allocation.routes:
        assert demand.routes is None or not sides.ready
        return
    assert sum(allocation.routes.values()) == 100 and min(allocation.routes.values()) > 0
    assert not sides.ready or allocation.routes.keys() <= sides.ready, "traffic for a revision without a ready pod"
    if "a" in sides.ready:
        assert not sides.next("d"), "traffic for a revision that failed"
        weight = demand.in_force if demand.frozen else demand.weight
        assert sides.next("b") <= max(weight, sides.now("b")), "more than was asked for"
    for revision in sides.ready if demand.replicas else ():
        assert not sides.now(revision) or allocation.replicas[revision], "no pod for traffic that still comes"
    stands_in(sides)


def stands_in(sides: Sides) -> None:
    """Nobody who serves well gives traffic up before the other side has the pods for it."""
    givers = {revision for revision in sides.workloads if sides.next(revision) < sides.now(revision)}
    if not givers or not givers <= sides.ready - {"d"}:
        return
    for revision in sides.allocation.routes:
        if sides.next(revision) > sides.now(revision):
            enough = sides.workloads[revision].steady * 100 >= sides.next(revision) * sides.demand.replicas
            assert enough, f"{revision} has too few pods for its traffic"


@each(WITHOUT_ROUTES)
@given(demand=demands(routed=False))
@settings(max_examples=500)
def test_whatever_is_observed_pods_stand_in_for_each_other(provider: Provider, demand: Demand) -> None:
    allocation = provider.allocate(demand)
    assert not allocation.routes
    hold(Sides(demand, allocation))


@each(WITH_ROUTES)
@given(demand=demands(routed=True))
@settings(max_examples=1000)
def test_whatever_is_observed_traffic_goes_where_pods_can_take_it(provider: Provider, demand: Demand) -> None:
    hold(Sides(demand, provider.allocate(demand)))


@each({**WITHOUT_ROUTES, **WITH_ROUTES})
@given(weight=st.integers(1, 100), replicas=st.integers(1, 6))
def test_no_weight_is_reached_without_an_available_pod(provider: Provider, weight: int, replicas: int) -> None:
    canary = Workload("b", replicas=replicas, ready=replicas, available=0, pods=replicas)
    stable = Workload("a", replicas=replicas, ready=replicas, available=replicas, pods=replicas)
    observed = Routes({"b": 100}, settled=True)
    pending = provider.pending(Demand(replicas, stable, canary, weight, routes=observed))
    assert pending is not None and "0 of" in pending


# ------------------------------------------------------------------------------------------ through the whole decision


@pytest.fixture
def routed(world: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a world whose traffic a toy routes."""

    def make(provider: Provider = weighted.provider, **more: Any) -> Any:
        monkeypatch.setitem(providers.PROVIDERS, TrafficProvider.REPLICAS, provider)  # type: ignore[arg-type]
        return world(routed=True, **more)

    return make


def now(w: Any) -> dict[str, int]:
    return dict(w.routes[-1][1])


def test_every_weight_is_routed_after_its_pods_and_reached_when_the_route_is_in_force(routed: Make) -> None:
    w = routed()
    w.ask("b")
    w.until(lambda w: now(w) == {"a": 66, "b": 34})
    assert (w.ready("b"), w.status.canary.weight, w.status.canary.actual_weight) == (2, 0, 0)
    w.until(at_weight(34))
    assert w.status.canary.actual_weight == 34
    assert w.now - w.routes[-1][0] >= w.propagation
    w.until(lambda w: w.stable == "b").run(10)
    assert [weights for _, weights in w.routes] == [{"a": 100}, {"a": 66, "b": 34}, {"a": 33, "b": 67}, {"b": 100}]
    assert w.replicas == {"b": 3}


def test_the_pods_that_are_replaced_go_only_when_no_traffic_can_come_to_them(routed: Make) -> None:
    w = routed()
    w.propagation *= 10
    w.ask("b")
    w.until(lambda w: now(w) == {"b": 100}, 600)
    asked = w.now
    w.until(lambda w: w.stable == "b")
    assert w.replicas["a"] == 3 or w.now - asked >= w.propagation
    w.until(lambda w: "a" not in w.replicas or not w.replicas["a"])
    assert w.now - asked >= w.propagation


def test_a_canary_that_fails_gets_nothing_in_the_very_decision_that_says_so(routed: Make, analysis: Any) -> None:
    w = routed(analysis=analysis)
    w.behaves("b", error_rate=1.0)
    w.ask("b")
    failing: list[Mapping[str, int]] = []

    def watch(_: Any, snapshot: Any, decision: Any) -> None:
        if decision.status.failed_revision == "b":
            failing.append(decision.routes)

    w.watchers.append(watch)
    w.until(lambda w: w.status.failed_revision == "b")
    assert failing[0] == {"a": 100}
    assert w.replicas["b"] > 0  # for what still comes by the old route
    w.run(10)
    assert w.replicas == {"a": 3}


def test_the_canary_is_judged_on_the_traffic_that_is_routed_to_it(routed: Make, analysis: Any) -> None:
    w = routed(analysis=analysis, steps=[{"weight": 10}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.until(at_weight(10)).run(20)
    window = w.status.canary.analysis.windows[-1]
    seconds = 5 if window.requests == 30 else 10
    assert window.requests == 6 * seconds  # a tenth of 3 pods' 20 requests a second


def test_traffic_is_moved_on_live_state_only(routed: Make) -> None:
    w = routed()
    moved: list[bool] = []

    def watch(_: Any, snapshot: Any, decision: Any) -> None:
        if decision.routes != snapshot.routes.weights:
            moved.append(decision.takes_away(snapshot))

    w.watchers.append(watch)
    w.ask("b")
    w.until(lambda w: w.stable == "b")
    assert moved == [True] * 3


def test_a_canary_of_weight_0_is_there_and_gets_no_traffic(routed: Make, analysis: Any) -> None:
    w = routed(analysis=analysis, steps=[{"weight": 0}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.until(lambda w: w.condition("Paused") == ("True", Reason.WAITING_FOR_PROMOTE)).run(30)
    assert (now(w), w.replicas) == ({"a": 100}, {"a": 3, "b": 1})
    assert next(entry for entry in w.ledger if entry.revision == "b").entered is None
    w.order("promote", "b", "1")
    w.until(lambda w: w.stable == "b")


def test_where_nothing_is_split_the_canary_is_whole_before_it_gets_everything(routed: Make) -> None:
    w = routed(weighted.switch)
    w.ask("b")
    w.until(lambda w: w.stable == "b").run(10)
    assert [weights for _, weights in w.routes] == [{"a": 100}, {"b": 100}]
    assert w.replicas == {"b": 3}


def test_a_route_that_is_never_taken_over_fails_the_canary_at_the_deadline(routed: Make) -> None:
    w = routed(progressDeadlineSeconds=30)
    w.propagation *= 1000
    w.routes = [(w.now - w.propagation, {"a": 100})]
    w.ask("b")
    w.until(lambda w: w.status.failed_revision == "b")
    assert "the route is not in force everywhere" in w.message("Degraded")
    assert now(w) == {"a": 100}


def test_pods_to_which_nothing_is_routed_are_not_ready_to_serve(routed: Make) -> None:
    w = routed(served=False)
    w.until(lambda w: w.ready("a") == 3)
    assert w.condition("Ready") == ("False", Reason.DEPLOYING)
    assert w.condition("Progressing") == ("True", Reason.DEPLOYING)
    w.routes = [(w.now, {"a": 40, "x": 60})]
    w.reconcile()
    assert "40 % of the traffic is routed to ready pods" in w.message("Ready")
    w.until(lambda w: w.condition("Ready")[0] == "True")
    assert now(w) == {"a": 100}


def test_a_first_revision_that_nothing_is_routed_to_is_degraded_after_the_deadline(
    routed: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = routed(served=False, progressDeadlineSeconds=30)
    monkeypatch.setattr(w, "_route", lambda weights: iter(()))  # whoever carries the traffic knows of no route
    w.until(lambda w: w.condition("Degraded")[0] == "True")
    assert w.condition("Degraded") == ("True", Reason.PROGRESS_DEADLINE_EXCEEDED)
    assert w.message("Degraded") == "0 % of the traffic is routed to ready pods after 30 s"


# ---------------------------------------------------------------------------------------------------- broken promises


@dataclass(frozen=True)
class Broken:
    """A provider that answers always the same, for `a` that serves and `b` that is on trial."""

    allocation: Allocation

    def allocate(self, demand: Demand) -> Allocation:
        return self.allocation

    def pending(self, demand: Demand) -> str | None:
        return None

    def actual_weight(self, revision: str, workloads: Mapping[str, Workload], routes: Routes | None) -> int:
        return 0


@pytest.mark.parametrize(
    ("replicas", "weights", "told"),
    [
        ({"a": 3}, {}, "expected pods for"),
        ({"a": 3, "b": -1}, {}, "a negative number of pods"),
        ({"a": 0, "b": 1}, {"a": 100}, "no pods are left for a"),
        ({"a": 3, "b": 1}, {"a": 66, "b": 33}, "sum to 100"),
        ({"a": 3, "b": 1}, {"a": 101, "b": -1}, "percentages above 0"),
        ({"a": 3, "b": 1}, {"a": 90, "x": 10}, "only"),
        ({"a": 3, "b": 1}, {"a": 66, "b": 34}, "without a ready pod"),
    ],
)
def test_a_provider_that_breaks_its_promise_is_named_and_nothing_is_changed(
    routed: Make, monkeypatch: pytest.MonkeyPatch, replicas: dict[str, int], weights: dict[str, int], told: str
) -> None:
    w = routed()
    w.ask("b")
    w.until(lambda w: w.replicas.get("b"))
    written = w.writes
    broken = Broken(Allocation(replicas, weights))
    monkeypatch.setitem(providers.PROVIDERS, TrafficProvider.REPLICAS, broken)  # type: ignore[arg-type]
    with pytest.raises(FettleError, match=f"Replicas violated its contract: .*{told}"):
        w.reconcile()
    assert w.writes == written


def test_more_than_was_asked_for_is_a_broken_promise(routed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    w = routed(steps=[{"weight": 10}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.until(at_weight(10))
    broken = Broken(Allocation({"a": 3, "b": 1}, {"a": 50, "b": 50}))
    monkeypatch.setitem(providers.PROVIDERS, TrafficProvider.REPLICAS, broken)  # type: ignore[arg-type]
    with pytest.raises(FettleError, match="50 % of the traffic, expected at most 10 %"):
        w.reconcile()


def test_every_provider_of_the_api_is_registered() -> None:
    assert providers.PROVIDERS.keys() == set(TrafficProvider)
