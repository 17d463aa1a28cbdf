"""The choice among the measured candidates of one target: those that satisfy the constraints, the Pareto front, and the objective.

If no candidate satisfies the constraints, there is no winner, and the message names the nearest miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fettle.api.bounds import ORIGINAL, UNMEASURED, Miss, Rules, gain, is_exact, is_unsteady, misses, span
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.text import clip, joined, percent
from fettle.api.vocabulary import CandidateState, Objective
from fettle.plan.run.planned import Finding

FAR = 1.0  # a distance up to which it is told in percent: beyond twice the bound, the two figures say more


@dataclass(frozen=True)
class Choice:
    """Every candidate with its verdict, in the given order; the winner, or why there is none."""

    rows: tuple[CandidateStatus, ...]
    winner: CandidateStatus | None
    miss: Finding | None = None


@dataclass(frozen=True)
class _Score:
    """The figures by which candidates are compared; `speed` is the speed-up, `drop` the unfavorable end of the accuracy drop."""

    row: CandidateStatus
    speed: float
    slowest: float
    bytes: float
    drop: float
    exact: bool


def choose(rows: Sequence[CandidateStatus], rules: Rules, incumbent: str | None = None) -> Choice:
    """Judge the rows that have figures; the others stay as they are. `incumbent` is the digest of the artifact that is published now.

    The incumbent stays unless another candidate is better by more than the interval.
    """
    measured = [row for row in rows if _has_figures(row)]
    misses_by_name = {row.name: _misses(row, rules) for row in measured}
    failed = {name: bounds for name, bounds in misses_by_name.items() if bounds}
    passing = [_score(row) for row in measured if row.name not in failed]
    if not passing:
        rejected = tuple(_rejected(row, failed) for row in rows)
        return Choice(rejected, None, _nearest(rejected, failed))
    tied = _tied(passing, rules.objective)
    winner = _prefer(tied, incumbent)
    # A candidate with an unstable measurement is not known to be slower, so it keeps that message.
    losers = {
        score.row.name: _why_not(score, winner, tied, rules)
        for score in passing
        if score is not winner and not is_unsteady(score.row)
    }
    selected = winner.row.model_copy(
        update={"state": CandidateState.SELECTED, "message": winner.row.message or _why(winner, tied, rules, incumbent)}
    )
    judged = [_rejected(row, failed) for row in rows]
    judged = [selected if row.name == selected.name else _found(row, losers.get(row.name)) for row in judged]
    return Choice(tuple(judged), selected)


def _has_figures(row: CandidateStatus) -> bool:
    """Whether there is something to judge. If only the timing is unstable, the candidate is judged by the lower end of its speed-up."""
    return row.state == CandidateState.MEASURED or (
        row.state == CandidateState.REJECTED and is_unsteady(row) and row.speedup is not None
    )


def _misses(row: CandidateStatus, rules: Rules) -> tuple[Miss, ...]:
    missed = misses(row, rules)
    if not missed and row.artifact is None:
        return (Miss(Reason.CONSTRAINTS_NOT_MET, "it produced no artifact to publish", UNMEASURED),)
    return missed


def _score(row: CandidateStatus) -> _Score:
    exact = is_exact(row)
    speedup = row.speedup
    slowest = speedup.low if speedup is not None else 1.0
    return _Score(
        row=row,
        # The point estimate of a wide interval is luck: use its lower end.
        speed=speedup.value if speedup is not None and not is_unsteady(row) else slowest,
        slowest=slowest,
        bytes=row.bytes if row.bytes is not None else float("inf"),
        # A gain in accuracy is not a reason to prefer a candidate: it is mostly noise.
        drop=0.0 if exact or row.accuracy_drop is None else max(row.accuracy_drop.high, 0.0),
        exact=exact,
    )


def _dominates(score: _Score, other: _Score) -> bool:
    """Whether `score` is at least as good as `other` in every figure and better in at least one."""
    merits = (score.speed, -score.bytes, -score.drop, score.exact)
    other_merits = (other.speed, -other.bytes, -other.drop, other.exact)
    return merits != other_merits and all(left >= right for left, right in zip(merits, other_merits, strict=True))


def _front(passing: Sequence[_Score]) -> list[_Score]:
    return [score for score in passing if not any(_dominates(other, score) for other in passing)]


def _tied(passing: Sequence[_Score], objective: Objective) -> list[_Score]:
    """The candidates that are equal to the best by the objective: within the interval of the fastest, or of the same size."""
    if objective == Objective.SIZE:
        smallest = min(score.bytes for score in passing)
        return [score for score in passing if score.bytes == smallest]
    fastest = max(passing, key=lambda score: score.speed)
    return [score for score in passing if score.speed >= fastest.slowest]


def _prefer(tied: Sequence[_Score], incumbent: str | None) -> _Score:
    """The preferred one of equal candidates: the incumbent, then by exactness, drop, size, speed and the order of the plan."""
    kept = next((score for score in tied if incumbent is not None and score.row.artifact == incumbent), None)
    if kept is not None:
        return kept
    return min(_front(tied), key=lambda score: (not score.exact, score.drop, score.bytes, -score.speed))


def _why(winner: _Score, tied: Sequence[_Score], rules: Rules, incumbent: str | None) -> str:
    """The message of the winner: why it was selected, or why a published artifact stays although other candidates are equally good."""
    others = [score.row.name for score in tied if score is not winner]
    if winner.row.artifact != incumbent or not others:
        tie = "within the interval of " if others and rules.objective != Objective.SIZE else ""
        return f"selected: {tie}the best {rules.objective.lower()} of all candidates that satisfy every constraint"
    are = f"{', '.join(others)} {'is' if len(others) == 1 else 'are'}"
    return clip(f"it was already published and is kept, because {are} not faster by more than the interval")


def _why_not(loser: _Score, winner: _Score, tied: Sequence[_Score], rules: Rules) -> Finding:
    name = winner.row.name
    times = _speeds(loser.row, winner.row)
    if rules.objective == Objective.SIZE and loser.bytes > winner.bytes:
        text = f"{name} is smaller: {winner.bytes:.0f} bytes against {loser.bytes:.0f}"
    elif loser not in tied and name == ORIGINAL:
        text = f"not shown to be faster: {gain(loser.row)}; the original is kept"
    elif loser not in tied:
        text = f"{name} is faster{times}"
    elif winner.exact and not loser.exact:
        text = f"{name} is equally good within the interval, and gives the same answers as the original{times}"
    elif winner.drop < loser.drop:
        text = f"{name} is equally good within the interval, and loses less accuracy{times}"
    elif winner.bytes < loser.bytes:
        text = f"{name} is equally good within the interval, and smaller{times}"
    else:
        text = f"{name} is equally good within the interval{times}"
    return Finding(Reason.NOT_PREFERRED, text)


def _speeds(loser: CandidateStatus, winner: CandidateStatus) -> str:
    """' (3.75 [3.68, 3.81] times as fast as the original, against 3.66 [3.58, 3.74])': what decided, paired by round as medians are not."""
    against = f", against {span(loser.speedup)}" if loser.speedup is not None and loser.name != ORIGINAL else ""
    if winner.name == ORIGINAL or not gain(winner):
        return f" ({gain(loser)})" if against else ""
    return f" ({gain(winner)}{against})"


def _rejected(row: CandidateStatus, failed: dict[str, tuple[Miss, ...]]) -> CandidateStatus:
    if row.name not in failed:
        return row
    bounds = failed[row.name]
    message = clip("; ".join(miss.message for miss in bounds))
    return row.model_copy(update={"state": CandidateState.REJECTED, "reason": bounds[0].reason, "message": message})


def _found(row: CandidateStatus, finding: Finding | None) -> CandidateStatus:
    if finding is None:
        return row
    update = {"state": CandidateState.MEASURED, "reason": finding.reason, "message": clip(finding.message)}
    return row.model_copy(update=update)


def _nearest(rows: Sequence[CandidateStatus], failed: dict[str, tuple[Miss, ...]]) -> Finding:
    """Why no candidate satisfies the constraints: the one that came nearest, and by how much it missed."""
    if failed:
        name, missed = min(failed.items(), key=lambda item: max(miss.distance for miss in item[1]))
        worst = max(missed, key=lambda miss: miss.distance)
        by = f" (missed by {percent(worst.distance, 0)})" if worst.distance <= FAR else ""
        texts = "; ".join(miss.message for miss in missed)
        advice = [miss.advice for miss in missed if miss.advice]
        accept = f"; to accept it, {joined(advice)}" if len(advice) == len(missed) else ""
        message = f"none of {len(rows)} candidates satisfies every constraint; nearest: {name}: {texts}{by}{accept}"
    else:
        first = next((row for row in rows if row.message), None)
        example = f"; {first.name}: {first.message}" if first is not None else ""
        message = f"none of {len(rows)} candidates could be measured{example}"
    small = next((row for row in rows if row.reason == Reason.EVALUATION_TOO_SMALL), None)
    if small is not None and small.message and small.message not in message:
        message += f". {small.name}: {small.message}"
    return Finding(Reason.CONSTRAINTS_NOT_MET, message)
