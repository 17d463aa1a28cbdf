"""The share of items with the same answer as the stable revision's, on the same live inputs."""

from __future__ import annotations

from fettle.api.interval import items_needed, tango
from fettle.api.modeldeployment_status import Verdict
from fettle.api.reasons import Reason
from fettle.api.text import counted
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
    """The share of items with the same answer as stable's, among those of which stable was sure. `doubts`: why pods cannot compare.

    The verdict is bad as soon as the whole 95 % interval is below `minimum`, even on few items, because the interval takes their
    number into account. It is good if the share is not below `minimum` and there are enough items to prove `minimum` if none disagreed.
    Otherwise it is pending.
    """
    count = comparisons.compared
    verdict, text = _judged(minimum, min_requests, comparisons)
    reason = Reason.ANALYSIS_INCONCLUSIVE
    if verdict is Verdict.PENDING and doubts:
        verdict, text, reason = Verdict.INCONCLUSIVE, f"agreement: {doubts[0].message}", doubts[0].reason
    share = comparisons.agreed / count if count else None
    return MetricMeasurement(verdict, text, reason, metric=AGREEMENT, value=share, bound=minimum, samples=count)


def _skipped(unsure: int) -> str:
    """What is said of items that do not count; nothing if there are none."""
    if not unsure:
        return ""
    return f"; {counted(unsure, 'more item')} skipped, because the stable revision is unsure of {'it' if unsure == 1 else 'them'}"


def _judged(minimum: float, min_requests: int, comparisons: Comparisons) -> tuple[Verdict, str]:
    """The verdict that follows from the counts alone, and its text."""
    needed = max(min_requests, items_needed(1 - minimum) or 0)
    count = comparisons.compared
    text = f"{count} of stable's recent items compared, {comparisons.disagreed} disagreed{_skipped(comparisons.unsure)}"
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
