"""The checks of a measured candidate against the constraints in force. The plan uses them to choose, the measuring Job to decide when to stop.

A bound on accuracy or speed-up is satisfied only if the unfavorable end of the interval satisfies it. A figure that was not measured never
satisfies a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fettle.api.constraints import AccuracyConstraint, Constraints
from fettle.api.interval import items_needed
from fettle.api.measured import Interval, Measurement
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.text import beyond, rounded
from fettle.api.vocabulary import Basis, Evidence, Metric, Objective

ORIGINAL = "original"  # name and recipe of the untouched source; every other candidate's name ends with its runtime
DROP_SCALE = 0.01  # a distance to a bound on the drop is told in units of the bound, or of this where the bound is less
UNMEASURED = float("inf")
BASELINES = {Basis.SOURCE_RUNTIME: "the original", Basis.PORTABLE_FORM: "the converted model (ONNX)"}
# Fewest runs, or requests, from which a percentile has a two-sided 95 % interval inside the sample (for p50: from which it is stable).
RUNS_NEEDED = {50: 30, 90: 36, 95: 72, 99: 367}


@dataclass(frozen=True)
class Rules:
    """The rules for the candidates of one target. `exact_only`: there are no items that could prove a lossy candidate.

    `alpha` is the two-sided error probability of an accuracy interval.
    """

    constraints: Constraints
    objective: Objective
    batch_size: int
    exact_only: bool
    alpha: float


@dataclass(frozen=True)
class Miss:
    """A bound that is violated, and by how much: 0.2 = 20 % beyond it. `advice`: how to set the bound so that it is not."""

    reason: Reason
    message: str
    distance: float
    advice: str = ""


def misses(row: CandidateStatus, rules: Rules) -> tuple[Miss, ...]:
    """Every bound that a measured candidate violates; empty if it satisfies all."""
    lost = tuple(miss for check in (_accuracy, _changed) if (miss := check(row, rules)) is not None)
    if lost and row.speedup is None:
        return lost  # what loses or changes too much is not timed
    results = (check(row, rules) for check in CHECKS)
    return tuple(miss for miss in results if miss is not None)


def is_exact(row: CandidateStatus) -> bool:
    """Whether its answers are equal to the original's."""
    return row.exact is True or row.recipe == ORIGINAL


def misses_accuracy(row: CandidateStatus, rules: Rules) -> bool:
    """Whether the candidate lost too much accuracy or gave invalid answers, so that another preset or fewer operators may help.

    After the screening, this holds only if even the favorable end of its interval violates the bound.
    """
    if row.reason == Reason.OUTPUTS_INVALID:
        return True
    if row.reason == Reason.PRUNED:
        return exceeds(row.accuracy_drop, row.changed, rules.constraints.accuracy, metric_of(row)) is not None
    if row.accuracy_drop is None or rules.exact_only:
        return False
    return _accuracy(row, rules) is not None or _changed(row, rules) is not None


def metric_of(row: CandidateStatus) -> Metric:
    """The metric by which its answers were judged."""
    return row.accuracy.metric if row.accuracy is not None else Metric.AGREEMENT


def exceeds(
    drop: Interval | None, changed: Interval | None, bound: AccuracyConstraint | None, metric: Metric
) -> str | None:
    """Text if even the favorable end of the drop or of the changed answers violates its bound; None if the bound may be satisfied."""
    if bound is None:
        return None
    if drop is not None and drop.low > bound.max_drop:
        return f"the accuracy drop is {span(drop)}: even its lower end exceeds {bound.max_drop:g}"
    if changed is not None and bound.max_changed is not None and changed.low > bound.max_changed:
        most = bound.changed(metric)
        return f"the share of changed answers is {span(changed)}: even its lower end exceeds maxChanged {most}"
    return None


def percentile(row: CandidateStatus, batch_size: int, number: int) -> float | None:
    """The percentile of the run time with `batch_size`, in milliseconds; None if it was not measured, or with too few runs."""
    measurement = _measurement(row, batch_size)
    return getattr(measurement.latency_milliseconds, f"p{number}") if measurement is not None else None


def span(interval: Interval, bound: float = math.nan) -> str:
    """'0.004 [-0.001, 0.009]', with enough digits to distinguish each end from `bound`."""
    return f"{rounded(interval.value)} [{beyond(interval.low, bound)}, {beyond(interval.high, bound)}]"


def gain(row: CandidateStatus) -> str:
    """'3.1 [2.9, 3.3] times as fast as the original', or as what was timed in its place. Empty if the row has no speed-up.

    If the timing was unsteady, only the lower end of the interval is claimed.
    """
    if row.speedup is None:
        return ""
    beside = f"times as fast as {BASELINES[row.speedup.basis]}"
    if is_unsteady(row):
        return f"at least {rounded(row.speedup.low)} {beside} (the timing was unsteady: {span(row.speedup)})"
    return f"{span(row.speedup)} {beside}"


def is_unsteady(row: CandidateStatus) -> bool:
    """Whether the clock was too unsteady for a claim beyond the lower end of the speed-up."""
    return row.reason == Reason.MEASUREMENT_UNSTABLE


def _measurement(row: CandidateStatus, batch_size: int) -> Measurement | None:
    return next((measurement for measurement in row.measurements if measurement.batch_size == batch_size), None)


