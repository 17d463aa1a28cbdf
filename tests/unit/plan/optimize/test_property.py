"""Whatever the tasks answer and whenever the operator looks, a run is decided the same twice and comes to an end."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.plan.optimize.world import World, failure, make_spec, remembered

from fettle.api.reasons import Reason
from fettle.api.vocabulary import CandidateState
from fettle.plan.run.decide import decide
from fettle.plan.run.state import TaskPhase, TaskState

OUTCOMES = st.sampled_from(
    [
        None,
        None,
        None,
        failure(Reason.JOB_FAILED),
        failure(Reason.STORE_UNREACHABLE, retryable=True),
        failure(Reason.NODE_LOST, retryable=True),
        failure(Reason.ARTIFACT_NOT_FOUND),
        failure(Reason.STORE_NOT_FOUND, retryable=True),
        TaskState("", TaskPhase.SUCCEEDED),
    ]
)
TARGETS = st.sampled_from(
    [
        [{"name": "cpu"}],
        [{"name": "one"}, {"name": "two", "runtimes": ["openvino"]}],
        [{"name": "one", "nodeSelector": {"a": "b"}}, {"name": "two", "nodeSelector": {"a": "c"}}],
    ]
)
CONSTRAINTS = st.sampled_from([{}, {"accuracy": {"maxDrop": 0.0}}, {"speedup": {"min": 2}}, {"size": {"maxBytes": 1}}])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), targets=TARGETS, constraints=CONSTRAINTS, parallelism=st.integers(1, 3))
def test_a_run_always_settles(
    data: st.DataObject, targets: list[object], constraints: object, parallelism: int
) -> None:
    spec = make_spec(targets=targets, constraints=constraints, search={"parallelism": parallelism})
    drops = data.draw(st.fixed_dictionaries({"int8-openvino": st.tuples(st.floats(0.1, 5), st.floats(-0.1, 0.5))}))
    world = World(spec, speeds=drops, answer=remembered(lambda: data.draw(OUTCOMES)))
    for _ in range(data.draw(st.integers(0, 12))):
        decision = world.look()
        again = decide(world.snapshot)
        assert (again.requests, again.status, again.events) == (decision.requests, decision.status, ())
        assert decision.finished or (decision.requeue_seconds or 0) > 0
        if data.draw(st.booleans()):
            world.finish()
        # A clock may jump.
        world.now += timedelta(seconds=data.draw(st.integers(0, 60) | st.sampled_from([3600, -3600])))
    decision = world.settle()
    assert decision.requests == ()
    assert (world.ready.reason == Reason.PUBLISHED) == (world.ready.status == "True")
    over = {CandidateState.FAILED, CandidateState.REJECTED, CandidateState.MEASURED, CandidateState.SELECTED}
    assert {row.state for row in world.status.candidates} <= over
    for artifact in world.status.artifacts:
        winner = world.rows(artifact.target)[artifact.candidate]
        assert winner.state == CandidateState.SELECTED
