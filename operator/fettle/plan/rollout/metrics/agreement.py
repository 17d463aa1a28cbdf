"""The share of items that the canary answers as the stable revision did, on the same live inputs."""

from __future__ import annotations

from fettle.api.interval import items_needed, tango
from fettle.api.modeldeployment_status import Verdict
from fettle.plan.rollout.metrics.base import Finding, Seen
from fettle.plan.rollout.window_totals import Comparisons, Doubt

AGREEMENT = "agreement"
FEWEST_COMPARED = 20  # items that may call a canary wrong; a busy pod compares less than one a second


def metric(seen: Seen) -> Finding | None:
    """`analysis.agreement`."""
    spec = seen.spec.agreement
    if spec is None or seen.stable is None:
        return None
    return agreement(spec.min, seen.spec.min_requests, seen.canary.comparisons, seen.doubts)


def agreement(minimum: float, min_requests: int, found: Comparisons, doubts: tuple[Doubt, ...]) -> Finding:
    """The share of items that the canary answers as stable did, of those that stable was sure of. `doubts`: the pods'.

    Bad as soon as the whole 95 % interval lies below `minimum`, on few items too: the interval knows how many they are.
    Good when the share is not below it, on as many items as prove `minimum` where none disagrees. What lies between waits
    for more items.
    """
    needed = max(min_requests, items_needed(1 - minimum) or 0)
    count = found.compared
    text = f"{count} items compared, {found.disagreed} disagreed, {found.unsure} skipped (stable was not confident)"
    if count:
        share = found.agreed / count
        highest = 1 - tango(found.disagreed, 0, count).low
        if count >= min(min_requests, FEWEST_COMPARED) and highest < minimum:
            said = f"agreement {share:.4f} < {minimum:g} (at most {highest:.4f} by its interval; {text})"
            return Finding(Verdict.BAD, said, metric=AGREEMENT, value=share, bound=minimum, samples=count)
        if count >= needed and share >= minimum:
            said = f"agreement {share:.4f} >= {minimum:g} ({text})"
            return Finding(Verdict.GOOD, said, metric=AGREEMENT, value=share, bound=minimum, samples=count)
    if doubts:
        return Finding(Verdict.INCONCLUSIVE, f"agreement: {doubts[0].message}", doubts[0].reason)
    if count >= needed:
        return Finding(
            Verdict.PENDING, f"agreement {found.agreed / count:.4f} is not surely below {minimum:g} ({text})"
        )
    return Finding(Verdict.PENDING, f"{count} of {needed} items compared, as agreement {minimum:g} needs ({text})")
