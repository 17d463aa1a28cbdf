"""What a training minimizes: alpha * loss(student, label) + beta * distance(student, teacher).

The loss by labels follows from what the labels say of the answers: cross-entropy for classes, binary cross-entropy for yes and no, the
squared error for numbers. Whatever the metric, the teacher's answers can be followed, in all outputs that are numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fettle.api import metrics
from fettle.api.data import EvaluationSpec
from fettle.api.labels import LabelForm, LabelReading
from fettle.api.signature import Signature
from fettle.api.vocabulary import Metric
from fettle.errors import DataError, RecipeError
from fettle.optimizer.labels.question import Answered
from fettle.optimizer.labels.reader import NOT_COUNTED, LabelReader
from fettle.optimizer.labels.readings import understand
from fettle.optimizer.measure.agreement import OutputProfile, item_axis
from fettle.optimizer.measure.tasks.segmentation import Segmentation
from fettle.store.arrays import Texts, restored

Array = np.ndarray[Any, Any]
Tensors = Sequence[torch.Tensor]
TINY = 1e-7  # of a probability whose logarithm is taken
IGNORED = -100  # in place of a class number: what PyTorch's cross-entropy leaves out, and labels that never count
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """How one output is compared with the teacher's: as classes along `axis` (of an item's answer), or as numbers in units of `scale`."""

    place: int
    batch_axis: int | None
    classes: bool
    probabilities: bool
    axis: int
    scale: float

    def items(self, answer: torch.Tensor) -> torch.Tensor:
        """With items along the first axis."""
        return answer.unsqueeze(0) if self.batch_axis is None else answer.movedim(self.batch_axis, 0)

    def scores(self, answer: torch.Tensor) -> torch.Tensor:
        """Logarithms of odds: [items, decisions, classes]."""
        moved = self.items(answer).movedim(self.axis, -1)
        flat = moved.reshape(len(moved), -1, moved.shape[-1])
        return flat.clamp_min(TINY).log() if self.probabilities else flat


@dataclass(frozen=True)
class Weights:
    """alpha of the labels, beta of the teacher, and the temperature at which classes are compared; None: their scores are."""

    alpha: float = 1.0
    beta: float = 1.0
    temperature: float | None = 2.0


@dataclass
class TrainingObjective:
    """The loss of a batch, and how good answers are. `outputs`: those that follow the teacher's."""

    outputs: tuple[Output, ...]
    judged: Output
    weights: Weights = field(default_factory=Weights)
    reading: LabelReading | None = None
    targets: Array | None = None
    threshold: float = 0.0

    @property
    def words(self) -> str:
        """What the score is, for a person."""
        truth = "right by the labels" if self.targets is not None else "as the original's"
        if self.judged.classes or self._binary:
            return f"share of held-out decisions that are {truth}"
        return f"share of the held-out answers' variance that is {truth}"

    @property
    def _binary(self) -> bool:
        return self.reading is not None and not self.judged.classes and self.reading.form is not LabelForm.NUMBERS

    def loss(self, answers: Tensors, taught: Tensors, places: Sequence[int]) -> torch.Tensor:
        """The mean loss of these items."""
        total = torch.zeros(())
        if self.weights.beta and self.outputs:
            parts = [self._distance(one, answers[one.place], taught[one.place]) for one in self.outputs]
            total = total + self.weights.beta * torch.stack(parts).mean()
        if self.targets is not None and self.weights.alpha:
            total = total + self.weights.alpha * self._by_labels(answers[self.judged.place], places)
        return total

    def sensitivity(self, answers: Tensors, taught: Tensors, places: Sequence[int]) -> torch.Tensor:
        """What tells how much weights matter where the student still answers as its teacher: there, the distance has no gradient."""
        answer = answers[self.judged.place]
        if self.targets is not None:
            return self._by_labels(answer, places)
        if self.judged.classes:
            decided = self.judged.scores(taught[self.judged.place]).argmax(-1)
            return functional.cross_entropy(self.judged.scores(answer).flatten(0, 1), decided.flatten())
        return (answer / self.judged.scale).square().mean()

    def right(self, answers: Tensors, taught: Tensors, places: Sequence[int]) -> tuple[float, float]:
        """Points and how many there could be: decisions, or variance explained."""
        answer = answers[self.judged.place]
        truth = taught[self.judged.place]
        if self.targets is None:
            if self.judged.classes:
                same = self.judged.scores(answer).argmax(-1) == self.judged.scores(truth).argmax(-1)
                return float(same.sum()), float(same.numel())
            return self._explained(self.judged.items(answer), self.judged.items(truth))
        wanted = torch.from_numpy(self.targets[list(places)])
        if self.judged.classes:
            decided = self.judged.scores(answer).argmax(-1)
            counted = wanted != IGNORED
            return float(((decided == wanted) & counted).sum()), float(counted.sum())
        flat = self.judged.items(answer).reshape(len(wanted), -1)
        if self._binary:
            counted = wanted != IGNORED
            return float((((flat > self.threshold) == (wanted > 0)) & counted).sum()), float(counted.sum())
        return self._explained(flat, wanted)

    def _explained(self, answer: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
        """Items, and for each 1 less the share of the variance that its error is."""
        errors = (answer.double() - truth.double()).square().reshape(len(answer), -1).mean(1)
        return float((1 - errors / self.judged.scale**2).sum()), float(len(answer))

    def _distance(self, one: Output, answer: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        temperature = self.weights.temperature
        if not one.classes or temperature is None:
            if one.classes:
                answer, taught = one.scores(answer), one.scores(taught)
            return (answer - taught).square().mean() / one.scale**2
        student = functional.log_softmax(one.scores(answer) / temperature, -1)
        teacher = functional.log_softmax(one.scores(taught) / temperature, -1)
        apart = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        return apart.mean() * temperature**2

    def _by_labels(self, answer: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        assert self.targets is not None
        wanted = torch.from_numpy(self.targets[list(places)])
        if self.judged.classes:
            scores = self.judged.scores(answer)
            return functional.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
        flat = self.judged.items(answer).reshape(len(wanted), -1)
        if not self._binary:
            return (flat - wanted.to(flat.dtype)).square().mean() / self.judged.scale**2
        counted = wanted != IGNORED
        yes = wanted.clamp_min(0).to(flat.dtype)
        if self.judged.probabilities:
            losses = functional.binary_cross_entropy(flat.clamp(TINY, 1 - TINY), yes, reduction="none")
        else:
            losses = functional.binary_cross_entropy_with_logits(flat, yes, reduction="none")
        return losses[counted].mean() if bool(counted.any()) else losses.sum() * 0


def objective(
    signature: Signature,
    examples: Sequence[Sequence[Array]],
    spec: EvaluationSpec | None,
    labels: Array | Texts | None,
    weights: Weights,
    notes: list[str],
) -> TrainingObjective:
    """What to minimize. `examples`: the teacher's answers to the first items, for each item an array per output, without the batch axis.

    Raises RecipeError where no output is a number that gradients reach.
    """
    spec = spec or EvaluationSpec(uri="none", metric=Metric.AGREEMENT)
    names = [tensor.name for tensor in signature.outputs]
    judged = names.index(spec.output) if spec.output in names else 0
    masks = _masks(signature, examples, spec)
    axes = [item_axis(tensor, spec.agreement.axis) for tensor in signature.outputs]
    if masks is not None and masks.axis is not None:
        axes[judged] = masks.axis
    profiles = [_profile([answer[place] for answer in examples], axis) for place, axis in enumerate(axes)]
    named = metrics.entry(metrics.entry(spec.metric).trained_as or spec.metric).names_classes
    named = named and (masks is None or masks.axis is not None)  # one score for each place says yes or no
    outputs = [
        _output(place, signature, profile, named and place == judged, [one[place] for one in examples])
        for place, profile in enumerate(profiles)
        if profile.floating
    ]
    if not outputs:
        raise RecipeError("no output of the model is differentiable: export it with its scores as an output")
    chosen = next((one for one in outputs if one.place == judged), outputs[0])
    made = TrainingObjective(tuple(outputs), chosen, weights, threshold=profiles[chosen.place].threshold)
    if labels is None:
        return made
    if masks is not None and chosen.place == judged:
        return _with_masks(made, masks, examples, labels)
    return _with_labels(made, names, examples, profiles[chosen.place], spec, labels, notes)


def _profile(answers: Sequence[Array], axis: int) -> OutputProfile:
    profile = OutputProfile(axis=axis)
    for answer in answers:
        profile.add(answer)
    return profile


def _masks(signature: Signature, examples: Sequence[Sequence[Array]], spec: EvaluationSpec) -> Segmentation | None:
    """How masks are read, where they are judged: their classes lie along another axis than those of other answers, or there is one score for
    each place. Raises RecipeError."""
    if spec.metric != Metric.SEGMENTATION:
        return None
    names = [tensor.name for tensor in signature.outputs]
    try:
        return Segmentation.fit(signature, [dict(zip(names, one, strict=True)) for one in examples], spec)
    except DataError as error:
        raise RecipeError(error.message) from error


def _with_masks(
    made: TrainingObjective, masks: Segmentation, examples: Sequence[Sequence[Array]], labels: Array | Texts
) -> TrainingObjective:
    """`made` with labels that the metric reads: a class for each place, or yes and no. Raises RecipeError."""
    (name,) = masks.outputs
    said = masks.decode({name: examples[0][made.judged.place]})
    try:
        rows = [masks.read(np.asarray(label), said).reshape(-1) for label in np.asarray(restored(labels))]
    except DataError as error:
        raise RecipeError(f"the labels of data.training: {error.message}") from error
    targets = np.stack(rows)
    form = LabelForm.CLASSES if made.judged.classes else LabelForm.ALL_OF
    made.reading = LabelReading(form=form, told="a class for each place")
    made.targets = np.where(targets == NOT_COUNTED, IGNORED, targets).astype(np.int64)
    return made


def _output(place: int, signature: Signature, profile: OutputProfile, named: bool, answers: Sequence[Array]) -> Output:
    values = np.concatenate([answer.astype(np.float64).reshape(-1) for answer in answers])
    classes = profile.classes > 1 and (profile.softmax or named)
    if classes and profile.softmax:
        values = np.log(np.clip(values, TINY, None))
    spread = float(values.std()) if values.size else 0.0
    probabilities = profile.softmax or (not classes and profile.threshold > 0)
    tensor = signature.outputs[place]
    return Output(place, tensor.batch_axis, classes, probabilities, profile.axis, max(spread, 1e-6))


def _with_labels(
    made: TrainingObjective,
    names: Sequence[str],
    examples: Sequence[Sequence[Array]],
    profile: OutputProfile,
    spec: EvaluationSpec,
    labels: Array | Texts,
    notes: list[str],
) -> TrainingObjective:
    """`made` with the labels as they are read beside the teacher's answers; without them, and a note, where a loss cannot be told from them."""
    place, trained_as = made.judged.place, metrics.entry(spec.metric).trained_as
    shapes = [answer[place].shape for answer in examples]
    told = f"{spec.metric} has no differentiable loss on labels: training follows the original's answers"
    if trained_as is None:
        notes.append(told)
        return made
    given = np.asarray(restored(labels))
    judging = spec.model_copy(update={"metric": trained_as})
    answered = Answered(
        names[place], [answer[place] for answer in examples], profile.axis, profile.threshold, profile.softmax
    )
    targets: Array | None
    try:
        if spec.metric == Metric.MULTI_LABEL:
            reading = LabelReading(form=LabelForm.ALL_OF, told="0 or 1 for each decision")
            flat = given.reshape(len(given), -1)
            counted = ~np.isin(flat, (IGNORED, IGNORED if spec.ignore_label is None else spec.ignore_label))
            targets = np.where(counted, flat > 0, IGNORED).astype(np.int64)
        else:
            reading = understand(given, answered, judging)
            targets = _targets(reading, made, given, shapes[0])
    except DataError as error:
        raise RecipeError(f"the labels of data.training: {error.message}") from error
    if targets is None:
        notes.append(told)
        return made
    made.reading, made.targets = reading, targets
    if reading.form is LabelForm.NUMBERS:
        scale = max(float(targets.std()), 1e-6)
        made.judged = replace(made.judged, scale=scale, classes=False)
    elif reading.form is LabelForm.ALL_OF:
        made.judged = replace(made.judged, classes=False, probabilities=profile.threshold > 0)
    return made


def _targets(reading: LabelReading, made: TrainingObjective, labels: Array, shape: tuple[int, ...]) -> Array | None:
    """By item: numbers of classes ([items, decisions], IGNORED where none counts), yes or no, or numbers. None: no loss is known."""
    if reading.form not in (LabelForm.CLASSES, LabelForm.ALL_OF, LabelForm.NUMBERS):
        return None
    read = LabelReader(reading, made.judged.axis)
    rows = [np.asarray(read(np.asarray(label), shape)).reshape(-1) for label in labels]
    targets = np.stack(rows)
    if reading.form is LabelForm.NUMBERS:
        return targets.astype(np.float32)
    return np.where(targets == NOT_COUNTED, IGNORED, targets.astype(np.int64))
