"""From labels to a loss on them: the one that is asked for, or the one that follows from the metric and what the labels say of the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fettle.api import metrics
from fettle.api.data import EvaluationSpec
from fettle.api.labels import IGNORED, LabelForm, LabelReading, not_counted
from fettle.api.signature import Signature
from fettle.api.training import CustomLossSpec, TrainSpec
from fettle.api.vocabulary import Metric, TrainingLoss
from fettle.errors import DataError, RecipeError
from fettle.optimizer.labels.question import Answered, squeezed
from fettle.optimizer.labels.reader import NOT_COUNTED, LabelReader
from fettle.optimizer.labels.readings import understand
from fettle.optimizer.measure.agreement import OutputProfile
from fettle.optimizer.measure.tasks.segmentation import Segmentation
from fettle.optimizer.measure.tasks.text import Text, by_step
from fettle.optimizer.training.ctc import letter_loss
from fettle.optimizer.training.losses import ClassLoss, DecisionLoss, LabelLoss, NumberLoss, Output, OwnLoss
from fettle.runtimes.base import Array


@dataclass(frozen=True)
class Labelled:
    """The labels of all training items, beside the original's answers to some of them in the `output` that is judged.

    `examples`: an array per output for each item, without the batch axis. `masks`: how masks are read, where they are judged.
    """

    signature: Signature
    output: Output
    profile: OutputProfile
    examples: Sequence[Sequence[Array]]
    labels: Array
    spec: EvaluationSpec
    masks: Segmentation | None = None

    @property
    def name(self) -> str:
        """Of the output."""
        return self.signature.outputs[self.output.place].name

    @property
    def answers(self) -> list[Array]:
        """Those in the output."""
        return [answer[self.output.place] for answer in self.examples]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an answer in the output."""
        return tuple(self.answers[0].shape)

    def understood(self, metric: Metric) -> LabelReading:
        """How `metric` reads the labels. Raises DataError."""
        profile = self.profile
        answered = Answered(self.name, self.answers, profile.axis, profile.threshold, profile.softmax)
        return understand(self.labels, answered, self.spec.model_copy(update={"metric": metric}))


def by_output(signature: Signature, examples: Sequence[Sequence[Array]]) -> list[dict[str, Array]]:
    """Answers with an array per output, by the outputs' names."""
    names = [tensor.name for tensor in signature.outputs]
    return [dict(zip(names, one, strict=True)) for one in examples]


def label_loss(given: Labelled, asked: TrainSpec) -> LabelLoss | None:
    """The loss on these labels; None where Auto knows none. Raises RecipeError where labels or outputs do not fit it."""
    if asked.loss is TrainingLoss.CUSTOM:
        names = tuple(tensor.name for tensor in given.signature.outputs)
        return OwnLoss.of(asked.custom or CustomLossSpec(), names, given.labels)
    try:
        return LOSSES[asked.loss](given)
    except DataError as error:
        told = "the labels of data.training" if asked.loss is TrainingLoss.AUTO else f"train.loss {asked.loss}"
        raise RecipeError(f"{told}: {error.message}") from error


def _auto(given: Labelled) -> LabelLoss | None:
    trained_as = metrics.entry(given.spec.metric).trained_as
    if given.masks is not None:
        return _masks(given, given.masks)
    if trained_as is None:
        return None
    return _decisions(given) if given.spec.metric is Metric.MULTI_LABEL else _read(given, given.understood(trained_as))


def _cross_entropy(given: Labelled) -> LabelLoss:
    if not given.output.classes:
        message = f"the output {given.name} {list(given.shape)} has one score for each decision, not one for each class: set BinaryCrossEntropy"
        raise DataError(message)
    if given.masks is not None:
        return _masks(given, given.masks)
    reading = given.understood(Metric.ACCURACY)
    found = _read(given, reading)
    if not isinstance(found, ClassLoss):
        raise DataError(f"expected one right class for each decision, found labels that are {reading.told}")
    return found


def _binary_cross_entropy(given: Labelled) -> LabelLoss:
    if given.masks is not None and not given.output.classes:
        return _masks(given, given.masks)
    one_score = np.prod(given.shape, dtype=int) == 1
    found = _read(given, given.understood(Metric.ACCURACY)) if one_score else _decisions(given)
    assert found is not None  # one score is a yes or a no
    return found


