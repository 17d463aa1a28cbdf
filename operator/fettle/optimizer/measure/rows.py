"""From a measurement to a row of status: the state, the reason and the message."""

from __future__ import annotations

from typing import Any

import numpy as np

from fettle.api.bounds import span
from fettle.api.measured import SpeedupStatus
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.task import MeasureTask
from fettle.api.text import MESSAGE_LIMIT, beyond, counted, percent, quoted, rounded
from fettle.api.vocabulary import CandidateState
from fettle.errors import FettleError
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.candidate import MeasuredCandidate, Rejection
from fettle.optimizer.measure.clock import TimedCandidate
from fettle.optimizer.measure.judgement import Judgement
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
MORE_TIME = "allow more time (the chart's jobs.measureSeconds, or --measure-seconds)"


def row(
    task: MeasureTask, candidate: MeasuredCandidate, timed: TimedCandidate | None, quick: TimedCandidate | None = None
) -> CandidateStatus:
    """The row of a candidate. `timed` is None if it was not a finalist; `quick`, a timing of one second, claims no speed-up."""
    plan = candidate.built.plan
    values: dict[str, Any] = {"state": CandidateState.MEASURED}
    if candidate.judgement is not None:
        values |= _judged(candidate.judgement)
    if timed is not None:
        values |= _timed(task, timed)
    elif quick is not None:
        values |= {"measurements": quick.measurements()}
    failure = candidate.failure or (timed.failure if timed is not None else None)
    rejected = rejection(task, candidate, timed)
    if failure is not None:
        values |= _failed(failure)
    elif rejected is not None:
        values |= {
            "state": CandidateState.REJECTED,
            "reason": rejected[0],
            "message": quoted(rejected[1], MESSAGE_LIMIT),
        }
    return CandidateStatus(
        name=plan.name,
        target=task.target,
        runtime=plan.runtime,
        recipe=plan.recipe,
        settings=plan.settings,
        bytes=candidate.built.model.bytes,
        executed=candidate.executed,
        **values,
    )


def original_row(task: MeasureTask, candidate: MeasuredCandidate, baseline: TimedCandidate) -> CandidateStatus:
    """The row of the original as a candidate, compared with itself."""
    row_of_original = row(task, candidate, None)
    nothing = SpeedupStatus(value=1.0, low=1.0, high=1.0, basis=task.basis)
    return row_of_original.model_copy(update={"speedup": nothing, "measurements": baseline.measurements()})


def baseline_row(task: MeasureTask, reference: Reference, baseline: TimedCandidate) -> BaselineStatus:
    """The row of the measured original."""
    return BaselineStatus(
        target=task.target,
        runtime=task.baseline.plan.runtime,
        bytes=task.baseline.model.bytes,
        accuracy=reference.value(),
        constant=reference.constant(),
        samples=len(reference),
        labels=reference.labels_read_as(),
        answers=reference.taken_for(),
        measurements=baseline.measurements(),
    )


def rejection(task: MeasureTask, candidate: MeasuredCandidate, timed: TimedCandidate | None) -> Rejection | None:
    """Why a candidate that ran cannot be published, whatever the objective; None if it can be.

    If a candidate without a lossy step gives other answers than the original, it is judged like a lossy one if evaluation items
    can measure the loss, and is a NumericalMismatch if they cannot.
    """
    judgement = candidate.judgement
    if candidate.rejection is not None or judgement is None:
        return candidate.rejection
    if exact_only(task) and not judgement.exact:
        text = (
            f"no step is lossy, yet {percent(judgement.agreement.value)} of the answers agree with the original's "
            f"(worst difference {judgement.max_absolute_difference:.3g}); set data.evaluation to measure what that costs"
        )
        return Reason.NUMERICAL_MISMATCH, text
    if judgement.no_evidence is not None and candidate.must_be_proved:
        return Reason.DATA_INVALID, judgement.no_evidence
    if judgement.gone is not None:
        return Reason.OUTPUTS_INVALID, judgement.gone
    if judgement.too_few is not None:
        return Reason.EVALUATION_TOO_SMALL, judgement.too_few
    return _unstable(task, timed) if timed is not None else None


def exact_only(task: MeasureTask) -> bool:
    """Whether no items could prove the accuracy of a candidate whose answers may differ."""
    return task.generated and not task.allow_lossy


def unproved(quick: TimedCandidate) -> Rejection:
    """The rejection of a lossy candidate when only exact ones can pass."""
    text = (
        f"answers may differ, and generated items prove nothing about real ones: set data.evaluation; in the 1 s timing pre-test it was "
        f"{rounded(float(np.median(quick.ratios[0])))} times as fast as the original"
    )
    return Reason.EVALUATION_DATA_MISSING, text


def _unstable(task: MeasureTask, timed: TimedCandidate) -> Rejection | None:
    speedup, rounds = timed.speedup(), min(map(len, timed.ratios), default=0)
    if speedup is None:
        text = (
            f"the model could not be started twice within {task.seconds_per_candidate:g} s, so its speed-up is "
            f"not known: {MORE_TIME}"
        )
    elif rounds < LEAST_ROUNDS:
        text = (
            f"the speed-up {rounded(speedup.value)} is based on {counted(rounds, 'round')} per process start, but "
            f"{LEAST_ROUNDS} are required: a round takes too long for {task.seconds_per_candidate:g} s, {MORE_TIME}"
        )
    elif spread(speedup) > UNSTABLE:
        text = (
            f"after {timed.starts} starts the speed-up {span(speedup)} may be off by "
            f"{beyond(100 * spread(speedup), 100 * UNSTABLE, 2)} %, at most {100 * UNSTABLE:g} % is allowed: "
            "measure on a quieter node" + (f", or {MORE_TIME}" if timed.ended_by_budget else "")
        )
    else:
        return None
    return Reason.MEASUREMENT_UNSTABLE, text


def _judged(judgement: Judgement) -> dict[str, Any]:
    return {
        "exact": judgement.exact,
        "evidence": judgement.evidence,
        "samples": judgement.samples,
        "accuracy": judgement.accuracy,
        "accuracy_drop": judgement.drop,
        "agreement": judgement.agreement,
        "flips": judgement.flips,
        "changed": judgement.changed,
        "max_absolute_difference": judgement.max_absolute_difference,
    }


def _timed(task: MeasureTask, timed: TimedCandidate) -> dict[str, Any]:
    interval = timed.speedup()
    speedup = SpeedupStatus(**interval.model_dump(), basis=task.basis) if interval is not None else None
    return {"speedup": speedup, "measurements": timed.measurements()}


def _failed(error: FettleError) -> dict[str, Any]:
    state = CandidateState.REJECTED if error.reason in DOES_NOT_FIT else CandidateState.FAILED
    return {"state": state, "reason": error.reason, "message": quoted(error.message, MESSAGE_LIMIT)}
