"""Answers that are numbers, and candidates beside them: what the tests of metrics without boxes or masks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.labels import LabelForm, LabelReading
from fettle.api.optimizedmodel import EvaluationSpec
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Metric
from fettle.optimizer.measure.accuracy import Judgement, Reference

Array = np.ndarray[Any, Any]
READ = LabelReading(form=LabelForm.TASK, told="the metric reads them")


def signature(**outputs: Array) -> Signature:
    """Of a model that answers such arrays, items along the first axis."""
    return Signature(
        inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4), batch_axis=0),),
        outputs=tuple(
            Tensor(name=name, dtype="FP32", shape=(-1, *array.shape[1:]), batch_axis=0)
            for name, array in outputs.items()
        ),
    )


def reference(
    folder: Path, metric: Metric, labels: Array | None = None, spec: dict[str, Any] | None = None, **outputs: Array
) -> Reference:
    """An original that answers `outputs`, items along the first axis. Raises DataError where they prove nothing."""
    evaluation = EvaluationSpec(uri="-", metric=metric, **(spec or {}))
    found = Reference(folder, signature(**outputs), labels, evaluation, generated=False, reading=READ)
    found.add([answer(outputs, item) for item in range(len(next(iter(outputs.values()))))])
    found.finish()
    return found


def judge(original: Reference, **outputs: Array) -> Judgement:
    """A lossy candidate that answers `outputs`."""
    items = range(len(original))
    return original.judge((answer(outputs, item) for item in items), lossy=True, alpha=0.05)


def passes(found: Judgement, max_drop: float = 0.1) -> bool:
    """Whether it may be published with that bound, and as much again for what changed."""
    changed = found.changed is None or found.changed.high <= max_drop + 0.1
    return found.gone is None and found.drop is not None and found.drop.high <= max_drop and changed


def answer(outputs: dict[str, Array], item: int) -> dict[str, Array]:
    """One item's, in float32 as models answer."""
    return {name: np.asarray(array[item], np.float32) for name, array in outputs.items()}