def _decisions(given: Labelled) -> DecisionLoss:
    """Yes or no for each number of the output. Raises DataError."""
    labels, flat = given.labels, given.labels.reshape(len(given.labels), -1)
    wanted = f"expected labels of 0 and 1, one for each of the numbers {list(given.shape)} of the output {given.name}"
    if labels.dtype.kind not in "biuf" or flat.shape[1] != np.prod(given.shape, dtype=int):
        raise DataError(f"{wanted}, found {labels.dtype} {list(labels.shape[1:])}")
    counted = ~np.isin(flat, not_counted(given.spec))
    others = flat[counted & ~np.isin(flat, (0, 1))]
    if others.size:
        raise DataError(f"{wanted}, found {others[0]}: set data.evaluation.ignoreLabel if it does not count")
    targets = np.where(counted, flat > 0, IGNORED).astype(np.int64)
    return _yes_or_no(given, targets)


def _yes_or_no(given: Labelled, targets: Array) -> DecisionLoss:
    output = replace(given.output, classes=False, probabilities=given.profile.threshold > 0)
    return DecisionLoss(output, targets, given.profile.threshold)


def _numbers(given: Labelled, absolute: bool) -> NumberLoss:
    labels = given.labels
    if labels.dtype.kind not in "biuf" or squeezed(labels.shape[1:]) != squeezed(given.shape):
        raise DataError(
            f"expected a number for each of the numbers {list(given.shape)} of the output {given.name}, found labels {labels.dtype} "
            f"{list(labels.shape[1:])}: set CrossEntropy if they are classes"
        )
    return _toward(given, labels.reshape(len(labels), -1), absolute)


def _toward(given: Labelled, targets: Array, absolute: bool = False) -> NumberLoss:
    targets = targets.astype(np.float32)
    scale = max(float(targets.std()), 1e-6)
    return NumberLoss(replace(given.output, scale=scale, classes=False), targets, absolute)


def _letters(given: Labelled) -> LabelLoss:
    spec = given.spec.model_copy(update={"metric": Metric.TEXT, "output": given.name})
    text = Text.fit(given.signature, by_output(given.signature, given.examples), spec)
    return letter_loss(replace(given.output, axis=-1), given.name, text, len(by_step(given.answers[0])), given.labels)


def _masks(given: Labelled, masks: Segmentation) -> LabelLoss:
    """Labels that the metric reads: a class for each place, or yes and no. Raises DataError."""
    said = masks.decode({given.name: given.answers[0]})
    targets = np.stack([masks.read(np.asarray(label), said).reshape(-1) for label in given.labels])
    targets = np.where(targets == NOT_COUNTED, IGNORED, targets).astype(np.int64)
    return _by_class(given, targets)


def _read(given: Labelled, reading: LabelReading) -> LabelLoss | None:
    """A loss on numbers of classes, yes or no, or numbers; None for texts, and where any of several classes is right."""
    if reading.form not in (LabelForm.CLASSES, LabelForm.ALL_OF, LabelForm.NUMBERS):
        return None
    read = LabelReader(reading, given.output.axis)
    targets = np.stack([np.asarray(read(np.asarray(label), given.shape)).reshape(-1) for label in given.labels])
    if reading.form is LabelForm.NUMBERS:
        return _toward(given, targets)
    targets = np.where(targets == NOT_COUNTED, IGNORED, targets.astype(np.int64))
    if reading.form is LabelForm.ALL_OF:
        return _yes_or_no(given, targets)
    return _by_class(given, targets)


def _by_class(given: Labelled, targets: Array) -> LabelLoss:
    if given.output.classes:
        return ClassLoss(given.output, targets)
    return DecisionLoss(given.output, targets, given.profile.threshold)  # one score: yes or no


LOSSES: Mapping[TrainingLoss, Callable[[Labelled], LabelLoss | None]] = {
    TrainingLoss.AUTO: _auto,
    TrainingLoss.CROSS_ENTROPY: _cross_entropy,
    TrainingLoss.BINARY_CROSS_ENTROPY: _binary_cross_entropy,
    TrainingLoss.MEAN_SQUARED_ERROR: partial(_numbers, absolute=False),
    TrainingLoss.MEAN_ABSOLUTE_ERROR: partial(_numbers, absolute=True),
    TrainingLoss.CTC: _letters,
}
