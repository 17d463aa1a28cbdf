"""What predictions cost, at the price of the cores that answer them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fettle.api.optimizedmodel_status import Measurement, OptimizedModelStatus
from fettle.api.text import rounded
from fettle.api.vocabulary import CandidateState

MILLION, SECONDS = 1e6, 3600.0


def cost_lines(status: OptimizedModelStatus, price: float) -> Iterator[str]:
    """For each target with a winner: what a million predictions cost, and what they cost with the original.

    `price` is that of an hour of the target's cores, when they do nothing else; the best batch size counts.
    """
    winners = {row.target: row for row in status.candidates if row.state == CandidateState.SELECTED}
    for baseline in status.baselines:
        winner = winners.get(baseline.target)
        if winner is None:
            continue
        costs = [_million(measured, price) for measured in (winner.measurements, baseline.measurements)]
        if None not in costs:
            now, before = (rounded(cost) for cost in costs if cost is not None)
            yield f"cost      {baseline.target}: a million predictions cost {now} instead of {before}"


def _million(measurements: Sequence[Measurement], price: float) -> float | None:
    rate = max((measured.items_per_second for measured in measurements), default=0.0)
    return MILLION / rate / SECONDS * price if rate > 0 else None
