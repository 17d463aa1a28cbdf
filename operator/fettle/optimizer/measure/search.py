"""Which candidates are sorted out, which are certified, and when to stop: pure decisions between what is judged and what is timed.

Sorting out looks at the screening items and at a quick clock only. What certifies, the evaluation items, is asked of few:
fastest first, until one passes and a runner-up does, and of no more lossy ones than share the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fettle.api.text import rounded
from fettle.api.vocabulary import Objective

SLOWER = 1.5  # times the best in the quick clock: out
PASSING = 2  # a winner and a runner-up
MOST_TIMED = 4  # finalists that get their process starts, the published artifact not counted


@dataclass(frozen=True)
class Entrant:
    """A candidate after the screen and the quick clock.

    `lossy`: its answers must be proved. `cost` and `least_cost`: milliseconds per item, of its median block and of its best.
    `small_enough`: keeps the bound on size. `incumbent`: it is what is published now.
    """

    name: str
    lossy: bool
    bytes: int
    cost: float
    least_cost: float
    small_enough: bool = True
    incumbent: bool = False


@dataclass
class Field:
    """The entrants that go on, best first, and why each of the others does not."""

    entrants: list[Entrant] = field(default_factory=list)
    out: dict[str, str] = field(default_factory=dict)


def sort_out(entrants: Sequence[Entrant], objective: Objective) -> Field:
    """Drop those that are slower than 1.5 times the best even in their best block, unless the objective is Size.

    An exact candidate is held against exact ones only: nothing lossy has proved yet that it may be published.
    """
    found = Field()
    for one in entrants:
        rivals = [other for other in entrants if other.lossy <= one.lossy and other.small_enough >= one.small_enough]
        best = min(rivals, key=lambda other: other.cost)
        if objective == Objective.SIZE or one.incumbent or one.least_cost <= SLOWER * best.cost:
            found.entrants.append(one)
        else:
            found.out[one.name] = (
                f"slower than {SLOWER:g} x {best.name} in the 1 s timing pre-test: {_against(one, best)}"
            )
    found.entrants.sort(key=lambda one: _rank(one, objective))
    return found


def _rank(one: Entrant, objective: Objective) -> tuple[bool, bool, float]:
    """The published artifact first, for it is measured again in any case; then what can pass, by the objective."""
    return not one.incumbent, not one.small_enough, float(one.bytes) if objective == Objective.SIZE else one.cost


def _against(one: Entrant, best: Entrant) -> str:
    return f"{rounded(one.cost)} ms against {rounded(best.cost)} ms an item"


@dataclass(frozen=True)
class Certificate:
    """What the certifying items say. `spent`: it needed an interval, and so its share of the error."""

    passes: bool
    spent: bool


Certify = Callable[[Entrant, bool], Certificate]  # (entrant, whether a share of the error is left for it)
Time = Callable[[Sequence[Entrant]], Iterable[str]]  # names of those that keep every bound


@dataclass
class Finals:
    """Who was timed, who passed, how many shares of the error were spent, and why the others were not asked."""

    timed: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    spent: int = 0
    out: dict[str, str] = field(default_factory=dict)


def hold_finals(entrants: Sequence[Entrant], places: int, certify: Certify, time: Time) -> Finals:
    """Certify and time `entrants` in their order until a winner and a runner-up pass; the published artifact is neither.

    At most `places` of them are certified by an interval; what needs one later is not asked.
    """
    finals = Finals()
    waiting = list(entrants)
    by_name = {one.name: one for one in entrants}
    while waiting and _goes_on(finals, by_name):
        heat: list[Entrant] = []
        while waiting and _new(heat) + _new(by_name[name] for name in finals.passed) < PASSING:
            one = waiting.pop(0)
            if one.lossy and finals.spent >= places:
                finals.out[one.name] = f"the items certify {places} lossy candidates, and faster ones took those places"
                continue
            found = certify(one, finals.spent < places)
            finals.spent += found.spent
            if found.passes:
                heat.append(one)
        if heat:
            finals.timed += [one.name for one in heat]
            finals.passed += time(heat)
    passed = [by_name[name] for name in finals.passed]
    finals.out |= {one.name: _why_not_asked(one, passed) for one in waiting}
    return finals


def _new(entrants: Iterable[Entrant]) -> int:
    return sum(not one.incumbent for one in entrants)


def _goes_on(finals: Finals, by_name: Mapping[str, Entrant]) -> bool:
    passed, timed = (_new(by_name[name] for name in names) for names in (finals.passed, finals.timed))
    return passed < PASSING and timed < MOST_TIMED


def _why_not_asked(one: Entrant, passed: Sequence[Entrant]) -> str:
    if not passed:
        return f"{MOST_TIMED} candidates with less to do were timed, and none of them passed"
    names = " and ".join(other.name for other in passed)
    return f"not among the finalists: {names} pass; in the 1 s timing pre-test {_against(one, passed[0])}"
