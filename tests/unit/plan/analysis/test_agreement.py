"""Answers compared with the stable revision's -> verdicts."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest

from fettle.api.modeldeployment import AnalysisSpec
from fettle.api.modeldeployment_status import Verdict
from fettle.api.reasons import Reason
from fettle.plan.rollout.analysis import AnalysisResult, begin, judge
from fettle.plan.rollout.metrics.agreement import agreement
from fettle.plan.rollout.window_totals import Comparisons, Doubt, Observation, PodSamples, Second

START = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = AnalysisSpec.model_validate(
    {"intervalSeconds": 10, "minRequests": 50, "failureLimit": 2, "agreement": {"min": 0.98}}
)
LOST = Doubt(Reason.ANALYSIS_UNREACHABLE, "pod b: no pod of the stable revision is ready")
OTHER = Doubt(Reason.ANALYSIS_INCONCLUSIVE, "pod b: stable has y FP32 [-1, 10], this revision no such tensor")


def pod(agreed: int, disagreed: int = 0, unsure: int = 0, doubt: Doubt | None = None, name: str = "b") -> PodSamples:
    """A pod that compared so many items in the window's first second."""
    counted = Comparisons(agreed, disagreed, unsure)
    return PodSamples(name, (Second(START.timestamp(), 100, 0, {}, counted),), 1.0, 1.05, doubt)


def look(*pods: PodSamples, seconds: float = 11, **more: Any) -> AnalysisResult:
    stable = Observation((PodSamples("a", (Second(START.timestamp(), 100, 0, {}),), 1.0, 1.05),))
    seen = Observation(tuple(pods), **more)
    return judge(SPEC, begin(START), seen, stable, START + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("sentence", "seen", "verdict", "says"),
    [
        ("enough items, none disagrees", pod(189), Verdict.GOOD, "agreement 1.0000 >= 0.98 (189 of stable's recent items compared, 0 disag"),
        ("enough items, few disagree", pod(297, 3), Verdict.GOOD, "agreement 0.9900 >= 0.98"),
        ("most disagree", pod(6, 52, 12), Verdict.BAD, "agreement 0.1034 < 0.98 (95 % interval up to 0.2"),
        ("a tenth disagrees", pod(135, 15), Verdict.BAD, "150 of stable's recent items compared, 15 disagreed)"),
        ("all disagree, on too few items", pod(0, 19), Verdict.PENDING, "19 of 189 items needed"),
        ("a busy pod compared few, and all disagree", pod(0, 20), Verdict.BAD, "agreement 0.0000 < 0.98 (95 % interval up to 0."),
        ("too few items to prove anything", pod(100), Verdict.PENDING, "100 of 189 items needed for agreement 0.98"),
        ("two of sixty may be chance", pod(58, 2), Verdict.PENDING, "60 of 189 items"),
        ("below the bound, but not surely", pod(193, 7), Verdict.PENDING, "agreement 0.9650 is below 0.98, but its 95 % interval is not"),
        ("nothing but items that stable is unsure of", pod(0, 0, 500), Verdict.PENDING, "500 more items skipped, because the stable"),
    ],
)  # fmt: skip
def test_a_window(sentence: str, seen: PodSamples, verdict: Verdict, says: str) -> None:
    judged = look(seen).status
    assert judged.verdict is verdict, f"{sentence}: {judged.message}"
    assert says in str(judged.message)


def test_the_pods_of_a_canary_are_summed_and_status_tells_the_counts() -> None:
    status = look(pod(100, 1, 7), pod(90, 0, 5, name="c")).status
    assert (status.verdict, status.compared, status.agreed, status.unsure) == (Verdict.GOOD, 191, 190, 12)


@pytest.mark.parametrize("doubt", [LOST, OTHER])
def test_what_cannot_be_compared_is_inconclusive_at_once_and_says_why(doubt: Doubt) -> None:
    judged = look(pod(0, doubt=doubt))
    assert (judged.status.verdict, judged.reason) == (Verdict.INCONCLUSIVE, doubt.reason)
    assert doubt.message in str(judged.status.message)
    assert judged.status.consecutive == 0


def test_one_pod_that_cannot_compare_does_not_matter_where_the_others_compared_enough() -> None:
    assert look(pod(189), pod(0, doubt=LOST, name="c")).status.verdict is Verdict.GOOD
    assert look(pod(0, 60), pod(0, doubt=LOST, name="c")).status.verdict is Verdict.BAD


def test_too_few_items_for_six_intervals_are_inconclusive_and_never_bad() -> None:
    judged = look(pod(40), seconds=61)
    assert (judged.status.verdict, judged.reason) == (Verdict.INCONCLUSIVE, Reason.ANALYSIS_INCONCLUSIVE)


def test_where_no_stable_pod_serves_there_is_nothing_to_agree_with() -> None:
    seen = Observation((pod(0),))
    assert judge(SPEC, begin(START), seen, None, START + timedelta(seconds=11)).status.verdict is Verdict.GOOD


@cache
def at_bound(agreed: int, disagreed: int) -> Verdict:
    """What is said of these items; the same counts come again and again."""
    return agreement(0.98, 50, Comparisons(agreed, disagreed), ()).verdict


def ends(share: float, rng: random.Random, limit: int = 2, per_interval: int = 60) -> Verdict:
    """How an analysis ends that looks at each interval: `limit` bad windows in a row, one good one, or no answer."""
    bad = agreed = compared = looks = 0
    while True:
        agreed += sum(rng.random() < share for _ in range(per_interval))
        compared += per_interval
        looks += 1
        said = at_bound(agreed, compared - agreed)
        if said is Verdict.GOOD or (said is Verdict.PENDING and looks == 6):
            return said
        if said is Verdict.BAD:
            bad, agreed, compared, looks = bad + 1, 0, 0, 0
            if bad == limit:
                return Verdict.BAD


@pytest.mark.parametrize(
    ("per_interval", "share", "verdict", "least"),
    [
        (60, 0.98, Verdict.BAD, 0.0),  # exactly on the bound: at most one false rollback in fifty
        (60, 0.99, Verdict.GOOD, 0.85),
        (60, 0.95, Verdict.GOOD, 0.0),
        (60, 0.90, Verdict.BAD, 0.95),
        (20, 0.98, Verdict.BAD, 0.0),  # a busy pod that compares few
        (20, 0.80, Verdict.BAD, 0.95),
    ],
)
def test_false_alarms_are_rare_and_wrong_models_are_found(
    per_interval: int, share: float, verdict: Verdict, least: float
) -> None:
    rng = random.Random(5)
    count = sum(ends(share, rng, per_interval=per_interval) is verdict for _ in range(400)) / 400
    assert (count >= least) if least else (count <= 0.02), count
