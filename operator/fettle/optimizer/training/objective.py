"""What a training minimizes: alpha * loss(student, label) + beta * distance(student, teacher).

Whatever the loss on labels, the teacher's answers can be followed, in all outputs that are numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from fettle.api import metrics
from fettle.api.data import EvaluationSpec
from fettle.api.signature import Signature
from fettle.api.training import FeaturesSpec, TrainSpec
from fettle.api.vocabulary import Metric, TrainingLoss
from fettle.errors import DataError, RecipeError
from fettle.optimizer.measure.agreement import OutputProfile, item_axis
from fettle.optimizer.measure.tasks.segmentation import Segmentation
from fettle.optimizer.training.labelled import Labelled, by_output, label_loss
from fettle.optimizer.training.losses import TINY, LabelLoss, Output, Tensors
from fettle.runtimes.base import Array
from fettle.store.arrays import Texts, restored

BY_CLASS = (TrainingLoss.CROSS_ENTROPY, TrainingLoss.CTC)  # losses of scores of which only one is right


@dataclass(frozen=True)
class Weights:
    """alpha of the labels, beta of the teacher, and the temperature at which classes are compared; None: their scores are. `features`: what else
    of the teacher is followed."""

    alpha: float = 1.0
    beta: float = 1.0
    temperature: float | None = 2.0
    features: FeaturesSpec | None = None


@dataclass(frozen=True)
class TrainingObjective:
    """The loss of a batch, and how good answers are. `outputs`: those that follow the teacher's; `by_labels` is None where labels say nothing;
    `scales`: of the features that come behind the outputs, the teacher's standard deviations."""

    outputs: tuple[Output, ...]
    judged: Output
    weights: Weights = Weights()
    by_labels: LabelLoss | None = None
    scales: tuple[float, ...] = ()

    @property
    def words(self) -> str:
        """What the score is, for a person."""
        if self.by_labels is not None:
            return self.by_labels.words
        what = (
            "share of held-out decisions that are"
            if self.judged.classes
            else "share of the held-out answers' variance that is"
        )
        return f"{what} as the original's"

    @property
    def told(self) -> str:
        """The loss on labels, for the report; empty if there is none."""
        return self.by_labels.told if self.by_labels is not None else ""

    def loss(self, answers: Tensors, taught: Tensors, places: Sequence[int]) -> torch.Tensor:
        """The mean loss of these items."""
        total = torch.zeros(())
        if self.weights.beta and self.outputs:
            parts = [self._distance(one, answers[one.place], taught[one.place]) for one in self.outputs]
            total = total + self.weights.beta * torch.stack(parts).mean()
        if self.scales and self.weights.features is not None:
            total = total + self.weights.beta * self.weights.features.weight * self._features_apart(answers, taught)
        if self.by_labels is not None and self.weights.alpha:
            total = total + self.weights.alpha * self.by_labels.loss(self._without_features(answers), places)
        return total

    def sensitivity(self, answers: Tensors, taught: Tensors, places: Sequence[int]) -> torch.Tensor:
        """What tells how much weights matter where the student still answers as its teacher: there, the distance has no gradient."""
        total = torch.zeros(())
        for one in self.outputs:
            if one is self.judged and self.by_labels is not None:
                total = total + self.by_labels.loss(answers, places)
            elif one.classes:
                decided = one.scores(taught[one.place]).argmax(-1)
                total = total + functional.cross_entropy(
                    one.scores(answers[one.place]).flatten(0, 1), decided.flatten()
                )
            else:
                total = total + (answers[one.place] / one.scale).square().mean()
        return total

    def right(self, answers: Tensors, taught: Tensors, places: Sequence[int]) -> tuple[float, float]:
        """Points and how many there could be: decisions, or variance explained."""
        if self.by_labels is not None:
            return self.by_labels.right(self._without_features(answers), places)
        answer, truth = answers[self.judged.place], taught[self.judged.place]
        if self.judged.classes:
            same = self.judged.scores(answer).argmax(-1) == self.judged.scores(truth).argmax(-1)
            return float(same.sum()), float(same.numel())
        return self.judged.explained(self.judged.items(answer), self.judged.items(truth))

    def _without_features(self, answers: Tensors) -> Tensors:
        return answers[: len(answers) - len(self.scales)]

    def _features_apart(self, answers: Tensors, taught: Tensors) -> torch.Tensor:
        """The mean squared error of the features, each scaled by its variance."""
        count = len(self.scales)
        pairs = zip(answers[-count:], taught[-count:], self.scales, strict=True)
        return torch.stack([(own - wanted).square().mean() / scale**2 for own, wanted, scale in pairs]).mean()

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


