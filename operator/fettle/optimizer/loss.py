"""What a model would lose if parts of it were computed otherwise, judged on calibration items while it is being built.

Steps choose by it. It proves nothing: what comes out is certified later, on items that none of this has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fettle.api.optimizedmodel import EvaluationSpec
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.items import Answer, MappedItems, answers
from fettle.runtimes.base import Array
from fettle.store.comparison import is_float

Infer = Callable[[Answer], dict[str, Array]]
ALPHA = 0.05  # of intervals that nobody reads here


class Loss:
    """How answers to `items` differ from those of the model as it was, by the metric that will judge them.

    `bound`: the share of answers that may differ. Call `begin` first.
    """

    def __init__(self, folder: Path, items: MappedItems, evaluation: EvaluationSpec | None, bound: float) -> None:
        self.items, self.bound = items, bound
        self._reference = Reference(folder, items.signature, None, evaluation, generated=False)

    def begin(self, infer: Infer, most: int) -> None:
        """Keep the answers to `most` items, with which everything is compared. Raises FettleError where the items do not suit the metric."""
        self.items = self.items.first(most)
        for answer in self._answers(infer, len(self.items)):
            self._reference.add([answer])
        self._reference.finish()

    def of(self, infer: Infer) -> float:
        """The share of answers that differ, 0 to 1, by the metric. Raises RuntimeFailure (OutputsInvalid) for answers that are none."""
        judgement = self._reference.judge(self._answers(infer, len(self.items)), lossy=True, alpha=ALPHA)
        return 1 - judgement.accuracy.value

    def noise(self, infer: Infer, count: int) -> float:
        """Mean square of what answers to the first `count` items are off by, in tolerances: it tells layers apart that change no answer."""
        total, numbers = 0.0, 0
        for original, answer in zip(self._reference.answers(), self._answers(infer, count), strict=False):
            for name, expected in original.items():
                found = answer[name]
                if not is_float(expected) or found.shape != expected.shape or not expected.size:
                    continue
                tolerance = self._reference.profiles[name].tolerances.of(expected.shape)
                with np.errstate(all="ignore"):
                    apart = (found.astype(np.float64) - expected) / tolerance
                total += float(np.square(np.nan_to_num(apart, nan=1e6, posinf=1e6, neginf=-1e6)).sum())
                numbers += expected.size
        return total / max(numbers, 1)

    def _answers(self, infer: Infer, count: int) -> Iterator[Answer]:
        for index in range(min(count, len(self.items))):
            yield answers(self.items.signature, infer(self.items.feed([index])), 1)[0]
