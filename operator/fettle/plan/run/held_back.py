"""The candidate that would be faster than the winner, and why it is not published, so that a run with little gain tells what to do."""

from __future__ import annotations

from collections.abc import Sequence

from fettle.api.bounds import BASELINES, Rules, misses_accuracy, percentile
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus
from fettle.api.text import rounded
from fettle.api.vocabulary import AgreementMode, Basis, CandidateState, Metric, Objective

WORTH_SAYING = 1.25  # times as fast as the winner; the timing pre-test is not more precise


def held_back(rows: Sequence[CandidateStatus], rules: Rules, baseline: BaselineStatus | None) -> str | None:
    """The text about the fastest candidate that lost too much accuracy, if it is much faster than the winner; otherwise None.

    `rows` are the target's. The times are from the timing pre-test and have no interval.
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
    beside = BASELINES[winner.speedup.basis if winner.speedup is not None else Basis.SOURCE_RUNTIME]
    return f"{row.name} is about {rounded(factor, 2)} times as fast as {beside}, but {row.message}{_advice(row)}"


def _advice(row: CandidateStatus) -> str:
    """Advice to set a task metric, if output numbers were compared one by one."""
    by_number = row.agreement is not None and row.agreement.mode == AgreementMode.ELEMENTWISE
    if row.accuracy is None or row.accuracy.metric != Metric.AGREEMENT or not by_number:
        return ""
    return " (its output numbers were compared one by one: to compare their meaning, set data.evaluation.metric to the model's task)"
