"""What would be faster than the winner, and what keeps it out: so that a run that gains little says what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from fettle.api.bounds import Rules, misses_accuracy, percentile
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus
from fettle.api.vocabulary import AgreementMode, CandidateState, Metric, Objective

WORTH_SAYING = 1.25  # times as fast as the winner; the pre-test of a second knows no more


def held_back(rows: Sequence[CandidateStatus], rules: Rules, baseline: BaselineStatus | None) -> str | None:
    """The fastest candidate of a target that lost too much accuracy, where it is much faster than the winner; None where there is none.

    `rows` are the target's. Times are those of the pre-test, which claims no interval.
    """
    original = baseline.p50(rules.batch_size) if baseline is not None else None
    winner = next((row for row in rows if row.state == CandidateState.SELECTED), None)
    if original is None or winner is None or rules.objective != Objective.LATENCY:
        return None
    gained = winner.speedup.value if winner.speedup is not None else 1.0
    faster = {
        original / latency: row
        for row in rows
        if row.state == CandidateState.REJECTED and misses_accuracy(row, rules)
        if (latency := percentile(row, rules.batch_size, 50)) is not None
        and original / latency >= WORTH_SAYING * max(gained, 1.0)
    }
    if not faster:
        return None
    factor = max(faster)
    row = faster[factor]
    return f"{row.name} is about {factor:.2g} times as fast as the original, but {row.message}{_advice(row)}"


def _advice(row: CandidateStatus) -> str:
    """Where numbers were compared one by one, a metric that knows what they are for may accept them."""
    by_number = row.agreement is not None and row.agreement.mode == AgreementMode.ELEMENTWISE
    if row.accuracy is None or row.accuracy.metric != Metric.AGREEMENT or not by_number:
        return ""
    return " (its output numbers were compared one by one: to compare their meaning, set data.evaluation.metric to the model's task)"
