"""What people read in the status of a run: short figures, and a message for every condition."""

from __future__ import annotations

import pytest
from tests.unit.plan.choose.figures import row
from tests.unit.plan.optimize.world import World, fails, failure, make_spec

from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.reasons import Reason
from fettle.api.uris import Address
from fettle.api.vocabulary import CandidateState
from fettle.plan.run.figures import shown
from fettle.plan.run.status import artifact_of


def test_figures_have_four_significant_digits_and_decisions_use_all_of_them() -> None:
    """Its drop is just beyond the bound, which the shown figure does not tell."""
    world = World(speeds={"int8-openvino": (3.123456789, 0.01800001)})
    world.settle()
    found = world.rows()["int8-openvino"]
    assert found.speedup is not None and found.accuracy_drop is not None
    assert (found.speedup.value, found.accuracy_drop.high) == (3.123, 0.02)
    assert (found.state, found.reason) == (CandidateState.REJECTED, Reason.CONSTRAINTS_NOT_MET)


def test_a_status_that_was_read_back_is_written_the_same() -> None:
    world = World(speeds={"int8-openvino": (3.123456789, 0.001234567)})
    world.settle()
    written = world.status
    assert shown(written.candidates) == written.candidates
    world.status = OptimizedModelStatus.model_validate(written.to_json())
    assert world.look().status == written


def test_an_unsteady_winner_claims_the_lower_end_of_its_speedup() -> None:
    steady = row("int8-openvino", (4.0, 3.0, 5.0), 0.001, artifact="a" * 64)
    for reason, expected in ((None, 4.0), (Reason.MEASUREMENT_UNSTABLE, 3.0)):
        winner = steady.model_copy(update={"reason": reason})
        (target,) = make_spec().targets
        store = Address("pvc://store", None)
        made = artifact_of(winner, target, store, generation=1, incumbent=None, published=None)
        assert made.speedup == expected


@pytest.mark.parametrize("stage", [None, "prepare", "measure", "publish"])
def test_every_condition_has_a_message_at_every_moment(stage: str | None) -> None:
    world = World(answer=fails(stage, failure(Reason.UNSUPPORTED_OPERATOR)) if stage else lambda request: None)
    for _ in range(60):
        decision = world.look()
        assert all(condition.message for condition in decision.status.conditions), decision.status.conditions
        if decision.finished:
            return
        world.finish()
    raise AssertionError("it never ends")
