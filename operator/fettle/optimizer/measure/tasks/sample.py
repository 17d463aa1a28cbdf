"""Whether labels belong to the items and are read as they are meant: on a sample of what the original says, beside what the labels say.

Read in another way, or taken from another item, they must not fit as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.measure.chance import FEWEST
from fettle.optimizer.measure.misplaced import described, misplaced
from fettle.optimizer.measure.tasks.base import Scorer, TaskMetric
from fettle.optimizer.statistics import SEED

ITEMS = 256
BYTES = 16 << 20  # of the predictions for all of them
SHUFFLES = 20  # labels that have nothing to do with the items are above all of them once in twenty-one times
LEAST_SEEN = 50  # items that say anything: fewer, of more, do not end a run

Pair = tuple[Any, Any]


@dataclass
class LabelSample:
    """What the original says of some items, and what their labels say. `whole`: these are all items there are."""

    name: Metric
    metric: TaskMetric
    whole: bool
    _pairs: list[Pair] = field(default_factory=list)
    _held: int = 0

    def add(self, prediction: Any, truth: Any) -> None:
        """Keep an item's, while there is room."""
        if len(self._pairs) < FEWEST or (len(self._pairs) < ITEMS and self._held < BYTES):
            prediction, truth = self.metric.sketch(prediction), self.metric.sketch(truth)
            self._pairs.append((prediction, truth))
            self._held += size_of(prediction)
        else:
            self.whole = False

    def refuse(self) -> None:
        """Raises DataError where labels are misread, name classes otherwise than the model, or fit other items as well."""
        scorer = self.metric.scorer(True)
        for prediction, truth in self._pairs:
            scorer.add(prediction, truth)
        try:
            pool = scorer.pool()
        except DataError:
            if self.whole:
                raise
            return  # what these few do not show, others may
        value = pool.whole()
        self._refuse_misnamed()
        if pool.items < FEWEST:
            return
        shuffled = [found for shuffle in self._shuffles() if (found := self._value(shuffle)) is not None]
        chance = max(shuffled, default=-np.inf)
        self._refuse_misread(value, chance)
        if not value > chance and (self.whole or pool.items >= LEAST_SEEN):
            raise DataError(
                f"the original's {self.name} is {value:.4g} on {len(self._pairs)} items, no better than with their labels in {SHUFFLES} other "
                f"orders (up to {chance:.4g}): such items prove nothing. Its answers were interpreted as {self.metric.told}; check labels and "
                "items, or leave the labels out"
            )

    def _refuse_misread(self, value: float, chance: float) -> None:
        for way in self.metric.misreadings(self._pairs[0][1]):
            read = self._value(
                [(prediction, self.metric.misreadings(truth).get(way)) for prediction, truth in self._pairs]
            )
            if read is not None and read > max(value, chance):
                raise DataError(
                    f"the original's {self.name} is {value:.4g} with the labels as they are, and {read:.4g} if they are read as {way}: "
                    "write them in the order that the metric expects"
                )

    def _refuse_misnamed(self) -> None:
        pairs: Counter[tuple[Hashable, Hashable]] = Counter()
        for prediction, truth in self._pairs:
            pairs.update(self.metric.pairs(prediction, truth))
        moved = misplaced(pairs)
        if moved:
            raise DataError(f"{described(moved)}; correct the order of data.evaluation.classes, or labelOffset")

    def _shuffles(self) -> Sequence[Sequence[Pair]]:
        """Each item beside another one's label, in random circles."""
        random, count = np.random.default_rng(SEED), len(self._pairs)
        found: list[Sequence[Pair]] = []
        for _ in range(SHUFFLES):
            order = random.permutation(count)
            found.append(
                [
                    (self._pairs[one][0], self._pairs[other][1])
                    for one, other in zip(order, np.roll(order, 1), strict=True)
                ]
            )
        return found

    def _value(self, pairs: Sequence[Pair]) -> float | None:
        """The metric of these; None where most do not fit each other, as masks of different sizes."""
        scorer, fit = self.metric.scorer(True), 0
        for prediction, truth in pairs:
            fit += truth is not None and tried(scorer, prediction, truth)
        if 2 * fit <= len(pairs):
            return None
        try:
            return scorer.pool().whole()
        except DataError:
            return None


def tried(scorer: Scorer, prediction: Any, truth: Any) -> bool:
    """Score an item beside what another one says; False where the two have different sizes."""
    try:
        scorer.add(prediction, truth)
    except (DataError, ValueError):
        return False
    return True


def size_of(prediction: Any) -> int:
    """About how many bytes a prediction takes."""
    if isinstance(prediction, tuple):
        return sum(size_of(part) for part in prediction)
    # Arrays and boxes have it; a text has letters, and a number or a yes has no parts.
    size = getattr(prediction, "nbytes", None)
    return int(size) if size is not None else 8 * (len(prediction) if isinstance(prediction, Sized) else 1)
