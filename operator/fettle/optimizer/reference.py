"""The original's outputs for a few items, against which every form of the model is held."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fettle.api.reasons import Reason
from fettle.errors import SourceError
from fettle.optimizer.data.items import Items
from fettle.optimizer.measure.agreement import OutputProfile, within_noise
from fettle.optimizer.measure.items import MappedItems
from fettle.optimizer.sources.base import RunModel
from fettle.runtimes.base import Array, Arrays
from fettle.store.comparison import has_nan

COMPARED_ITEMS = 3
MOST_STEPS = 2  # of a quantized output
SLOW_SECONDS = 0.5  # a run that takes longer is made less often


@dataclass(frozen=True)
class OriginalAnswers:
    """What the original answers to some inputs. `steps`: see `RunnableModel.steps`."""

    inputs: tuple[Arrays, ...]
    answers: tuple[Arrays, ...]
    steps: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunModel, items: MappedItems) -> OriginalAnswers:
        """The answers of `run` to the first items. Raises RuntimeFailure."""
        inputs = tuple(items.feed([place]) for place in range(min(COMPARED_ITEMS, len(items))))
        return cls(inputs, tuple(run(given) for given in inputs))

    def differs(self, run: RunModel) -> str | None:
        """How `run` answers otherwise, for a person; None where it answers alike within float noise. Raises RuntimeFailure."""
        for given, wanted in zip(self.inputs, self.answers, strict=True):
            outputs = run(given)
            for name, answer in wanted.items():
                profile = OutputProfile()
                profile.add(answer)
                step = self.steps.get(name, 0.0)
                if name not in outputs or not alike(answer, outputs[name], profile.noise(), step):
                    return _difference(name, answer, outputs.get(name))
        return None


def _difference(name: str, wanted: Array, answer: Array | None) -> str:
    if answer is None:
        return f"the output {name!r} is missing"
    if wanted.shape != answer.shape or wanted.dtype.kind not in "fiub":
        return f"the output {name!r} changed from {wanted.dtype} {list(wanted.shape)} to {answer.dtype} {list(answer.shape)}"
    return f"the output {name!r} differs by up to {_apart(wanted, answer):.3g}"


def alike(wanted: Array, found: Array, noise: tuple[float, float | Array], step: float = 0.0) -> bool:
    """Whether two answers differ by no more than float `noise`; where the output is quantized in steps of `step`, by a few of these.

    Two libraries round the sums of int8 products in different places, and what one layer rounds up the next layers carry on.
    """
    if within_noise(wanted, found, noise):
        return True
    if not step or wanted.shape != found.shape:
        return False
    return _apart(wanted, found) <= (MOST_STEPS + 0.01) * step


def _apart(wanted: Array, found: Array) -> float:
    """The largest difference of two numbers in the same place."""
    return float(np.max(np.abs(wanted.astype(np.float64) - found.astype(np.float64)), initial=0.0))


def reference(run: RunModel, items: Items, steps: Mapping[str, float] | None = None) -> OriginalAnswers:
    """Answers of `run` to the first items (one item where a run is slow: every step is checked on them).

    Raises SourceError where two runs on one item differ (UnsupportedModel), or every answer holds NaN (OutputsInvalid); RuntimeFailure.
    """
    start = time.perf_counter()
    first = run(items.whole(0))
    count = 1 if time.perf_counter() - start > SLOW_SECONDS else min(COMPARED_ITEMS, len(items))
    inputs = tuple(items.whole(index) for index in range(count))
    answers = (first, *(run(given) for given in inputs[1:]))
    made = OriginalAnswers(inputs, answers, steps or {})
    moved = OriginalAnswers(inputs[:1], answers[:1]).differs(run)
    if moved is not None:
        message = f"the model gives different outputs for the same input ({moved}): nothing can be compared with it"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    if all(any(has_nan(value) for value in answer.values()) for answer in answers):
        message = (
            f"the model outputs NaN for each of the first {count} items, expected numbers: "
            "check its weights, and that the items went through the model's own preprocessing"
        )
        raise SourceError(message, reason=Reason.OUTPUTS_INVALID)
    return made
