"""How much of each output's variance remains in a candidate's answers, and whether a channel or a decision has been lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from fettle.api.signature import Tensor
from fettle.api.text import percent
from fettle.api.vocabulary import AgreementMode
from fettle.optimizer.measure.agreement import FLOAT_NOISE, OutputProfile
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.variance import LEAST_ITEMS, Kept, Variance
from fettle.runtimes.base import Array, as_text
from fettle.store.comparison import Comparison, decisions

MOST_VALUES = 1000  # more different decisions than that are numbers, not classes


@dataclass(frozen=True)
class Remainder:
    """What remains. `kept`: the channel that keeps the least; None if no output has an informative one.

    `gone`: a sentence on what was lost, so that the candidate needs labels that support it; None if nothing was lost.
    """

    kept: Kept | None = None
    gone: str | None = None


class Remains:
    """Collects what remains of every compared output. `proved` names outputs whose decisions labels judge: their loss is known already.

    `own_tolerance`: the spec sets the tolerance, so only a dead channel counts as lost.
    """

    def __init__(
        self,
        outputs: Mapping[str, Tensor],
        profiles: Mapping[str, OutputProfile],
        rules: Mapping[str, Comparison],
        own_tolerance: bool = False,
        proved: Collection[str] = (),
    ) -> None:
        self._rules, self._own_tolerance, self._proved = rules, own_tolerance, proved
        self._variances: dict[str, Variance] = {}
        self._decided: dict[str, Decided] = {}
        for name, rule in rules.items():
            profile = profiles[name]
            if profile.floating and profile.scales.usable:
                apart = rule.mode == AgreementMode.ELEMENTWISE
                channels = profile.tolerances.channels if apart else ()
                _, noise = FLOAT_NOISE.get(profile.dtype, (0.0, 0.0))
                self._variances[name] = Variance(outputs[name], profile.scales, channels, noise, not apart)
            if rule.mode == AgreementMode.TOP_ONE or not profile.floating:
                self._decided[name] = Decided()

    def add(self, original: Answer, candidate: Answer) -> None:
        """Take the answers to one item into account."""
        for name, variance in self._variances.items():
            variance.add(original[name], candidate[name])
        for name, decided in self._decided.items():
            rule = self._rules[name]
            if original[name].shape == candidate[name].shape:
                decided.add(*(decisions(side[name], rule.axis, rule.threshold) for side in (original, candidate)))

    def remainder(self) -> Remainder:
        """What remains, after all items were added."""
        worst: Kept | None = None
        gone: str | None = None
        for name, variance in self._variances.items():
            least, deadest = variance.worst()
            if least is None or deadest is None:
                continue
            worst = least if worst is None or least.share < worst.share else worst
            if name not in self._proved:
                gone = gone or self._gone(name, least, deadest)
        for name, decided in self._decided.items():
            missing = decided.missing()
            if missing is not None and name not in self._proved:
                value, items = missing
                gone = gone or (
                    f"it never gives the answer {value!r} in output {name}, which the original gives for {items} items: agreement does "
                    "not show the loss of a rare answer; provide labels to measure what it costs"
                )
        return Remainder(worst, gone)

    def _gone(self, name: str, least: Kept, deadest: Kept) -> str | None:
        if deadest.dead:
            return (
                f"{deadest.place} hardly varies any more ({max(deadest.own, 0):.2g} of the original's variance over the items): it is "
                "dead, although the tolerance may hide this; quantize fewer operators, or provide labels to measure what that costs"
            )
        if self._rules[name].mode == AgreementMode.ELEMENTWISE and not self._own_tolerance and least.lost:
            left = percent(max(least.share, 0), 0)
            return (
                f"{left} of the variance of {least.place} over the items is preserved, at least half is required: its errors are as "
                "large as its signal; quantize fewer operators, provide labels, or set data.evaluation.agreement.atol"
            )
        return None


class Decided:
    """How often the original and the candidate make each decision. Fed with flat decisions."""

    def __init__(self) -> None:
        self._original: Counter[str | int | float | bool] = Counter()
        self._candidate: set[str | int | float | bool] = set()

    def add(self, original: Array, candidate: Array) -> None:
        """Take the decisions about one item into account."""
        if len(self._original) <= MOST_VALUES:
            self._original.update(_different(original))
            self._candidate.update(_different(candidate))

    def missing(self) -> tuple[str | int | float | bool, int] | None:
        """The original's most frequent decision that the candidate never makes, with its count, if it is too frequent for chance."""
        if len(self._original) > MOST_VALUES:
            return None
        for value, items in self._original.most_common():
            if items >= LEAST_ITEMS and value not in self._candidate:
                return value, items
        return None


def _different(values: Array) -> list[str | int | float | bool]:
    """The distinct values, texts as str."""
    if values.dtype.kind in "OSU":
        return list({as_text(value) for value in values.ravel().tolist()})
    different: list[str | int | float | bool] = np.unique(values).tolist()
    return different
