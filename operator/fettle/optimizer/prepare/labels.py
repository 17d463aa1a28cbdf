"""The labels of a run, compared with the original's answers before anything is built: are they read correctly, and does the original fit them?"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fettle.api.data import AgreementSpec, EvaluationSpec
from fettle.api.labels import LabelForm, LabelReading
from fettle.api.signature import Signature
from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.data.items import Items
from fettle.optimizer.data.split import Split
from fettle.optimizer.labels.question import SHOWN, Answered
from fettle.optimizer.labels.readings import understand
from fettle.optimizer.measure.agreement import OutputProfile, item_axis
from fettle.optimizer.measure.chance import Chance, refuse_chance
from fettle.optimizer.measure.items import Answer, size_of
from fettle.optimizer.measure.items import answers as answers_of
from fettle.optimizer.measure.metrics import Scores, ScoringRule
from fettle.optimizer.measure.tasks import METRICS, likely, recognized
from fettle.optimizer.measure.tasks.base import TaskMetric, examples_of
from fettle.optimizer.measure.tasks.judging import refuse_unlike_itself
from fettle.optimizer.measure.tasks.sample import LabelSample
from fettle.optimizer.sources.base import RunModel
from fettle.optimizer.statistics import SEED, agreement_interval
from fettle.runtimes.base import Array

ASKED = 256  # items that the original answers here at most; measuring asks it for all of them
ASKED_SECONDS = 10.0
ASKED_BYTES = 256 << 20  # of answers that are held at once
LEAST_ASKED = 50  # of more items, fewer answers say nothing yet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """The metric, and how labels are read. `metric` is never Auto; `labels` is None if none are used.

    `informative`: at most this many items tell a task's metric anything; None if all do.
    """

    metric: Metric | None = None
    labels: LabelReading | None = None
    notes: tuple[str, ...] = ()
    informative: int | None = None


def read(split: Split, signature: Signature, spec: EvaluationSpec | None, run: RunModel) -> Reading:
    """Decide the metric for the items of `split`, and how their labels are read.

    Raises DataError if they do not fit the answers, or if the original is no better on them than a constant predictor.
    """
    items = split.evaluation
    if spec is None or items is None:
        return Reading()
    signature.judged_output(spec.output)  # whatever the metric, an output that is named must exist
    if spec.metric == Metric.AUTO:
        return _recognized(split, items, signature, spec, run)
    if spec.metric in METRICS:
        return _task(items, signature, spec, run)
    if spec.metric == Metric.AGREEMENT or items.labels is None:
        return Reading(spec.metric)
    return _labelled(split, items, signature, spec, _answers(items, signature, run, ASKED))


def _recognized(split: Split, items: Items, signature: Signature, spec: EvaluationSpec, run: RunModel) -> Reading:
    """The metric of the task that the answers suggest; else Accuracy. Raises DataError."""
    examples: list[Answer] = []
    notes: tuple[str, ...] = ()
    if spec.agreement == AgreementSpec(axis=spec.agreement.axis):  # nobody says how answers are compared
        examples = examples_of(answer for _, answer in _asked(items, signature, run, np.arange(len(items))))
        metric = recognized(signature, examples, spec)
        if metric is not None:
            try:
                return _task(items, signature, spec.model_copy(update={"metric": metric}), run, unasked=True)
            except DataError as error:
                log.info("labels are not those of %s: %s", metric, error.message)
        other = likely(signature, examples, spec)
        if other is not None:
            name, told = other
            notes = (
                f"compared as numbers or classes, because several tasks have outputs like these; if they are {told}, data.evaluation.metric: {name} "
                "compares their meaning, so that a candidate with the same meaning but other numbers can pass",
            )
    if items.labels is None:
        return Reading(Metric.ACCURACY, notes=notes)
    accuracy = spec.model_copy(update={"metric": Metric.ACCURACY})
    reading = _labelled(split, items, signature, accuracy, _answers(items, signature, run, ASKED, examples))
    return replace(reading, notes=(*reading.notes, *notes))


def _labelled(
    split: Split, items: Items, signature: Signature, spec: EvaluationSpec, given: Sequence[Answer]
) -> Reading:
    """Labels that are classes or numbers, for one output. Raises DataError."""
    assert items.labels is not None
    tensors = {tensor.name: tensor for tensor in signature.outputs}
    name = signature.judged_output(spec.output)
    profile = OutputProfile(axis=item_axis(tensors[name], spec.agreement.axis))
    answers = [answer[name] for answer in given]
    for answer in answers:
        profile.add(answer)
    answered = Answered(name, answers, profile.axis, profile.threshold, profile.softmax)
    reading = understand(_all_labels(split, items.labels), answered, spec)
    log.info("labels: %s", reading.told)
    if len(answers) >= min(LEAST_ASKED, len(items)):
        scoring = ScoringRule.of(spec.metric, reading, spec.average, profile.axis, profile.threshold)
        _refuse_chance(scoring, answers, items.labels)
    return Reading(spec.metric, reading)


def _task(items: Items, signature: Signature, spec: EvaluationSpec, run: RunModel, unasked: bool = False) -> Reading:
    """Fit the task's metric to some answers, and check that it can read the labels and that they belong to these items.

    Items are taken from the whole file, since they may be sorted by class. Raises DataError.
    """
    order = np.random.default_rng(SEED).permutation(len(items))[:ASKED]
    examples = examples_of(answer for _, answer in _asked(items, signature, run, order))
    metric = METRICS[spec.metric].fit(signature, examples, spec)
    note = f"judged by {spec.metric}: the original's answers were read as {metric.told}"
    advice = "; to change this, set data.evaluation.metric; Agreement compares the numbers" if unasked else ""
    try:
        found = _informative(items, spec.metric, metric, _asked(items, signature, run, order))
    except (ValueError, IndexError, TypeError) as error:
        raise DataError(f"{spec.metric} cannot read every answer ({error}): choose another metric") from error
    reading = LabelReading(form=LabelForm.TASK, told=f"{spec.metric} reads them") if items.labels is not None else None
    return Reading(spec.metric, reading, (note + advice,), found)


def _informative(items: Items, name: Metric, metric: TaskMetric, answers: Iterable[tuple[int, Answer]]) -> int:
    """An upper bound on the informative items, from those that were answered. Raises DataError if labels do not fit."""
    itself = metric.changes() if items.labels is not None else metric.scorer(False)
    sample = LabelSample(name, metric, whole=True)
    seen = 0
    for index, answer in answers:
        said = metric.decode(answer)
        itself.add(said, said)
        if items.labels is not None:
            sample.add(said, metric.read(np.asarray(items.labels[index]), said))
        seen += 1
    sample.whole = sample.whole and seen == len(items)
    if items.labels is not None:
        sample.refuse()
    some = 0
    try:
        pool = itself.pool()
    except DataError:
        if seen == len(items):
            raise
    else:
        refuse_unlike_itself(name, metric, pool)
        some = pool.items
    share = agreement_interval(seen - some, seen, 0.05).high if seen < len(items) else some / seen
    return round(share * len(items))


def _asked(items: Items, signature: Signature, run: RunModel, order: Array) -> Iterator[tuple[int, Answer]]:
    """The original's answers to these items, without the batch axis, each with its item's number; it stops when time is up."""
    began = time.monotonic()
    for count, index in enumerate(order.tolist(), 1):
        outputs = run(items.whole(index))
        given = {tensor.name: np.asarray(outputs[tensor.name]) for tensor in signature.outputs}
        yield index, {name: np.asarray(value) for name, value in answers_of(signature, given, 1)[0].items()}
        if time.monotonic() - began > ASKED_SECONDS and count >= SHOWN:
            return


def _answers(
    items: Items, signature: Signature, run: RunModel, most: int, known: Sequence[Answer] = ()
) -> list[Answer]:
    """The original's answers to the first items: at most `most`, fewer if they are large. `known`: the answers that there are already."""
    answers = list(known)
    held = size_of(answers)
    for _, answer in _asked(items, signature, run, np.arange(len(known), min(most, len(items)))):
        answers.append(answer)
        held += size_of([answer])
        if held >= ASKED_BYTES and len(answers) >= SHOWN:
            break
    return answers


def _all_labels(split: Split, evaluation: Array) -> Array:
    """All labels of a run, which must be read in the same way. Raises DataError."""
    calibration = split.calibration.labels if split.calibration is not None else None
    if calibration is None:
        return evaluation
    texts = [array.dtype.kind in "OSU" for array in (calibration, evaluation)]
    if calibration.shape[1:] != evaluation.shape[1:] or texts[0] != texts[1]:
        shapes = [
            f"{'text' if text else array.dtype} {list(array.shape[1:])}"
            for array, text in zip((calibration, evaluation), texts, strict=True)
        ]
        message = f"labels of data.calibration are {shapes[0]} per item, labels of data.evaluation {shapes[1]}"
        raise DataError(f"{message}: use the same type and shape, or leave the labels out of data.calibration")
    return np.concatenate([evaluation, calibration])


def _refuse_chance(scoring: ScoringRule, answers: list[Array], given: Array) -> None:
    scores, chance = Scores(scoring), Chance(scoring)
    for answer, label in zip(answers, given, strict=False):
        scores.add(answer, np.asarray(label))
        chance.add(answer, np.asarray(label))
    if scores.values:
        refuse_chance(scores, chance, sample=len(answers) < len(given))