@dataclass(frozen=True)
class Taught:
    """What a training learns from: the labels of its items, and the teacher's answers to some of them, for each an array per output, without the
    batch axis. `spec`: how answers are judged."""

    signature: Signature
    examples: Sequence[Sequence[Array]]
    labels: Array | Texts | None
    spec: EvaluationSpec


def objective(taught: Taught, asked: TrainSpec, weights: Weights, notes: list[str]) -> TrainingObjective:
    """What to minimize. Raises RecipeError where no output is a number that gradients reach, or where the loss that is asked for does not fit."""
    signature, examples, spec = taught.signature, taught.examples, taught.spec
    names = [tensor.name for tensor in signature.outputs]
    judged = names.index(signature.judged_output(spec.output))
    masks = _masks(taught)
    axes = [item_axis(tensor, spec.agreement.axis) for tensor in signature.outputs]
    if masks is not None and masks.axis is not None:
        axes[judged] = masks.axis
    profiles = [_profile([answer[place] for answer in examples], axis) for place, axis in enumerate(axes)]
    # A mask without an axis of classes has one score for each place: yes or no.
    named = _names_classes(spec.metric, asked.loss) and (masks is None or masks.axis is not None)
    outputs = [
        _output(place, signature, profile, named and place == judged, [one[place] for one in examples])
        for place, profile in enumerate(profiles)
        if profile.floating
    ]
    if not outputs:
        raise RecipeError("no output of the model is differentiable: export it with its scores as an output")
    chosen = next((one for one in outputs if one.place == judged), outputs[0])
    made = TrainingObjective(tuple(outputs), chosen, weights)
    if taught.labels is None:
        if asked.loss is not TrainingLoss.AUTO:
            raise RecipeError(
                f"train.loss {asked.loss} needs labels, and data.training has none: set data.training.labelKey, or remove train.loss"
            )
        return made
    labels = np.asarray(restored(taught.labels))
    read_by = masks if chosen.place == judged else None
    found = label_loss(Labelled(signature, chosen, profiles[chosen.place], examples, labels, spec, read_by), asked)
    if found is None:
        notes.append(f"{spec.metric} has no differentiable loss on labels: training follows the original's answers")
    return replace(made, by_labels=found)


def _names_classes(metric: Metric, loss: TrainingLoss) -> bool:
    """Whether the scores of the judged output are of classes, of which one is right: by the loss that is asked for, else by the metric."""
    if loss in (TrainingLoss.AUTO, TrainingLoss.CUSTOM):
        return metrics.entry(metrics.entry(metric).trained_as or metric).names_classes
    return loss in BY_CLASS


def _profile(answers: Sequence[Array], axis: int) -> OutputProfile:
    profile = OutputProfile(axis=axis)
    for answer in answers:
        profile.add(answer)
    return profile


def _masks(taught: Taught) -> Segmentation | None:
    """How masks are read, where they are judged: their classes lie along another axis than those of other answers, or there is one score for
    each place. Raises RecipeError."""
    if taught.spec.metric != Metric.SEGMENTATION:
        return None
    try:
        return Segmentation.fit(taught.signature, by_output(taught.signature, taught.examples), taught.spec)
    except DataError as error:
        raise RecipeError(error.message) from error


def _output(place: int, signature: Signature, profile: OutputProfile, named: bool, answers: Sequence[Array]) -> Output:
    values = np.concatenate([answer.astype(np.float64).reshape(-1) for answer in answers])
    classes = profile.classes > 1 and (profile.softmax or named)
    if classes and profile.softmax:
        values = np.log(np.clip(values, TINY, None))
    spread = float(values.std()) if values.size else 0.0
    probabilities = profile.softmax or (not classes and profile.threshold > 0)
    tensor = signature.outputs[place]
    return Output(place, tensor.batch_axis, classes, probabilities, profile.axis, max(spread, 1e-6))
