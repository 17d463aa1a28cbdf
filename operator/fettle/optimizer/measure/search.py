"""Which candidates are sorted out, which are certified, and when to stop: pure decisions between what is judged and what is timed.

Sorting out looks at the screening items and at a quick clock only. What certifies, the evaluation items, is asked of few:
fastest first, until one passes and a runner-up does, and of no more lossy ones than share the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fettle.api.text import rounded
from fettle.api.vocabulary import Objective

SLOWER = 1.5  # times the best in the quick clock: out
ALIKE = 0.9  # times as fast as the original: what is exact, and may be smaller, stays up to here
PASSING = 2  # a winner and a runner-up that could have won
MOST_TIMED = 4  # finalists that get their process starts, the published artifact not counted


@dataclass(frozen=True)
class ScreenedCandidate:
    """A candidate after the screen and the quick clock.

    `lossy`: its answers must be proved. `cost` and `least_cost`: milliseconds per item, of its median block and of its best.
    `small_enough`: keeps the bound on size. `incumbent`: it is what is published now. `computed`: which file is computed how; candidates
    that have it in common differ in batch, threads and streams, and answer alike. `gain`: how many times as fast as the original it was in
    its best round.
    """

    name: str
    lossy: bool
    bytes: int
    cost: float
    least_cost: float
    small_enough: bool = True
    incumbent: bool = False
    gain: float = math.inf
    computed: tuple[str, ...] = ()


@dataclass
class Shortlist:
    """The candidates that go on, best first, and why each of the others does not."""

    candidates: list[ScreenedCandidate] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)


def sort_out(candidates: Sequence[ScreenedCandidate], objective: Objective, may_be_slower: bool = False) -> Shortlist:
    """Drop those that are slower than 1.5 times the best even in their best block, or slower than the original, unless the objective is Size.

    An exact candidate is held against exact ones only: nothing lossy has proved yet that it may be published. `may_be_slower`: a bound on
    the speed-up decides alone.
    """
    shortlist = Shortlist()
    for candidate in candidates:
        rivals = [
            other
            for other in candidates
            if other.lossy <= candidate.lossy and other.small_enough >= candidate.small_enough
        ]
        best = min(rivals, key=lambda other: other.cost)
        if objective == Objective.SIZE or candidate.incumbent:
            shortlist.candidates.append(candidate)
        elif candidate.gain < (1 if candidate.lossy else ALIKE) and not may_be_slower:
            shortlist.rejected[candidate.name] = (
                f"slower than the original in every round of the 1 s timing pre-test: {rounded(candidate.gain)} times as fast in the best of them"
            )
        elif candidate.least_cost <= SLOWER * best.cost:
            shortlist.candidates.append(candidate)
        else:
            shortlist.rejected[candidate.name] = (
                f"slower than {SLOWER:g} x {best.name} in the 1 s timing pre-test: {_against(candidate, best)}"
            )
    shortlist.candidates.sort(key=lambda candidate: _rank(candidate, objective))
    return shortlist


def _rank(candidate: ScreenedCandidate, objective: Objective) -> tuple[bool, bool, float]:
    """The published artifact first, for it is measured again in any case; then what can pass, by the objective."""
    return (
        not candidate.incumbent,
        not candidate.small_enough,
        float(candidate.bytes) if objective == Objective.SIZE else candidate.cost,
    )


def _against(candidate: ScreenedCandidate, best: ScreenedCandidate) -> str:
    return f"{rounded(candidate.cost)} ms per item, against {rounded(best.cost)} ms"


@dataclass(frozen=True)
class Certificate:
    """What the certifying items say. `spent`: it needed an interval, and so its share of the error. `loses`: its answers are why it does not
    pass, so that whatever gives the same answers does not either."""

    passes: bool
    spent: bool
    loses: bool = False


Certify = Callable[[ScreenedCandidate, bool], Certificate]  # (candidate, whether a share of the error is left for it)
Time = Callable[[Sequence[ScreenedCandidate]], Iterable[str]]  # names of those that keep every bound


@dataclass
class Finals:
    """Who was timed, who passed, how many shares of the error were spent, and why the others were not asked."""

    timed: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    spent: int = 0
    rejected: dict[str, str] = field(default_factory=dict)


def hold_finals(
    candidates: Sequence[ScreenedCandidate], places: int, certify: Certify, time: Time, objective: Objective
) -> Finals:
    """Certify and time `candidates` in their order until a winner and a runner-up pass; the published artifact is neither.

    At most `places` of them are certified by an interval; what needs one later is not asked, and neither is what answers as one that missed.
    What is much slower than one that passes is no runner-up: it is timed only if that one does not pass after all.
    """
    finals = Finals()
    missed: dict[tuple[str, ...], str] = {}
    waiting = list(candidates)
    by_name = {candidate.name: candidate for candidate in candidates}
    while waiting and _goes_on(finals, by_name):
        group: list[ScreenedCandidate] = []
        ahead = [by_name[name] for name in finals.passed]
        while waiting and _new((*group, *ahead)) < PASSING and not _outrun(waiting[0], (*group, *ahead), objective):
            candidate = waiting.pop(0)
            if candidate.lossy and finals.spent >= places:
                finals.rejected[candidate.name] = (
                    f"the evaluation items can prove the accuracy of at most {places} lossy candidates, and faster ones were evaluated: "
                    "provide more items"
                )
                continue
            if candidate.computed in missed:
                other = missed[candidate.computed]
                finals.rejected[candidate.name] = (
                    f"the same file in the same runtime and precision as {other}, which loses too much accuracy"
                )
                continue
            certificate = certify(candidate, finals.spent < places)
            finals.spent += certificate.spent
            if certificate.passes:
                group.append(candidate)
            elif certificate.loses and candidate.computed:
                missed[candidate.computed] = candidate.name
        if group:
            finals.timed += [candidate.name for candidate in group]
            finals.passed += time(group)
        elif ahead:
            break  # nobody who waits could win
    passed = [by_name[name] for name in finals.passed]
    finals.rejected |= {candidate.name: _why_not_asked(candidate, passed) for candidate in waiting}
    return finals


def _outrun(candidate: ScreenedCandidate, rivals: Iterable[ScreenedCandidate], objective: Objective) -> bool:
    """Whether one of `rivals` is so much faster that `candidate` could not win: by the rule of `sort_out`."""
    costs = [rival.cost for rival in rivals if not rival.incumbent]
    slower = bool(costs) and candidate.least_cost > SLOWER * min(costs)
    return slower and objective != Objective.SIZE and not candidate.incumbent


def _new(candidates: Iterable[ScreenedCandidate]) -> int:
    return sum(not candidate.incumbent for candidate in candidates)


def _goes_on(finals: Finals, by_name: Mapping[str, ScreenedCandidate]) -> bool:
    passed, timed = (_new(by_name[name] for name in names) for names in (finals.passed, finals.timed))
    return passed < PASSING and timed < MOST_TIMED


def _why_not_asked(candidate: ScreenedCandidate, passed: Sequence[ScreenedCandidate]) -> str:
    if not passed:
        return f"not measured in full, because {MOST_TIMED} candidates were, and none of them passed"
    names = " and ".join(other.name for other in passed)
    satisfy = "satisfies" if len(passed) == 1 else "satisfy"
    reason = f"not measured in full, because {names} already {satisfy} every constraint"
    return f"{reason}; in the 1 s timing pre-test {_against(candidate, passed[0])}"
