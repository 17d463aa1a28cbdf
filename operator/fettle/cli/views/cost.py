"""The cost of predictions, from the price of the cores that compute them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fettle.api.measured import Measurement
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.text import rounded
from fettle.api.vocabulary import CandidateState

MILLION, SECONDS = 1e6, 3600.0


def cost_lines(status: OptimizedModelStatus, price: float) -> Iterator[str]:
    """For each target with a winner: the cost of a million predictions, and their cost with the original.

    `price` is the price of an hour of the target's cores, fully used, at the best batch size.
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
