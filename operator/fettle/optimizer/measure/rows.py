"""From what was found to a row of status: the state, the reason, and what a person is told."""

from __future__ import annotations

from typing import Any

import numpy as np

from fettle.api.bounds import span
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus, SpeedupStatus
from fettle.api.reasons import Reason
from fettle.api.task import MeasureTask
from fettle.api.text import MESSAGE_LIMIT, beyond, quoted
from fettle.api.vocabulary import CandidateState
from fettle.errors import FettleError
from fettle.optimizer.measure.accuracy import Judgement, Reference
from fettle.optimizer.measure.clock import Timed
from fettle.optimizer.measure.subject import Rejection, Subject
from fettle.optimizer.statistics import LEAST_ROUNDS, UNSTABLE, spread

# The candidate does not fit this model or this node, as opposed to one that broke.
DOES_NOT_FIT = {
    Reason.RECIPE_NOT_APPLICABLE,
    Reason.UNSUPPORTED_OPERATOR,
    Reason.UNSUPPORTED_OPSET,
    Reason.UNSUPPORTED_MODEL,
    Reason.OUTPUTS_INVALID,
    Reason.PRUNED,
}


def row(task: MeasureTask, subject: Subject, timed: Timed | None, quick: Timed | None = None) -> CandidateStatus:
    """The row of a candidate. `timed` is None where it was no finalist; `quick`, the clock of one second, claims no speed-up."""
    plan = subject.candidate.plan
    values: dict[str, Any] = {"state": CandidateState.MEASURED}
    if subject.judgement is not None:
        values |= _judged(subject.judgement)
    if timed is not None:
        values |= _timed(task, timed)
    elif quick is not None:
        values |= {"measurements": quick.measurements()}
    failure = subject.failure or (timed.failure if timed is not None else None)
    finding = rejection(task, subject, timed)
    if failure is not None:
        values |= _failed(failure)
    elif finding is not None:
        values |= {"state": CandidateState.REJECTED, "reason": finding[0], "message": quoted(finding[1], MESSAGE_LIMIT)}
    return CandidateStatus(
        name=plan.name,
        target=task.target,
        runtime=plan.runtime,
        recipe=plan.recipe,
        settings=plan.settings,
        bytes=subject.candidate.model.bytes,
        executed=subject.executed,
        **values,
    )


def original_row(task: MeasureTask, subject: Subject, baseline: Timed) -> CandidateStatus:
    """The original as a candidate: it is what it is compared with."""
    found = row(task, subject, None)
    nothing = SpeedupStatus(value=1.0, low=1.0, high=1.0, basis=task.basis)
    return found.model_copy(update={"speedup": nothing, "measurements": baseline.measurements()})


def baseline_row(task: MeasureTask, reference: Reference, baseline: Timed) -> BaselineStatus:
    """The original, measured."""
    return BaselineStatus(
        target=task.target,
        runtime=task.baseline.plan.runtime,
        bytes=task.baseline.model.bytes,
        accuracy=reference.value(),
        constant=reference.constant(),
        samples=len(reference),
        labels=reference.told(),
        answers=reference.taken_for(),
        measurements=baseline.measurements(),
    )


def rejection(task: MeasureTask, subject: Subject, timed: Timed | None) -> Rejection | None:
    """Why a candidate that ran cannot be published, whatever it would be chosen by; None if nothing speaks against it.

    A candidate without a lossy step whose answers are not the original's is judged like a lossy one where evaluation items
    can tell what that costs, and is a NumericalMismatch where they cannot.
    """
    found = subject.judgement
    if subject.finding is not None or found is None:
        return subject.finding
    if exact_only(task) and not found.exact:
        text = (
            f"no step is lossy, yet {found.agreement.value:.2%} of the answers agree with the original's "
            f"(worst difference {found.max_absolute_difference:.3g}); give data.evaluation to judge what that costs"
        )
        return Reason.NUMERICAL_MISMATCH, text
    if found.blind is not None and subject.must_be_proved:
        return Reason.DATA_INVALID, f"{found.blind}: give items that it tells apart"
    if found.gone is not None:
        return Reason.OUTPUTS_INVALID, found.gone
    if found.too_few is not None:
        return Reason.EVALUATION_TOO_SMALL, found.too_few
    return _unstable(task, timed) if timed is not None else None


def exact_only(task: MeasureTask) -> bool:
    """Whether there are no items that could prove a candidate whose answers may differ."""
    return task.generated and not task.allow_lossy


def unproved(quick: Timed) -> Rejection:
    """What is told of a lossy candidate where only exact ones can pass."""
    told = (
        f"answers may differ, and generated items prove nothing about real ones: give data.evaluation; in the 1 s timing pre-test it was "
        f"{np.median(quick.ratios[0]):.3g} times as fast as the original"
    )
    return Reason.EVALUATION_DATA_MISSING, told


def _unstable(task: MeasureTask, timed: Timed) -> Rejection | None:
    found, rounds = timed.speedup(), min(map(len, timed.ratios), default=0)
    if found is None:
        text = f"no second start within {task.seconds_per_candidate:g} s, so no speed-up is known"
    elif rounds < LEAST_ROUNDS:
        text = (
            f"the speed-up {found.value:.3g} comes from {rounds} {'round' if rounds == 1 else 'rounds'} a start, {LEAST_ROUNDS} are asked: "
            f"one takes too long for a clock of {task.seconds_per_candidate:g} s, allow more time"
        )
    elif spread(found) > UNSTABLE:
        text = (
            f"after {timed.starts} starts the speed-up {span(found)} may be off by "
            f"{beyond(100 * spread(found), 100 * UNSTABLE, 2)} %, at most {100 * UNSTABLE:g} % is allowed: "
            "measure on a quieter node, or allow more time"
        )
    else:
        return None
    return Reason.MEASUREMENT_UNSTABLE, text


def _judged(found: Judgement) -> dict[str, Any]:
    return {
        "exact": found.exact,
        "evidence": found.evidence,
        "samples": found.samples,
        "accuracy": found.accuracy,
        "accuracy_drop": found.drop,
        "agreement": found.agreement,
        "flips": found.flips,
        "changed": found.changed,
        "max_absolute_difference": found.max_absolute_difference,
    }


def _timed(task: MeasureTask, timed: Timed) -> dict[str, Any]:
    found = timed.speedup()
    speedup = SpeedupStatus(**found.model_dump(), basis=task.basis) if found is not None else None
    return {"speedup": speedup, "measurements": timed.measurements()}


def _failed(error: FettleError) -> dict[str, Any]:
    state = CandidateState.REJECTED if error.reason in DOES_NOT_FIT else CandidateState.FAILED
    return {"state": state, "reason": error.reason, "message": quoted(error.message, MESSAGE_LIMIT)}
