"""The labels of a run, held against the original's answers before anything is built: are they understood, and does it know its items?"""

from __future__ import annotations

import logging
import time

import numpy as np

from fettle.api.labels import LabelReading
from fettle.api.optimizedmodel import EvaluationSpec
from fettle.api.signature import Signature
from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer import labels
from fettle.optimizer.data.columns import Array
from fettle.optimizer.data.items import Items
from fettle.optimizer.data.split import Split
from fettle.optimizer.measure.agreement import OutputProfile, item_axis
from fettle.optimizer.measure.chance import Chance, refuse_chance
from fettle.optimizer.measure.items import answers as answers_of
from fettle.optimizer.measure.metrics import Judging, Scores
from fettle.optimizer.sources.base import Run

ASKED = 256  # items that the original answers here at most; measuring asks it for all of them
ASKED_SECONDS = 10.0
LEAST_ASKED = 50  # of more items, fewer answers say nothing yet

log = logging.getLogger(__name__)


def read(split: Split, signature: Signature, spec: EvaluationSpec | None, run: Run) -> LabelReading | None:
    """How the labels of `split` are read; None where none are used.

    Raises DataError where they do not fit the answers, or where the original knows no more of its items than a constant answer.
    """
    items = split.evaluation
    if spec is None or items is None or items.labels is None or spec.metric == Metric.AGREEMENT:
        return None
    tensors = {tensor.name: tensor for tensor in signature.outputs}
    name = spec.output or next(iter(tensors))
    if name not in tensors:
        raise DataError(f"data.evaluation.output is {name!r}; the model has {sorted(tensors)}")
    profile = OutputProfile(axis=item_axis(tensors[name], spec.agreement.axis))
    answers = _answers(items, signature, name, run)
    for answer in answers:
        profile.add(answer)
    answered = labels.Answered(name, answers, profile.axis, profile.threshold, profile.softmax)
    reading = labels.understand(_all_labels(split, items.labels), answered, spec)
    log.info("labels: %s", reading.told)
    if len(answers) >= min(LEAST_ASKED, len(items)):
        judging = Judging.of(spec.metric, reading, spec.average, profile.axis, profile.threshold)
        _refuse_chance(judging, answers, items.labels)
    return reading


def _answers(items: Items, signature: Signature, output: str, run: Run) -> list[Array]:
    """What the original answers to the first items in one output, without the batch axis, as far as time allows."""
    found: list[Array] = []
    began = time.monotonic()
    for index in range(min(ASKED, len(items))):
        outputs = run(items.whole(index))
        given = {tensor.name: np.asarray(outputs[tensor.name]) for tensor in signature.outputs}
        found.append(np.asarray(answers_of(signature, given, 1)[0][output]))
        if time.monotonic() - began > ASKED_SECONDS and len(found) >= labels.SHOWN:
            break
    return found


def _all_labels(split: Split, evaluation: Array) -> Array:
    """All labels of a run: they must be read alike. Raises DataError."""
    calibration = split.calibration.labels if split.calibration is not None else None
    if calibration is None:
        return evaluation
    texts = [array.dtype.kind in "OSU" for array in (calibration, evaluation)]
    if calibration.shape[1:] != evaluation.shape[1:] or texts[0] != texts[1]:
        shapes = [f"{array.dtype} {list(array.shape[1:])}" for array in (calibration, evaluation)]
        message = (
            f"labels of data.calibration have the shape {shapes[0]} per item, labels of data.evaluation {shapes[1]}"
        )
        raise DataError(f"{message}: use the same shape, or leave the labels out of data.calibration")
    return np.concatenate([evaluation, calibration])


def _refuse_chance(judging: Judging, answers: list[Array], given: Array) -> None:
    scores, chance = Scores(judging), Chance(judging)
    for answer, label in zip(answers, given, strict=False):
        scores.add(answer, np.asarray(label))
        chance.add(answer, np.asarray(label))
    if scores.values:
        refuse_chance(scores, chance, sample=len(answers) < len(given))
