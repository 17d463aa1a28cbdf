"""What a model would lose if parts of it were computed otherwise, judged on calibration items while it is being built.

Steps choose by it. It proves nothing: what comes out is certified later, on items that none of this has seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fettle.api.data import EvaluationSpec
from fettle.api.task import LossBound
from fettle.errors import DataError, RecipeError, RuntimeFailure
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.items import Answer, MappedItems, answers
from fettle.runtimes.base import Array
from fettle.store.comparison import is_float

Infer = Callable[[Answer], dict[str, Array]]
ALPHA = 0.05  # of intervals that nobody reads here
FAR = 1e6  # tolerances
log = logging.getLogger(__name__)


class Loss:
    """How answers to `items` differ from those of the model as it was, by the metric that will judge them.

    `bound`: the share of answers that may differ, in `LossBound`'s words. Call `begin` first.
    """

    def __init__(self, folder: Path, items: MappedItems, evaluation: EvaluationSpec | None, bound: LossBound) -> None:
        self.items, self.bound = items, bound
        self._reference = Reference(folder, items.signature, None, evaluation, generated=False)

    def begin(self, infer: Infer, most: int) -> None:
        """Keep the answers to `most` items, with which everything is compared. Raises RecipeError where the items do not suit the metric."""
        self.items = self.items.first(most)
        try:
            for answer in self._answers(infer, len(self.items)):
                self._reference.add([answer])
            self._reference.finish()
        except DataError as error:
            raise RecipeError(f"the calibration items cannot judge what a layer loses: {error.message}") from error

    def of(self, infer: Infer) -> float:
        """The share of answers that differ, 0 to 1, by the metric; 1 where some are none (NaN, another shape)."""
        try:
            judgement = self._reference.judge(self._answers(infer, len(self.items)), lossy=True, alpha=ALPHA)
        except RuntimeFailure:
            log.info("answers that are none", exc_info=True)
            return 1.0
        return 1 - judgement.accuracy.value

    def noise(self, infer: Infer, count: int) -> float:
        """Mean square of what answers to the first `count` items are off by, in tolerances: it tells layers apart that change no answer."""
        total, numbers = 0.0, 0
        for original, answer in zip(self._reference.answers(), self._answers(infer, count), strict=False):
            for name, expected in original.items():
                total += float(np.square(self._apart(name, expected, answer[name])).sum())
                numbers += expected.size
        return total / max(numbers, 1)

    def _apart(self, name: str, expected: Array, found: Array) -> Array:
        """How far each number is off, in tolerances; FAR where that is no number: another shape, another word, NaN."""
        if found.shape != expected.shape:
            return np.full(max(expected.size, 1), FAR)
        if not is_float(expected):
            return np.where(found == expected, 0.0, FAR)
        tolerance = self._reference.profiles[name].tolerances.of(expected.shape)
        with np.errstate(all="ignore"):
            apart = (found.astype(np.float64) - expected) / tolerance
        apart = np.clip(np.nan_to_num(apart, nan=FAR, posinf=FAR, neginf=-FAR), -FAR, FAR)
        return np.asarray(np.where(found == expected, 0.0, apart))

    def _answers(self, infer: Infer, count: int) -> Iterator[Answer]:
        for index in range(min(count, len(self.items))):
            yield answers(self.items.signature, infer(self.items.feed([index])), 1)[0]
