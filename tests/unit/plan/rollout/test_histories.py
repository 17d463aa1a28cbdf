"""Random histories of everything that happens to a rollout: nothing unsafe is ever decided, and when events stop it comes to rest.

A history is a list of (event, passes after it). Every pass is checked; an operator that is killed in the middle of its writes starts again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tests.unit.plan.rollout.toys import weighted

from fettle.api.modeldeployment import TrafficProvider
from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.reasons import Reason
from fettle.plan.rollout import providers
from fettle.plan.rollout.canary import asked_weight, steps_of
from fettle.plan.rollout.providers.base import Provider
from fettle.plan.rollout.revision import NotReady
from fettle.plan.rollout.state import MarkLeft, OpenEntry

SHARDS, HISTORIES = 8, 148
EVERY = int(os.environ.get("FETTLE_TEST_HISTORIES_EVERY", "4"))  # shard; 1: `make test-kills`
LEAST_EVENTS, MOST_EVENTS = 15, 70
LEAST_STEPS = 100_000  # events and passes, in all shards together
REVISIONS = "abcd"
FAULTS = {Reason.ABORTED, Reason.ANALYSIS_FAILED, Reason.PROGRESS_DEADLINE_EXCEEDED}
Make = Callable[..., Any]


@dataclass
class Watcher:
    """Checks every pass; `passes` counts them, `aborts` the tokens that were given, by revision; `given` all orders, as they are told."""

    passes: int = 0
    aborts: Counter[str] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)

    def __call__(self, w: Any, snapshot: Any, decision: Any) -> None:
        self.passes += 1
        self.counts_and_weights(w, snapshot, decision)
        self.capacity(w, snapshot, decision)
        self.who_is_stable(w, snapshot, decision)
        self.templates(snapshot, decision)
        aborted = Counter(entry.revision for entry in w.ledger if entry.reason is Reason.ABORTED)
        assert all(count <= self.aborts[revision] for revision, count in aborted.items()), "a token acted twice"

    @staticmethod
    def counts_and_weights(w: Any, snapshot: Any, decision: Any) -> None:
        total, before, canary = snapshot.spec.replicas, snapshot.status.canary, decision.status.canary
        assert all(0 <= count <= max(total, snapshot.workload(r).replicas) for r, count in decision.replicas.items())
        assert decision.requeue_seconds is None or decision.requeue_seconds > 0
        if canary is None:
            return
        assert 0 <= canary.weight <= 100 and 0 <= canary.actual_weight <= 100
        assert canary.revision != decision.stable
        raised = before is None or before.revision != canary.revision or canary.weight > before.weight
        assert not (raised and canary.weight) or w.ready(canary.revision), "a weight to a revision without a ready pod"
        pair = (decision.stable, canary.revision)
        wanted = sum(decision.replicas.get(one, 0) for one in pair)
        there = sum(snapshot.workload(one).replicas for one in pair)
        back = decision.replicas.get(canary.revision, 0) <= w.ready(canary.revision)  # they stand in for stable pods
        if asked_weight(steps_of(snapshot), canary.step) < 100 and not back:
            out = sum(snapshot.workload(one).out for one in pair)
            assert wanted <= max(total + 1 + out, there), "more than one pod beyond replicas"

    @staticmethod
    def capacity(w: Any, snapshot: Any, decision: Any) -> None:
        """maxUnavailable 0: a ready pod goes only where enough ready ones stay, but for a revision that failed."""
        ready = {revision: w.ready(revision) for revision in snapshot.workloads}
        kept = sum(left(snapshot.workload(revision), decision.replicas.get(revision)) for revision in ready)
        good = sum(count for revision, count in ready.items() if revision not in harmful(snapshot, decision))
        assert kept >= min(snapshot.spec.replicas, good), "ready pods were taken away that nobody stands in for"
        assert kept or not sum(ready.values()) or not snapshot.spec.replicas, "the last ready pod was taken away"

    @staticmethod
    def who_is_stable(w: Any, snapshot: Any, decision: Any) -> None:
        before, total = snapshot.stable_annotation, snapshot.spec.replicas
        if decision.stable == before or before not in snapshot.workloads or not total:
            return
        never_served = not w.ready(before) and w.replicas.get(before)
        assert w.ready(decision.stable) >= total or never_served, "promoted before it was at full size"

    @staticmethod
    def templates(snapshot: Any, decision: Any) -> None:
        """What has pods is never rendered anew."""
        for write in decision.ledger:
            if isinstance(write, OpenEntry) and not write.adopt:
                assert not snapshot.workload(write.revision).pods, "the template of running pods was rendered again"


class RouteWatcher(Watcher):
    """Checks every pass of a provider with routes as well. Stable keeps its full size, so pods are not bounded by replicas + 1."""

    def __call__(self, w: Any, snapshot: Any, decision: Any) -> None:
        super().__call__(w, snapshot, decision)
        self.who_gets_traffic(w, snapshot, decision)
        self.how_much(w, snapshot, decision)
        self.nobody_is_left_with_traffic_and_without_pods(w, snapshot, decision)

    @staticmethod
    def counts_and_weights(w: Any, snapshot: Any, decision: Any) -> None:
        canary, before = decision.status.canary, snapshot.status.canary
        assert all(count >= 0 for count in decision.replicas.values())
        if canary is None or not canary.weight:
            return
        raised = before is None or before.revision != canary.revision or canary.weight > before.weight
        observed = snapshot.routes
        assert not raised or observed.settled, "a weight was called reached before its route was in force"
        assert not raised or observed.weights.get(canary.revision, 0) in (canary.weight, 0)  # 0: where nothing is split

    @staticmethod
    def who_gets_traffic(w: Any, snapshot: Any, decision: Any) -> None:
        ready = {revision for revision in snapshot.workloads if w.ready(revision)}
        assert not ready or sum(decision.routes.values()) == 100
        assert not ready or decision.routes.keys() <= ready, "traffic for a revision without a ready pod"
        if w.ready(decision.stable):
            assert not decision.routes.keys() & harmful(snapshot, decision), "traffic for a revision that failed"

    @staticmethod
    def how_much(w: Any, snapshot: Any, decision: Any) -> None:
        """Never more than was asked for; and what still serves gives nothing up before the other side has the pods for it."""
        routes, observed, canary = decision.routes, snapshot.routes.weights, decision.status.canary
        raised = {revision for revision, percent in routes.items() if percent > observed.get(revision, 0)}
        if canary is not None and w.ready(decision.stable) and canary.revision in raised:
            assert routes[canary.revision] <= asked_weight(steps_of(snapshot), canary.step)
        givers = {revision for revision, percent in observed.items() if percent > routes.get(revision, 0)}
        if givers and all(w.ready(revision) for revision in givers) and not givers & harmful(snapshot, decision):
            for revision in raised:
                assert w.available(revision) * 100 >= routes[revision] * snapshot.spec.replicas, "too few pods for it"

    @staticmethod
    def nobody_is_left_with_traffic_and_without_pods(w: Any, snapshot: Any, decision: Any) -> None:
        """By the routes that are in force, not only by those that are written."""
        if not snapshot.spec.replicas or w.kill_after is not None:
            return
        for revision in {revision for weights in w.in_force() for revision in weights}:
            if w.ready(revision):
                assert decision.replicas.get(revision), "pods were taken away to which traffic still comes"


def harmful(snapshot: Any, decision: Any) -> set[str]:
    """Revisions that failed, in this pass or before, but for one that is tried again or that serves."""
    failed = {write.name for write in decision.ledger if isinstance(write, MarkLeft) and write.reason in FAULTS} | {
        entry.name for entry in snapshot.ledger if entry.left is not None and entry.reason in FAULTS
    }
    serving = {decision.stable, decision.status.canary.revision if decision.status.canary else None}
    return {entry.revision for entry in snapshot.ledger if entry.name in failed} - serving


def left(workload: Any, count: int | None) -> int:
    """Ready pods that stay when `count` are asked for, should those that are out of the traffic be the ones that stay."""
    if count is None or count >= workload.replicas:
        return int(workload.ready)
    return max(min(workload.ready, count - workload.out), 0)


def revisions_with(*names: str) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.sampled_from(names), st.sampled_from(REVISIONS))


STEPS = (
    [],
    [{"weight": 100}],
    [{"weight": 1}, {"weight": 50}, {"weight": 100}],
    [{"weight": 40}, {"pause": {}}, {"weight": 100}],
    [{"pause": {"seconds": 5}}, {"weight": 100}, {"pause": {"seconds": 5}}],
)
EVENTS = st.one_of(
    revisions_with("ask", "fail", "mend", "die", "lose", "unready", "stall", "hush", "starve", "take out"),
    revisions_with("restart", "crash", "kill for memory", "lose windows"),
    st.tuples(st.just("ask"), st.sampled_from(REVISIONS)),
    st.tuples(
        st.sampled_from(("promote", "promote-full", "abort", "retry")), st.sampled_from(REVISIONS), st.integers(0, 5)
    ),
    st.tuples(st.just("rollback-to"), st.sampled_from(REVISIONS), st.sampled_from(REVISIONS), st.integers(0, 5)),
    st.tuples(st.just("scale"), st.integers(0, 5)),
    st.tuples(st.sampled_from(("pause", "hold", "model is not ready")), st.booleans()),
    st.tuples(st.just("steps"), st.sampled_from(STEPS)),
    st.tuples(st.just("forget"), st.sampled_from(("status", "annotation"))),
    st.tuples(st.just("put back"), st.just(None)),
    st.tuples(st.just("kill"), st.integers(0, 4)),
    st.tuples(st.just("skew"), st.sampled_from((-3600, 3600, -5, 5, 0))),
)
HISTORY = st.lists(
    st.tuples(EVENTS, st.integers(1, 4), st.sampled_from((0.5, 1, 3, 7, 20))),
    min_size=LEAST_EVENTS,
    max_size=MOST_EVENTS,
)
POD_EVENTS: dict[str, Callable[[Any, str], None]] = {
    "ask": lambda w, r: w.ask(r),
    "fail": lambda w, r: w.behaves(r, error_rate=1.0),
    "mend": lambda w, r: w.behaves(r, error_rate=0.0, silent=False, start_seconds=4, requests=20),
    "stall": lambda w, r: w.behaves(r, start_seconds=None),
    "hush": lambda w, r: w.behaves(r, silent=True),
    "starve": lambda w, r: w.behaves(r, requests=0),
    "die": lambda w, r: w.lose_pod(r),
    "lose": lambda w, r: w.lose_pods(r),
    "unready": lambda w, r: w.unready(r, 6),
    "restart": lambda w, r: w.restart(r),
    "crash": lambda w, r: w.restart(r, crashed=True),
    "kill for memory": lambda w, r: w.restart(r, memory=True),
    "lose windows": lambda w, r: w.lose_windows(r),
    "take out": lambda w, r: w.take_out(r),
    "put back": lambda w, r: w.put_back(),
}


def happen(w: Any, watcher: Watcher, event: tuple[Any, ...]) -> None:
    """One event. Tokens are few, so that old ones come again."""
    name, value = event[0], event[1]
    if name in POD_EVENTS:
        POD_EVENTS[name](w, value)
    elif name == "scale":
        w.edit(replicas=value)
    elif name == "pause":
        w.edit(paused=value)
    elif name == "hold":
        w.annotations["fettle.dev/paused"] = str(value).lower()
    elif name == "model is not ready":
        w.ask(NotReady(Reason.MODEL_NOT_READY, "the model is gone") if value else "b")
    elif name == "steps":
        w.rollout(steps=value)
    elif name == "kill":
        w.kill_after = w.writes + value
    elif name == "skew":
        w.skew = timedelta(seconds=value)
    elif value == "status":
        w.status = ModelDeploymentStatus()
    elif value == "annotation":
        w.annotation = None
    elif name == "rollback-to":
        order(w, watcher, name, f"{value}/{event[2]}", event[3])
    else:
        order(w, watcher, *event)


def order(w: Any, watcher: Watcher, command: str, revision: str, token: int) -> None:
    """The same value once more is no new order."""
    before = w.annotations.get(f"fettle.dev/{command}")
    w.order(command, revision, str(token))
    value = w.annotations[f"fettle.dev/{command}"]
    if value != before:
        watcher.given[f"{command} {value}"] += 1
        watcher.aborts[revision] += command == "abort"


def answered(w: Any) -> Counter[str]:
    """How often each order was obeyed or refused."""
    words = (Reason.COMMAND_ACCEPTED, Reason.COMMAND_REFUSED)
    return Counter(
        f"{event.message.partition(' ')[0]} {event.occurrence}" for event in w.events if event.reason in words
    )


def reconcile(w: Any) -> None:
    try:
        w.reconcile()
    except Exception as error:
        if type(error).__name__ != "Killed":
            raise


def picture(w: Any) -> Any:
    """Everything that was written, but for the analysis: it looks on while a canary waits for a person."""
    canary = w.status.canary.model_copy(update={"analysis": None}) if w.status.canary else None
    return w.annotation, dict(w.replicas), tuple(w.ledger), w.status.model_copy(update={"canary": canary})


def come_to_rest(w: Any) -> None:
    """Everything is mended, nobody does anything any more."""
    w.edit(paused=False)
    w.annotations["fettle.dev/paused"] = "false"
    if isinstance(w.wanted, NotReady):
        w.ask("b")
    for revision in REVISIONS:
        POD_EVENTS["mend"](w, revision)
        w.lose_pods(revision)
    w.kill_after = None
    seen, quiet = picture(w), 0
    for _ in range(150):
        reconcile(w)
        before, seen = seen, picture(w)
        quiet = quiet + 1 if seen == before else 0
        if quiet >= 12:
            return
        w.now += timedelta(seconds=5)
    raise AssertionError(f"it never settles: {w.status}")


def play(
    world: Make, analysis: Any, *, shard: int, histories: int, watcher: Callable[[], Watcher], routed: bool
) -> int:
    """Random histories, one after the other; events and passes in all."""
    taken = 0

    @seed(shard)
    @settings(
        max_examples=histories,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],  # shrinking a long history would take minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(history=HISTORY)
    def live_through(history: list[tuple[tuple[Any, ...], int, float]]) -> None:
        nonlocal taken
        w = world(analysis=analysis, progressDeadlineSeconds=40, revisionHistoryLimit=4, routed=routed)
        w.min_ready = timedelta(seconds=2)
        watches = watcher()
        w.watchers.append(watches)
        for event, passes, seconds in history:
            happen(w, watches, event)
            for _ in range(passes):
                reconcile(w)
                w.now += timedelta(seconds=seconds)
        come_to_rest(w)
        taken += len(history) + watches.passes
        assert answered(w) <= watches.given, "an order acted twice"
        assert w.canary is None or w.condition("Paused")[0] == "True" or not w.spec["replicas"]
        assert w.serving() >= w.spec["replicas"]
        if routed and w.spec["replicas"]:
            percent = w.routes[-1][1].get(w.canary, 0)
            assert w.routes[-1][1] == {w.stable: 100 - percent} | ({w.canary: percent} if percent else {})

    live_through()
    print(f"{taken} steps")
    return taken


@pytest.mark.timeout(900)
@pytest.mark.parametrize("shard", range(0, SHARDS, EVERY))
def test_whatever_happens_nothing_unsafe_is_done_and_it_comes_to_rest(world: Make, analysis: Any, shard: int) -> None:
    taken = play(world, analysis, shard=shard, histories=HISTORIES, watcher=Watcher, routed=False)
    assert taken >= LEAST_STEPS // SHARDS, "the histories are too short or too few"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("toy", [weighted.provider, weighted.switch], ids=["split by percent", "all or nothing"])
@pytest.mark.parametrize("shard", range(0, 2, EVERY))
def test_so_it_is_where_routes_split_the_traffic(
    world: Make, analysis: Any, monkeypatch: pytest.MonkeyPatch, toy: Provider, shard: int
) -> None:
    monkeypatch.setitem(providers.PROVIDERS, TrafficProvider.REPLICAS, toy)  # type: ignore[arg-type]
    taken = play(world, analysis, shard=shard, histories=HISTORIES // 2, watcher=RouteWatcher, routed=True)
    assert taken >= LEAST_STEPS // SHARDS // 3, "the histories are too short or too few"