def _accuracy(row: CandidateStatus, rules: Rules) -> Miss | None:
    bound = rules.constraints.accuracy
    if bound is None or is_exact(row):
        return None
    if rules.exact_only:
        text = "answers may differ, and there is no evaluation data to judge them: set data.evaluation"
        return Miss(Reason.EVALUATION_DATA_MISSING, text, UNMEASURED)
    drop = row.accuracy_drop
    if drop is None:
        return Miss(Reason.CONSTRAINTS_NOT_MET, "accuracy drop was not measured", UNMEASURED)
    if drop.high <= bound.max_drop:
        return None
    text = f"accuracy drop {span(drop, bound.max_drop)} must not exceed {bound.max_drop:g} at its upper end{_more_items(row, rules)}"
    distance = (drop.high - bound.max_drop) / max(bound.max_drop, DROP_SCALE)
    return Miss(Reason.CONSTRAINTS_NOT_MET, text, distance, "raise constraints.accuracy.maxDrop")


def _changed(row: CandidateStatus, rules: Rules) -> Miss | None:
    """The violation of `maxChanged`, if any. Changes for better and for worse cancel out in a metric, but such a model is a different one.

    Without labels, the drop itself is the share of changed answers, so there is nothing more to check.
    """
    bound, changed = rules.constraints.accuracy, row.changed
    if (
        bound is None
        or bound.max_changed is None
        or changed is None
        or is_exact(row)
        or changed.high <= bound.max_changed
    ):
        return None
    text = (
        f"share of changed answers {span(changed)} must not exceed {bound.changed(metric_of(row))} at its upper end, whatever the metric says "
        "(constraints.accuracy.maxChanged)"
    )
    distance = (changed.high - bound.max_changed) / max(bound.max_changed, DROP_SCALE)
    return Miss(Reason.CONSTRAINTS_NOT_MET, text, distance, "raise constraints.accuracy.maxChanged")


def _more_items(row: CandidateStatus, rules: Rules) -> str:
    """The number of items that would prove the bound with these shares, if only the number of items is the problem."""
    drop, flips, bound = row.accuracy_drop, row.flips, rules.constraints.accuracy
    if drop is None or flips is None or bound is None or drop.value > bound.max_drop:
        return ""
    needed = items_needed(bound.max_drop, flips.worse, flips.better, rules.alpha)
    skips = row.agreement is not None and row.agreement.unsure is not None and row.evidence is not Evidence.LABELS
    kind = "items of which the original is sure" if skips else "items"
    return f"; with {needed} {kind} and the same flips it would pass" if needed is not None else ""


def _latency(row: CandidateStatus, rules: Rules) -> Miss | None:
    bound = rules.constraints.latency
    if bound is None:
        return None
    milliseconds = percentile(row, rules.batch_size, bound.percentile)
    what = f"p{bound.percentile} at batch {rules.batch_size}"
    if milliseconds is None:
        measurement = _measurement(row, rules.batch_size)
        runs = measurement.runs if measurement is not None else 0
        needed = RUNS_NEEDED.get(bound.percentile, 0)
        text = f"{what} cannot be claimed from {runs} runs: {needed} are needed"
        return Miss(Reason.CONSTRAINTS_NOT_MET, text, UNMEASURED)
    if milliseconds <= bound.max_milliseconds:
        return None
    text = f"{what} is {beyond(milliseconds, bound.max_milliseconds)} ms, must not exceed {bound.max_milliseconds:g} ms"
    distance = milliseconds / bound.max_milliseconds - 1
    return Miss(Reason.CONSTRAINTS_NOT_MET, text, distance, "raise constraints.latency.maxMilliseconds")


def _size(row: CandidateStatus, rules: Rules) -> Miss | None:
    bound = rules.constraints.size
    if row.bytes is None:
        return Miss(Reason.CONSTRAINTS_NOT_MET, "its size was not measured", UNMEASURED)
    if bound is None or row.bytes <= bound.max_bytes:
        return None
    text = f"{row.bytes} bytes, must not exceed {bound.max_bytes}"
    return Miss(Reason.CONSTRAINTS_NOT_MET, text, row.bytes / bound.max_bytes - 1, "raise constraints.size.maxBytes")


def _speedup(row: CandidateStatus, rules: Rules) -> Miss | None:
    bound = rules.constraints.speedup
    if bound is None:
        return _not_slower(row, rules)
    speedup = row.speedup
    if speedup is None:
        return Miss(Reason.CONSTRAINTS_NOT_MET, "speed-up was not measured", UNMEASURED)
    if speedup.low >= bound.min:
        return None
    text = f"speed-up {span(speedup, bound.min)} must be at least {bound.min:g} at its lower end"
    distance = bound.min / max(speedup.low, 1e-9) - 1
    return Miss(Reason.CONSTRAINTS_NOT_MET, text, distance, "lower constraints.speedup.min")


def _not_slower(row: CandidateStatus, rules: Rules) -> Miss | None:
    """The rule for Latency and Throughput without `speedup.min`: a lossy candidate must be demonstrably faster, an exact one not demonstrably slower.

    If `constraints.speedup.min` is below 1, slower candidates are acceptable, and it decides alone.
    """
    if rules.objective == Objective.SIZE or row.recipe == ORIGINAL:
        return None
    speedup = row.speedup
    if speedup is None:
        return Miss(Reason.CONSTRAINTS_NOT_MET, "speed-up was not measured", UNMEASURED)
    exact = is_exact(row)
    if speedup.high >= 1 if exact else speedup.low > 1:
        return None
    doubt = (
        "is slower than the original"
        if exact
        else "is not proved to be faster than the original, and its answers may differ"
    )
    end = speedup.high if exact else speedup.low
    text = f"speed-up {span(speedup, 1)}: {doubt} (to allow this, set constraints.speedup.min)"
    return Miss(Reason.NOT_FASTER, text, 1 / max(end, 1e-9) - 1)


CHECKS: tuple[Callable[[CandidateStatus, Rules], Miss | None], ...] = (_accuracy, _changed, _latency, _size, _speedup)
