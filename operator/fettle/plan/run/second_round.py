"""Why a variation of a candidate that misses accuracy is not worth a second round."""

from __future__ import annotations

from fettle.api.bounds import Rules, percentile
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus
from fettle.api.text import rounded
from fettle.api.vocabulary import AgreementMode, Evidence, Metric, Objective

HALF = 0.5  # of the items: where fewer agree, numbers are off by more than their tolerance
# Of the original's variance in the worst channel. A share of items says nothing of how far they are off: of many numbers one that is just
# beyond the tolerance is enough. An error of a twentieth of the variance would have to shrink about tenfold to come within 1 % of the range
# (normal values); another preset was seen to take a third off it.
NEAR = 0.95
SLOWER = 1.2  # times the original, between two clocks


def hopeless(candidate: CandidateStatus, rules: Rules, original: BaselineStatus | None) -> str | None:
    """Why a variation of a candidate that misses accuracy proves nothing, for a person; None where it may pass.

    It has about the same speed, and an error of the same order: a class may tip back, a number that is far off does not come near.
    """
    return _far_off(candidate) or _slower(candidate, rules, original)


def _far_off(candidate: CandidateStatus) -> str | None:
    """How far numbers that no labels judge are off, where no other choice of ranges makes that good."""
    agreement = candidate.agreement
    labelled = candidate.accuracy is not None and candidate.accuracy.metric != Metric.AGREEMENT
    labelled = labelled or candidate.evidence == Evidence.LABELS
    if agreement is None or agreement.mode != AgreementMode.ELEMENTWISE or labelled:
        return None
    if agreement.high >= HALF or agreement.variance_kept is None or agreement.variance_kept >= NEAR:
        return None
    return f"agrees on {agreement.value:.0%} of the items and keeps {agreement.variance_kept:.0%} of the variance in {agreement.worst_channel}"


def _slower(candidate: CandidateStatus, rules: Rules, original: BaselineStatus | None) -> str | None:
    """How much slower than the original it is, where that is more than the constraints allow and clocks differ by."""
    objective, bound, size = rules.objective, rules.constraints.speedup, rules.batch_size
    if objective == Objective.SIZE or original is None:
        return None
    slack = SLOWER / min(bound.min if bound is not None else 1.0, 1.0)
    if objective == Objective.THROUGHPUT:  # with several streams a single run takes longer, and there are more at once
        rate, original_rate = (
            max((timing.items_per_second for timing in timings), default=0.0)
            for timings in (candidate.measurements, original.measurements)
        )
        slow = 0 < rate * slack < original_rate
        return (
            f"is not faster than the original ({rate:.3g} items a second against {original_rate:.3g})" if slow else None
        )
    latency, original_latency = percentile(candidate, size, 50), original.p50(size)
    if latency is None or original_latency is None or latency <= slack * original_latency:
        return None
    return f"is not faster than the original (p50 {rounded(latency)} ms against {rounded(original_latency)} ms)"
