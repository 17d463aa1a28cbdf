"""`agreement.unsure: Skip`: which items do not count in the agreement with the original, because the original itself is unsure of its answer.

What an unsure item is, and that it does not count, is the rule of a rollout's analysis (`store/comparison.py: agreeing`, `sureness.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fettle.optimizer.measure.agreement import OutputProfile
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.sureness import Sureness, least_margin
from fettle.optimizer.statistics import MINIMUM_GROUPS
from fettle.store.comparison import Comparison, agreeing

LEAST_SURE = 0.25  # of all items, on which the original must be sure: several outputs, each sure of half, may leave next to nothing


@dataclass(frozen=True)
class Skipped:
    """The rules with the margins above which the original is sure, and the number of items that they skip."""

    rules: dict[str, Comparison]
    items: int
    of: int

    @property
    def told(self) -> str:
        """How many items do not count, and by which margins, as text."""
        least = ", ".join(f"{rule.margin:.2g} in {name}" for name, rule in self.rules.items() if rule.margin > 0)
        return (
            f"{self.items} of {self.of} items do not count in the agreement, because the original is unsure of its answer "
            f"(agreement.unsure: Skip; least margin of a decision that counts: {least or 'none'})"
        )

    @property
    def too_many(self) -> str | None:
        """Why the agreement on the remaining items proves nothing: there are too few of them. None if there are enough."""
        sure, least = self.of - self.items, max(MINIMUM_GROUPS, math.ceil(LEAST_SURE * self.of))
        if not self.items or sure >= least:
            return None
        return (
            f"the original is sure of its answers to {sure} of {self.of} items, and with agreement.unsure: Skip at least {least} are needed: "
            "provide more items, or set data.evaluation.agreement.unsure to Count"
        )


def skipped(
    rules: Mapping[str, Comparison],
    profiles: Mapping[str, OutputProfile],
    answers: Callable[[], Iterable[Answer]],
    truth: Callable[[Answer, int], Answer],
) -> Skipped:
    """What is skipped. `answers`: the original's, read from disk twice; `truth`: by output, the right decisions where an item's label says them."""
    sureness = Sureness(rules, profiles)
    for number, answer in enumerate(answers()):
        sureness.add(answer, truth(answer, number))
    margins = {
        name: max(margin, least_margin(profiles[name].noise(), profiles[name].scale))
        for name, margin in sureness.margins().items()
    }
    sure = {name: rule.model_copy(update={"margin": margins.get(name, 0.0)}) for name, rule in rules.items()}
    said_nothing = [agreeing(sure, answer, answer) is None for answer in answers()]
    return Skipped(sure, sum(said_nothing), len(said_nothing))
