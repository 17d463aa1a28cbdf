"""Whether items can tell a candidate that ignores its input from a good one, where agreement with the original is all that is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from fettle.api.vocabulary import AgreementMode
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.variance import LEAST_ITEMS
from fettle.store.comparison import Comparison, agreeing

TRIED = 8  # different answers of the original that might be given to every item


def enough_for_all(
    rules: Mapping[str, Comparison], answers: Callable[[], Iterable[Answer]], counted: int, which: str
) -> str | None:
    """Why one answer to each of the `counted` items would agree with the original's, as text; None if it differs from enough of them.

    One item of 1000 among others below 1 makes a tolerance within which all of these are the same.
    """
    least = min(LEAST_ITEMS, counted / 3)  # of few items, fewer are enough: they prove nothing for another reason
    others = _fewest_others(rules, answers, least)
    if others >= least:
        return _in_an_output(rules, answers, least, f"{counted} {which}")
    same = f"the original gives the same answer for all {counted} {which}"
    alike = f"one answer agrees with the original's to all but {others} of {counted} {which}"
    advice = "so a candidate that ignores its input would pass: provide items with different answers"
    return f"{alike if others else same}, {advice}"


def _in_an_output(
    rules: Mapping[str, Comparison], answers: Callable[[], Iterable[Answer]], least: float, counted: str
) -> str | None:
    """Why the numbers of one of several outputs prove nothing of it; None for each that differs from enough items, or from none: it is constant."""
    numbers = [name for name, rule in rules.items() if rule.mode == AgreementMode.ELEMENTWISE and len(rules) > 1]
    for name in numbers:
        others = _fewest_others({name: rules[name]}, answers, least)
        if 0 < others < least:
            return (
                f"in output {name}, one answer agrees with the original's to all but {others} of {counted}, so a candidate that ignores its input "
                "there would pass: provide items with different answers, or name the outputs that count in data.evaluation.agreement.outputs"
            )
    return None


def _fewest_others(rules: Mapping[str, Comparison], answers: Callable[[], Iterable[Answer]], enough: float) -> int:
    """The number of items whose answers differ from one that is given to all, counted no further than `enough`."""
    differing = [0] * TRIED
    tried = _different(rules, answers())
    for answer in answers():
        for place, one in enumerate(tried):
            if differing[place] < enough:
                differing[place] += not _agree(rules, answer, one)
        if all(count >= enough for count in differing[: len(tried)]):
            break
    return min(differing[: len(tried)], default=0)


def _different(rules: Mapping[str, Comparison], answers: Iterable[Answer]) -> list[Answer]:
    """The first answers that differ from each other."""
    tried: list[Answer] = []
    fresh = (answer for answer in answers if not any(_agree(rules, answer, one) for one in tried))
    for answer in islice(fresh, TRIED):
        tried.append(answer)
    return tried


def _agree(rules: Mapping[str, Comparison], original: Answer, other: Answer) -> bool:
    """Whether two answers are the same in what counts."""
    return all((agreeing(rules, original, other) or {}).values())
