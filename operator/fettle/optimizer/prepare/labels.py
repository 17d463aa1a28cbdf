"""The labels of a run, held against the original's answers before anything is built: are they understood, and does it know its items?"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fettle.api.labels import LabelForm, LabelReading
from fettle.api.optimizedmodel import AgreementSpec, EvaluationSpec
from fettle.api.signature import Signature
from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.data.columns import Array
from fettle.optimizer.data.items import Items
from fettle.optimizer.data.split import Split
from fettle.optimizer.labels.question import SHOWN, Answered
from fettle.optimizer.labels.readings import understand
from fettle.optimizer.measure.agreement import OutputProfile, item_axis
from fettle.optimizer.measure.chance import Chance, refuse_chance
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.items import answers as answers_of
from fettle.optimizer.measure.metrics import Judging, Scores
from fettle.optimizer.measure.tasks import METRICS, recognized
from fettle.optimizer.measure.tasks.judging import EXAMPLES
from fettle.optimizer.sources.base import RunModel

ASKED = 256  # items that the original answers here at most; measuring asks it for all of them
ASKED_SECONDS = 10.0
LEAST_ASKED = 50  # of more items, fewer answers say nothing yet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """What judges the items, and how their labels are read. `metric` is never Auto; `labels` None: none are used."""

    metric: Metric | None = None
    labels: LabelReading | None = None
    notes: tuple[str, ...] = ()


def read(split: Split, signature: Signature, spec: EvaluationSpec | None, run: RunModel) -> Reading:
    """Decide what judges the items of `split`, and how their labels are read.

    Raises DataError where they do not fit the answers, or where the original knows no more of its items than a constant answer.
    """
    items = split.evaluation
    if spec is None or items is None:
        return Reading()
    names = sorted(tensor.name for tensor in signature.outputs)
    if spec.output is not None and spec.output not in names:
        raise DataError(f"data.evaluation.output is {spec.output!r}; the model has {names}")
    if spec.metric == Metric.AUTO:
        return _recognized(split, items, signature, spec, run)
    if spec.metric in METRICS:
        return _task(items, signature, spec, _answers(items, signature, run, ASKED))
    if spec.metric == Metric.AGREEMENT or items.labels is None:
        return Reading(spec.metric)
    return _labelled(split, items, signature, spec, _answers(items, signature, run, ASKED))


def _recognized(split: Split, items: Items, signature: Signature, spec: EvaluationSpec, run: RunModel) -> Reading:
    """What the answers show the model is for; else Accuracy. Raises DataError."""
    answers: list[Answer] = []
    if spec.agreement == AgreementSpec(axis=spec.agreement.axis):  # nobody says how answers are compared
        answers = _answers(items, signature, run, EXAMPLES)
        metric = recognized(signature, answers, spec)
        if metric is not None:
            try:
                return _task(items, signature, spec.model_copy(update={"metric": metric}), answers, unasked=True)
            except DataError as error:
                log.info("labels are not those of %s: %s", metric, error.message)
    if items.labels is None:
        return Reading(Metric.ACCURACY)
    accuracy = spec.model_copy(update={"metric": Metric.ACCURACY})
    return _labelled(split, items, signature, accuracy, _answers(items, signature, run, ASKED, answers))


def _labelled(
    split: Split, items: Items, signature: Signature, spec: EvaluationSpec, given: Sequence[Answer]
) -> Reading:
    """Labels of classes, or numbers, beside one output. Raises DataError."""
    assert items.labels is not None
    tensors = {tensor.name: tensor for tensor in signature.outputs}
    name = spec.output or next(iter(tensors))
    profile = OutputProfile(axis=item_axis(tensors[name], spec.agreement.axis))
    answers = [answer[name] for answer in given]
    for answer in answers:
        profile.add(answer)
    answered = Answered(name, answers, profile.axis, profile.threshold, profile.softmax)
    reading = understand(_all_labels(split, items.labels), answered, spec)
    log.info("labels: %s", reading.told)
    if len(answers) >= min(LEAST_ASKED, len(items)):
        judging = Judging.of(spec.metric, reading, spec.average, profile.axis, profile.threshold)
        _refuse_chance(judging, answers, items.labels)
    return Reading(spec.metric, reading)


def _task(
    items: Items, signature: Signature, spec: EvaluationSpec, answers: Sequence[Answer], unasked: bool = False
) -> Reading:
    """Fit the task's metric to some answers, and see whether it reads the labels beside them. Raises DataError."""
    metric = METRICS[spec.metric].fit(signature, answers[:EXAMPLES], spec)
    note = f"judged by {spec.metric}: the original's answers were read as {metric.told}"
    advice = "; data.evaluation.metric chooses another metric, Agreement compares numbers" if unasked else ""
    if items.labels is None:
        return Reading(spec.metric, None, (note + advice,))
    for label, answer in zip(items.labels, answers, strict=False):
        metric.read(np.asarray(label), answer)
    return Reading(spec.metric, LabelReading(form=LabelForm.TASK, told=f"{spec.metric} reads them"), (note + advice,))


def _answers(
    items: Items, signature: Signature, run: RunModel, most: int, known: Sequence[Answer] = ()
) -> list[Answer]:
    """What the original answers to the first items, at most `most`, without the batch axis, as far as time allows.

    `known`: what it answered to the first of them.
    """
    answers = list(known)
    began = time.monotonic()
    for index in range(len(known), min(most, len(items))):
        outputs = run(items.whole(index))
        given = {tensor.name: np.asarray(outputs[tensor.name]) for tensor in signature.outputs}
        answers.append({name: np.asarray(value) for name, value in answers_of(signature, given, 1)[0].items()})
        if time.monotonic() - began > ASKED_SECONDS and len(answers) >= SHOWN:
            break
    return answers


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
