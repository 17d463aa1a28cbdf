"""Which candidate is published, and what is said of every other one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.unit.plan.choose.figures import original, row

from fettle.api.bounds import Rules
from fettle.api.constraints import AccuracyConstraint, Constraints, LatencyConstraint, SizeConstraint, SpeedupConstraint
from fettle.api.measured import AgreementStatus
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.vocabulary import AgreementMode, CandidateState, Objective
from fettle.plan.run.choose import Choice, choose

DROP = Constraints(accuracy=AccuracyConstraint(max_drop=0.01))


def within(**bounds: Any) -> Constraints:
    """Constraints with the usual bound on accuracy, and others."""
    return DROP.model_copy(update=bounds)


def judge(
    rows: Sequence[CandidateStatus],
    constraints: Constraints = DROP,
    objective: Objective = Objective.LATENCY,
    *,
    generated: bool = False,
    incumbent: str | None = None,
) -> Choice:
    """The choice among `rows`."""
    rules = Rules(constraints=constraints, objective=objective, batch_size=1, exact_only=generated, alpha=0.05)
    return choose(rows, rules, incumbent)


def named(choice: Choice, name: str) -> CandidateStatus:
    """A row of the choice."""
    return next(one for one in choice.rows if one.name == name)


EXACT = row("float32-openvino", 1.5, exact=True)
INT8 = row("int8-openvino", 3.0, 0.001, size=300)

WINNERS: list[tuple[str, list[CandidateStatus], dict[str, Any], str | None]] = [
    ("the fastest that passes wins", [original(), EXACT, INT8], {}, "int8-openvino"),
    (
        "a fast one whose drop only may keep the bound does not pass",
        [original(), EXACT, row("int8-openvino", 3.0, (0.004, -0.004, 0.012))],
        {},
        "float32-openvino",
    ),
    ("an int8 model slower than the original is never published", [original(), row("int8", 0.8, 0.001)], {}, "original"),
    (
        "a lossy candidate that may be slower is not published",
        [original(), row("int8", (1.02, 0.97, 1.08), 0.001)],
        {},
        "original",
    ),
    (
        "among those that the clock cannot tell apart, the exact one wins",
        [row("int8", (3.0, 2.8, 3.2), 0.001), row("float32-openvino", 2.9, exact=True)],
        {},
        "float32-openvino",
    ),
    (
        "among equally fast lossy ones, the one that loses less wins",
        [row("int8-a", (3.0, 2.8, 3.2), 0.006), row("int8-b", 2.9, 0.001)],
        {},
        "int8-b",
    ),
    (
        "among equals the smaller wins",
        [row("float32-a", (2.0, 1.9, 2.1), exact=True, size=900), row("float32-b", 1.95, exact=True, size=800)],
        {},
        "float32-b",
    ),
    (
        "the published artifact stays where the new one is not better by more than the interval",
        [row("int8-new", (3.0, 2.8, 3.2), 0.001), row("int8-old", 2.85, 0.003, artifact="a" * 64)],
        {"incumbent": "a" * 64},
        "int8-old",
    ),
    (
        "the published artifact goes when another is clearly faster",
        [row("int8-new", 4.0, 0.001), row("int8-old", 2.85, 0.003, artifact="a" * 64)],
        {"incumbent": "a" * 64},
        "int8-new",
    ),
    (
        "the published artifact goes when it keeps a constraint no more",
        [row("int8-new", 3.0, 0.001), row("int8-old", 3.5, 0.03, artifact="a" * 64)],
        {"incumbent": "a" * 64},
        "int8-new",
    ),
    ("objective Size prefers the smallest, be it slow", [original(), EXACT, row("int8", 0.7, 0.001, size=200)],
     {"objective": Objective.SIZE}, "int8"),
    ("an absolute bound alone is enforced too", [original(), EXACT],
     {"constraints": within(latency=LatencyConstraint(max_milliseconds=5.5, percentile=99))}, "float32-openvino"),
    ("a percentile that was not claimed is not a pass", [row("int8", 3.0, 0.001, percentiles={"p50": 1.0}, runs=40), EXACT],
     {"constraints": within(latency=LatencyConstraint(max_milliseconds=50))}, "float32-openvino"),
    ("a bound on size is enforced", [EXACT, row("int8", 1.2, 0.001, size=300)],
     {"constraints": within(size=SizeConstraint(max_bytes=500))}, "int8"),
    ("the lower end of the speed-up keeps the bound, not the point", [row("a", (1.5, 1.1, 1.9), exact=True), row("b", 1.3, exact=True)],
     {"constraints": within(speedup=SpeedupConstraint(min=1.2))}, "b"),
    ("slower is fine where the user says so", [row("int8", 0.9, 0.001)],
     {"constraints": within(speedup=SpeedupConstraint(min=0.5))}, "int8"),
    ("without evaluation data only exact candidates pass", [original(), row("int8", 3.0, 0.0), EXACT], {"generated": True}, "float32-openvino"),
    ("a float32 candidate whose answers differ must be proved like a lossy one",
     [original(), row("float32-openvino", 4.0, (0.02, 0.0, 0.04), exact=False)], {}, "original"),
    ("a candidate without an accuracy figure does not pass", [row("int8", 3.0, None), EXACT], {}, "float32-openvino"),
    ("a candidate without a clock does not pass", [row("float32-openvino", None, exact=True), original()], {}, "original"),
    ("a candidate without an artifact does not pass", [row("int8", 3.0, 0.001, artifact=None), EXACT], {}, "float32-openvino"),
    ("a candidate without a size does not pass", [row("int8", 3.0, 0.001, size=None), EXACT], {}, "float32-openvino"),
    ("failed and rejected rows are never chosen",
     [row("int8", 9.0, 0.0, state=CandidateState.FAILED), row("bf16", 9.0, 0.0, state=CandidateState.REJECTED), EXACT], {}, "float32-openvino"),
    ("when nothing passes, nothing wins", [row("int8", 3.0, 0.03)], {}, None),
    ("no rows, no winner", [], {}, None),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "rows", "how", "winner"), WINNERS, ids=[line[0] for line in WINNERS])
def test_the_winner(sentence: str, rows: list[CandidateStatus], how: dict[str, Any], winner: str | None) -> None:
    choice = judge(rows, **how)
    assert (choice.winner.name if choice.winner else None) == winner
    assert [one.name for one in choice.rows if one.state == CandidateState.SELECTED] == ([winner] if winner else [])
    assert (choice.miss is None) == (winner is not None)


LOSERS: list[tuple[str, CandidateStatus, dict[str, Any], Reason, list[str]]] = [
    ("accuracy", row("int8", 3.0, (0.004, -0.004, 0.012)), {}, Reason.CONSTRAINTS_NOT_MET,
     ["0.004 [-0.004, 0.012]", "0.01"]),
    ("accuracy that more items would prove", row("int8", 3.0, (0.004, -0.004, 0.012), flips=(2, 1)), {},
     Reason.CONSTRAINTS_NOT_MET, ["items and the same flips it would pass"]),
    ("accuracy that more items of which the original is sure would prove",
     row("int8", 3.0, (0.004, -0.004, 0.012), flips=(2, 0)).model_copy(
         update={"agreement": AgreementStatus(value=0.99, low=0.98, high=1, mode=AgreementMode.TOP_ONE, unsure=20)}), {},
     Reason.CONSTRAINTS_NOT_MET, ["items of which the original is sure and the same flips it would pass"]),
    ("accuracy that no number of items proves", row("int8", 3.0, (0.03, 0.02, 0.04), flips=(20, 1)), {},
     Reason.CONSTRAINTS_NOT_MET, ["0.03 [0.02, 0.04]"]),
    ("evaluation data", row("int8", 3.0, 0.0), {"generated": True}, Reason.EVALUATION_DATA_MISSING, ["data.evaluation"]),
    ("latency", row("int8", 3.0, 0.001), {"constraints": within(latency=LatencyConstraint(max_milliseconds=2))},
     Reason.CONSTRAINTS_NOT_MET, ["p99 at batch 1 is 2.6 ms", "2 ms"]),
    ("unclaimed percentile", row("int8", 3.0, 0.001, percentiles={"p50": 1.0}, runs=40),
     {"constraints": within(latency=LatencyConstraint(max_milliseconds=2))}, Reason.CONSTRAINTS_NOT_MET,
     ["p99", "40 runs", "367"]),
    ("another batch size", row("int8", 3.0, 0.001, batch_size=8),
     {"constraints": within(latency=LatencyConstraint(max_milliseconds=2))}, Reason.CONSTRAINTS_NOT_MET, ["0 runs"]),
    ("size", row("int8", 3.0, 0.001), {"constraints": within(size=SizeConstraint(max_bytes=500))},
     Reason.CONSTRAINTS_NOT_MET, ["1000 bytes", "500"]),
    ("speed-up", row("int8", (1.5, 1.1, 1.9), 0.001), {"constraints": within(speedup=SpeedupConstraint(min=1.2))},
     Reason.CONSTRAINTS_NOT_MET, ["1.5 [1.1, 1.9]", "1.2"]),
    ("slower", row("float32-openvino", 0.8, exact=True), {}, Reason.NOT_FASTER, ["slower than the original"]),
    ("two at once", row("int8", 0.8, 0.03), {}, Reason.CONSTRAINTS_NOT_MET, ["accuracy drop", "speed-up 0.8"]),
]  # fmt: skip


@pytest.mark.parametrize(("bound", "loser", "how", "reason", "words"), LOSERS, ids=[line[0] for line in LOSERS])
def test_a_row_that_misses_a_bound_names_bound_and_value(
    bound: str, loser: CandidateStatus, how: dict[str, Any], reason: Reason, words: list[str]
) -> None:
    choice = judge([loser], **how)
    (told,) = choice.rows
    assert (told.state, told.reason) == (CandidateState.REJECTED, reason)
    for word in words:
        assert word in (told.message or "")


def test_the_nearest_miss_is_named_with_its_distance() -> None:
    choice = judge([row("int8-far", 3.0, 0.5), row("int8-near", 2.0, (0.009, 0.006, 0.012))])
    assert choice.miss is not None
    assert choice.miss.reason == Reason.CONSTRAINTS_NOT_MET
    assert "nearest: int8-near" in choice.miss.message
    assert "(missed by 20 %); to accept it, raise constraints.accuracy.maxDrop" in choice.miss.message


def test_of_a_bound_that_is_out_of_reach_no_percentage_is_told_but_how_to_lower_it() -> None:
    choice = judge([row("int8", (3.9, 3.8, 4.0), 0.001)], constraints=within(speedup=SpeedupConstraint(min=300)))
    assert choice.miss is not None
    told = "nearest: int8: speed-up 3.9 [3.8, 4] must be at least 300 at its lower end; to accept it, lower constraints.speedup.min"
    assert told in choice.miss.message
    assert "missed by" not in choice.miss.message


def test_a_missing_figure_is_farther_than_any_miss() -> None:
    choice = judge([row("int8-unknown", 3.0, None), row("int8-bad", 2.0, 0.9)])
    assert choice.miss is not None
    assert "nearest: int8-bad" in choice.miss.message


def test_too_few_items_are_named_when_nothing_passes() -> None:
    small = row(
        "int8",
        state=CandidateState.REJECTED,
        reason=Reason.EVALUATION_TOO_SMALL,
        message="100 evaluation items cannot prove a drop of 0.01: 381 are needed",
    )
    choice = judge([small, row("float32-openvino", 0.8, exact=True)])
    assert choice.miss is not None
    assert "381 are needed" in choice.miss.message


def test_when_nothing_was_measured_the_first_reason_is_told() -> None:
    failed = row("int8", state=CandidateState.FAILED, reason=Reason.OUT_OF_MEMORY, message="killed at 2 GiB")
    choice = judge([failed])
    assert choice.miss is not None
    assert "int8: killed at 2 GiB" in choice.miss.message


PREFERENCES: list[tuple[str, CandidateStatus, CandidateStatus, Objective, str]] = [
    ("slower", EXACT, INT8, Objective.LATENCY, "int8-openvino is faster (3 [2.91, 3.09] times as fast as the original, against 1.5 [1.46, 1.54])"),
    ("not shown to be faster, whatever the medians say", row("a", (0.99, 0.92, 1.04), exact=True, percentiles={"p50": 1.0}), original(),
     Objective.LATENCY, "not shown to be faster: 0.99 [0.92, 1.04] times as fast as the original; the original is kept"),
    ("lossy among equals", row("int8", (3.0, 2.8, 3.2), 0.001), row("float32-openvino", 2.9, exact=True),
     Objective.LATENCY, "gives the same answers as the original"),
    ("loses more among equals", row("int8-a", (3.0, 2.8, 3.2), 0.006), row("int8-b", 2.9, 0.001), Objective.LATENCY, "loses less"),
    ("larger among equals", row("f-a", (2.0, 1.9, 2.1), exact=True), row("f-b", 1.95, exact=True, size=1), Objective.LATENCY, "smaller"),
    ("larger", EXACT, INT8, Objective.SIZE, "int8-openvino is smaller: 300 bytes against 1000"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "loser", "winner", "objective", "words"), PREFERENCES, ids=[p[0] for p in PREFERENCES])
def test_a_row_that_passes_but_loses_says_to_whom_and_why(
    why: str, loser: CandidateStatus, winner: CandidateStatus, objective: Objective, words: str
) -> None:
    choice = judge([loser, winner], objective=objective)
    told = named(choice, loser.name)
    assert (told.state, told.reason) == (CandidateState.MEASURED, Reason.NOT_PREFERRED)
    assert words in (told.message or "")


def unstable(name: str, speed: tuple[float, float, float] | None, drop: float = 0.001) -> CandidateStatus:
    """A row whose clock is known badly only, as the measurement says it."""
    found = row(name, speed, drop, reason=Reason.MEASUREMENT_UNSTABLE, message="known to 60% only")
    return found.model_copy(update={"state": CandidateState.REJECTED})


@pytest.mark.parametrize(
    ("rows", "objective", "message"),
    [
        ([original(), INT8], Objective.LATENCY, "the best latency of all candidates"),
        ([original(), INT8], Objective.SIZE, "the best size of all candidates"),
        (
            [EXACT, row("int8", 1.52, 0.001)],
            Objective.LATENCY,
            "within the interval of the best latency of all candidates",
        ),
    ],
)
def test_the_winner_says_why_it_was_selected(rows: list[CandidateStatus], objective: Objective, message: str) -> None:
    winner = judge(rows, objective=objective).winner
    assert winner is not None
    assert winner.message == f"selected: {message} that satisfy every constraint"


def test_a_gain_that_is_sure_is_taken_though_its_size_is_not() -> None:
    choice = judge([original(), unstable("int8", (7.0, 4.0, 15.0))])
    assert choice.winner is not None
    assert choice.winner.name == "int8"
    assert choice.winner.reason == Reason.MEASUREMENT_UNSTABLE, "the claim says how good it is"


def test_a_loser_that_nobody_could_time_is_not_called_slower() -> None:
    choice = judge([row("sure", 3.0, 0.001), unstable("lucky", (9.0, 2.0, 20.0))])
    lucky = next(one for one in choice.rows if one.name == "lucky")
    assert (lucky.state, lucky.reason) == (CandidateState.REJECTED, Reason.MEASUREMENT_UNSTABLE)
    assert lucky.message == "known to 60% only"


UNSTABLE: list[tuple[str, list[CandidateStatus], str]] = [
    ("the lucky point of a wide interval wins nothing", [row("sure", 3.0, 0.001), unstable("lucky", (9.0, 2.0, 20.0))], "sure"),
    ("what may be slower is not published", [original(), unstable("int8", (2.0, 0.7, 4.0))], "original"),
    ("a clock that says nothing is no gain", [original(), unstable("int8", None)], "original"),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "rows", "winner"), UNSTABLE, ids=[line[0] for line in UNSTABLE])
def test_an_unstable_clock(sentence: str, rows: list[CandidateStatus], winner: str) -> None:
    choice = judge(rows)
    assert choice.winner is not None
    assert choice.winner.name == winner


def test_rows_keep_their_order_and_long_messages_are_cut() -> None:
    rows = [row(name, 3.0, 0.5 + number / 100) for number, name in enumerate(["c", "a", "b"])]
    choice = judge(rows)
    assert [one.name for one in choice.rows] == ["c", "a", "b"]
    assert all(len(one.message or "") <= 512 for one in choice.rows)
