"""The share of items that the canary answers as the stable revision did, on the same live inputs."""

from __future__ import annotations

from fettle.api.interval import items_needed, tango
from fettle.api.modeldeployment_status import Verdict
from fettle.api.reasons import Reason
from fettle.plan.rollout.metrics.base import MetricMeasurement, MetricWindow
from fettle.plan.rollout.window_totals import Comparisons, Doubt

AGREEMENT = "agreement"
FEWEST_COMPARED = 20  # items that may call a canary wrong; a busy pod compares less than one a second


def metric(window: MetricWindow) -> MetricMeasurement | None:
    """`analysis.agreement`."""
    spec = window.spec.agreement
    if spec is None or window.stable is None:
        return None
    return agreement(spec.min, window.spec.min_requests, window.canary.comparisons, window.doubts)


def agreement(
    minimum: float, min_requests: int, comparisons: Comparisons, doubts: tuple[Doubt, ...]
) -> MetricMeasurement:
    """The share of items that the canary answers as stable did, of those that stable was sure of. `doubts`: the pods'.

    Bad as soon as the whole 95 % interval lies below `minimum`, on few items too: the interval knows how many they are.
    Good when the share is not below it, on as many items as prove `minimum` where none disagrees. What lies between waits
    for more items.
    """
    count = comparisons.compared
    verdict, text = _judged(minimum, min_requests, comparisons)
    reason = Reason.ANALYSIS_INCONCLUSIVE
    if verdict is Verdict.PENDING and doubts:
        verdict, text, reason = Verdict.INCONCLUSIVE, f"agreement: {doubts[0].message}", doubts[0].reason
    share = comparisons.agreed / count if count else None
    return MetricMeasurement(verdict, text, reason, metric=AGREEMENT, value=share, bound=minimum, samples=count)


def _judged(minimum: float, min_requests: int, comparisons: Comparisons) -> tuple[Verdict, str]:
    """What the counts say by themselves."""
    needed = max(min_requests, items_needed(1 - minimum) or 0)
    count = comparisons.compared
    text = f"{count} items compared, {comparisons.disagreed} disagreed, {comparisons.unsure} skipped (stable was not confident)"
    if not count:
        return Verdict.PENDING, f"0 of {needed} items needed for agreement {minimum:g} ({text})"
    share, highest = comparisons.agreed / count, 1 - tango(comparisons.disagreed, 0, count).low
    if count >= min(min_requests, FEWEST_COMPARED) and highest < minimum:
        return Verdict.BAD, f"agreement {share:.4f} < {minimum:g} (95 % interval up to {highest:.4f}; {text})"
    if count < needed:
        return Verdict.PENDING, f"{count} of {needed} items needed for agreement {minimum:g} ({text})"
    if share < minimum:
        return Verdict.PENDING, f"agreement {share:.4f} is below {minimum:g}, but its 95 % interval is not ({text})"
    return Verdict.GOOD, f"agreement {share:.4f} >= {minimum:g} ({text})"
