"""Which candidates are rejected after the timing pre-test, which are evaluated and timed in full, and when to stop. Pure decisions.

The first rejection uses only the screening items and the timing pre-test. Few candidates are evaluated in full: fastest first, until a
winner and a runner-up satisfy every constraint, and no more lossy ones than may share the error probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fettle.api.text import joined, rounded
from fettle.api.vocabulary import Objective

SLOWER = 1.5  # a candidate that takes this many times as long as the best in the pre-test is rejected
ALIKE = 0.9  # an exact candidate, which may be smaller, stays if it is at least this many times as fast as the original
ENOUGH_PASSING = 2  # candidates that must satisfy every constraint: a winner and a runner-up
LATE = "not measured in full, because search.deadlineSeconds leaves no time for it: raise it"
MOST_TIMED = 4  # maximum number of finalists that are timed in full, without the published artifact


@dataclass(frozen=True)
class ScreenedCandidate:
    """A candidate after the screening and the timing pre-test.

    `lossy`: its accuracy has to be proved. `cost` and `least_cost`: milliseconds per item in its median block and in its best.
    `small_enough`: satisfies the size constraint. `incumbent`: it is published now. `computed`: the file and how it is computed; candidates with
    the same value differ only in batch, threads and streams, and give the same answers. `gain`: the speed-up over the original in its best
    round. `doubtful`: it lost more on the screening items than it may, though these are too few to be sure.
    """

    name: str
    lossy: bool
    bytes: int
    cost: float
    least_cost: float
    small_enough: bool = True
    incumbent: bool = False
    gain: float = math.inf
    doubtful: bool = False
    computed: tuple[str, ...] = ()


@dataclass
class Shortlist:
    """The remaining candidates, best first, and why each of the others was rejected."""

    candidates: list[ScreenedCandidate] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)


def sort_out(
    candidates: Sequence[ScreenedCandidate],
    objective: Objective,
    may_be_slower: bool = False,
    exhaustive: bool = False,
) -> Shortlist:
    """Reject candidates that take more than 1.5 times as long as the best even in their best block, or that are slower than the original, unless the
    objective is Size. An exhaustive search rejects nobody.

    An exact candidate is compared with exact ones only, because no lossy one has been proved yet, and none with a doubtful one, unless it is
    doubtful itself. `may_be_slower`: only a constraint on the speed-up decides.
    """
    shortlist = Shortlist()
    for candidate in candidates:
        rivals = [
            other
            for other in candidates
            if other.lossy <= candidate.lossy
            and other.doubtful <= candidate.doubtful
            and other.small_enough >= candidate.small_enough
        ]
        best = min(rivals, key=lambda other: other.cost)
        if objective == Objective.SIZE or candidate.incumbent or exhaustive:
            shortlist.candidates.append(candidate)
        elif candidate.gain < (1 if candidate.lossy else ALIKE) and not may_be_slower:
            shortlist.rejected[candidate.name] = (
                f"slower than the original in every round of the 1 s timing pre-test: at best {rounded(candidate.gain)} times as fast"
            )
        elif candidate.least_cost <= SLOWER * best.cost:
            shortlist.candidates.append(candidate)
        else:
            shortlist.rejected[candidate.name] = (
                f"took more than {SLOWER:g} times as long as {best.name} in the 1 s timing pre-test: {_times(candidate, best)}"
            )
    shortlist.candidates.sort(key=lambda candidate: _rank(candidate, objective))
    return shortlist


def _rank(candidate: ScreenedCandidate, objective: Objective) -> tuple[bool, bool, float]:
    """Sort key: the published artifact first, because it is measured in any case; then candidates of acceptable size, by the objective."""
    return (
        not candidate.incumbent,
        not candidate.small_enough,
        float(candidate.bytes) if objective == Objective.SIZE else candidate.cost,
    )


def _times(*candidates: ScreenedCandidate) -> str:
    """Their times in the timing pre-test: medians over its rounds, which differ a little from the medians over single runs in the tables."""
    times = joined(f"{candidate.name} {rounded(candidate.cost)} ms" for candidate in candidates)
    return f"{times} per item (median of the rounds)"


@dataclass(frozen=True)
class Certificate:
    """The result of a full evaluation. `spent`: it used an interval, and therefore a share of the error probability. `loses`: it fails because of its
    answers, so candidates with the same answers fail as well."""

    passes: bool
    spent: bool
    loses: bool = False


Certify = Callable[[ScreenedCandidate, bool], Certificate]  # (candidate, whether a share of the error is left for it)
# Returns the names of those that satisfy every constraint.
Time = Callable[[Sequence[ScreenedCandidate]], Iterable[str]]


@dataclass
class Finals:
    """Names of the timed candidates and of those that satisfied every constraint, the number of spent shares of the error probability, and why the
    others were not measured in full."""

    timed: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    spent: int = 0
    rejected: dict[str, str] = field(default_factory=dict)


@dataclass
class _Evaluation:
    """Evaluates candidates with an interval, at most `places` of the lossy ones, and notes in `finals` why others are not."""

    certify: Certify
    places: int
    exhaustive: bool
    finals: Finals
    # What a candidate computed that lost too much -> its name.
    missed: dict[tuple[str, ...], str] = field(default_factory=dict)

    def qualifies(self, candidate: ScreenedCandidate, behind: Sequence[ScreenedCandidate]) -> bool:
        """Whether the candidate is to be timed. `behind` are those that come after it: a doubtful one leaves its place to them."""
        finals = self.finals
        leaves = candidate.doubtful and not candidate.incumbent
        needed = sum(map(self._needs_place, behind)) if leaves else 0
        if candidate.lossy and finals.spent + needed >= self.places:
            others = "others lost less on the screening items" if needed else "faster ones were evaluated"
            finals.rejected[candidate.name] = (
                f"the evaluation items can prove the accuracy of at most {self.places} lossy candidates, and {others}: provide more items"
            )
            return False
        if candidate.computed in self.missed:
            other = self.missed[candidate.computed]
            finals.rejected[candidate.name] = (
                f"the same file in the same runtime and precision as {other}, which loses too much accuracy"
            )
            return False
        certificate = self.certify(candidate, finals.spent < self.places)
        finals.spent += certificate.spent
        if certificate.loses and not certificate.passes and not self.exhaustive and candidate.computed:
            self.missed[candidate.computed] = candidate.name
        return certificate.passes or (self.exhaustive and certificate.loses)

    def _needs_place(self, other: ScreenedCandidate) -> bool:
        """Whether a doubtful candidate leaves its place to `other`."""
        return other.lossy and not other.doubtful and other.computed not in self.missed


def hold_finals(
    candidates: Sequence[ScreenedCandidate],
    places: int,
    certify: Certify,
    time: Time,
    objective: Objective,
    exhaustive: bool = False,
    in_time: Callable[[], bool] = lambda: True,
) -> Finals:
    """Evaluate and time `candidates` in their order until a winner and a runner-up satisfy every constraint; the published artifact is neither.

    At most `places` of them are evaluated with an interval. Later ones that need an interval are skipped, and so are doubtful ones if the others
    need the places, and those with the same answers as one that failed. A candidate that is much slower than one that passes cannot be the
    runner-up: it is timed only if that one fails after all. An exhaustive search goes on to the last candidate as long as it is `in_time`, and
    times what loses too much accuracy as well.
    """
    finals = Finals()
    evaluation = _Evaluation(certify, places, exhaustive, finals)
    waiting = list(candidates)
    by_name = {candidate.name: candidate for candidate in candidates}
    while waiting and (in_time() if exhaustive else _goes_on(finals, by_name)):
        group: list[ScreenedCandidate] = []
        ahead = [] if exhaustive else [by_name[name] for name in finals.passed]
        while waiting and _new((*group, *ahead)) < ENOUGH_PASSING:
            if not exhaustive and _outrun(waiting[0], (*group, *ahead), objective):
                break
            candidate = waiting.pop(0)
            if evaluation.qualifies(candidate, waiting):
                group.append(candidate)
        if group:
            finals.timed += [candidate.name for candidate in group]
            finals.passed += time(group)
        elif ahead:
            break  # none of the remaining candidates could win
    passed = [by_name[name] for name in finals.passed]
    finals.rejected |= {
        candidate.name: LATE if exhaustive else _why_not_asked(candidate, passed) for candidate in waiting
    }
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
    return passed < ENOUGH_PASSING and timed < MOST_TIMED


def _why_not_asked(candidate: ScreenedCandidate, passed: Sequence[ScreenedCandidate]) -> str:
    if not passed:
        return f"not measured in full, because {MOST_TIMED} candidates were, and none of them passed"
    names = joined(other.name for other in passed)
    was, satisfy = ("was", "satisfies") if len(passed) == 1 else ("were", "satisfy")
    faster = all(other.cost < candidate.cost for other in passed)  # not so if the published artifact or size came first
    before = "faster in the 1 s timing pre-test" if faster else "measured first"
    times = _times(*passed, candidate)
    return f"not measured in full, because {names} {was} {before} and {satisfy} every constraint: {times}"
