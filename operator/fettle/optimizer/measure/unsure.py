"""`agreement.unsure: Skip`: which items do not count in the agreement with the original, because the original itself is unsure of its answer.

What an unsure item is, and that it does not count, is the rule of a rollout's analysis (`store/comparison.py: agreeing`, `sureness.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fettle.api.text import percent
from fettle.optimizer.measure.agreement import OutputProfile
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.sureness import Sureness, least_margin
from fettle.optimizer.statistics import MINIMUM_GROUPS
from fettle.store.comparison import Comparison, agreeing

LEAST_SURE = 0.25  # of all items, on which the original must be sure: several outputs, each sure of half, may leave next to nothing


@dataclass(frozen=True)
class Skipped:
    """The rules with the margins above which the original is sure, the number of items that they skip, and the share of the decisions that do not
    count in the items that do."""

    rules: dict[str, Comparison]
    items: int
    of: int
    within: float = 0.0

    @property
    def told(self) -> str:
        """How many items do not count, and by which margins, as text."""
        least = ", ".join(f"{rule.margin:.2g} in {name}" for name, rule in self.rules.items() if rule.margin > 0)
        within = f", and {percent(self.within)} of the decisions in the others," if self.within else ""
        return (
            f"{self.items} of {self.of} items{within} do not count in the agreement, because the original is unsure of its answer "
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
    items = of = uncounted = decided = 0
    for answer in answers():
        of += 1
        if agreeing(sure, answer, answer) is None:
            items += 1
            continue
        for name, rule in sure.items():
            counts = rule.counts(answer[name])
            uncounted, decided = uncounted + int((~counts).sum()), decided + counts.size
    return Skipped(sure, items, of, uncounted / decided if decided else 0.0)
