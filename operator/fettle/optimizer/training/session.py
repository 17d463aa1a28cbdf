"""What a step that trains works with: the teacher, the items, the store's checkpoints; and what comes of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fettle.api.data import EvaluationSpec
from fettle.api.report import TrainingEpoch, TrainingFigures
from fettle.api.signature import Signature
from fettle.api.task import BuildTask, TrainingPlan
from fettle.api.text import joined, quoted
from fettle.api.training import FeaturesSpec, TrainSpec
from fettle.api.vocabulary import Metric
from fettle.errors import RecipeError, WorkerLostError
from fettle.optimizer.data.columns import LABELS
from fettle.optimizer.measure.items import MappedItems, unpack
from fettle.optimizer.measure.items import opened as opened_items
from fettle.optimizer.onnx.session import session
from fettle.optimizer.reference import OriginalAnswers
from fettle.optimizer.training.augment import augmenter
from fettle.optimizer.training.checkpoints import Checkpoints
from fettle.optimizer.training.features import Revealing, paired
from fettle.optimizer.training.items import TrainingItems, training_items
from fettle.optimizer.training.loop import Progress, Trainer, learning_rate, mixed_precision, rounded
from fettle.optimizer.training.losses import Tensors
from fettle.optimizer.training.objective import Taught, TrainingObjective, Weights, objective
from fettle.optimizer.training.program import Module, call, opened, runner
from fettle.optimizer.training.teacher import Teacher
from fettle.optimizer.training.together import ALONE, Group
from fettle.runtimes import cpu
from fettle.runtimes.torchscript import to_array, to_tensor
from fettle.store.arrays import mapped

EXAMPLES = 32  # items whose answers say what an output is
EPOCHS, STEPS = 20, 500
LONGEST = 1_000_000  # epochs: checkpoints of a later phase have higher numbers
LOOKED_AT = 512  # items whose gradients say what weights are worth
LEAST_SCALE = 1e-6  # of features: one that never changes is no reason to divide by 0
SHOWN_EPOCHS = 200  # of a curve; a longer one is thinned
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """A training within a step that has several: its number, its epochs if not all of them are its own, its share of the time, and what has
    to be known beside the weights to make such a student again."""

    number: int = 0
    epochs: int | None = None
    share: float = 1.0
    architecture: Any = None


USUAL, WHOLE = Weights(), Phase()


@dataclass
class Training:
    """The training of one build. `original`: the file of the model as it came; `figures`: what was done, in the order of the steps; `tolerated`: see
    `TrainingPlan`.

    `items` is None where there are no training data: then only steps that do without are asked.
    """

    original: Path
    signature: Signature
    items: TrainingItems | None
    spec: TrainSpec
    evaluation: EvaluationSpec | None
    checkpoints: Checkpoints
    calibration: MappedItems | None = None
    notes: list[str] = field(default_factory=list)
    figures: list[TrainingFigures] = field(default_factory=list)
    group: Group = ALONE
    tolerated: float | None = None

    def __post_init__(self) -> None:
        torch.set_num_threads(cpu.usable_cores())
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(self.spec.seed)

    @cached_property
    def teacher(self) -> fx.GraphModule:
        """The model as it came. Nobody changes it."""
        module = self.open(self.original)
        for weight in module.parameters():
            weight.requires_grad_(False)
        return module

    def open(self, path: Path) -> fx.GraphModule:
        """The model at `path`, ready to be changed. Raises RecipeError, also where PyTorch answers otherwise than ONNX Runtime."""
        module = opened(path, self.signature, self.example)
        if path.suffix == ".onnx":
            moved = self._differs(path, module)
            if moved is not None:
                raise RecipeError(
                    f"the model converted from ONNX to PyTorch gives other answers than in ONNX Runtime: {moved}"
                )
        return module

    def _differs(self, path: Path, module: Module) -> str | None:
        original = session(path, self.signature)
        reference = OriginalAnswers.of(original.infer, self.seen)
        original.close()
        return reference.differs(runner(module, self.signature))

    @property
    def taught(self) -> TrainingItems:
        """The training items. Raises RecipeError where there are none."""
        if self.items is None:
            raise RecipeError("this step trains, and there is no training data: set data.training")
        return self.items

    @property
    def seen(self) -> MappedItems:
        """Items that may be looked at: to train on, or else to calibrate with. Raises RecipeError where there are none."""
        given = self.items.items if self.items is not None else self.calibration
        if given is None:
            raise RecipeError("this step needs items: set data.training or data.calibration")
        return given

    @cached_property
    def example(self) -> tuple[torch.Tensor, ...]:
        """What one run takes: two items, or one where the model takes no batch."""
        places = range(min(2 if self.signature.batchable else 1, len(self.seen)))
        feed = self.seen.feed(list(places))
        return tuple(to_tensor(feed[tensor.name]) for tensor in self.signature.inputs)

    @property
    def epochs(self) -> int:
        """How many a training has at most: few items are seen more often."""
        steps = -(-len(self.taught.teaching) // self.spec.batch_size)
        return self.spec.epochs or max(EPOCHS, -(-STEPS // steps))

    @cached_property
    def resumed(self) -> dict[str, Any] | None:
        """The state that an earlier attempt left. Raises WorkerLostError where other processes find another one."""
        state = self.checkpoints.newest()
        reached = [state["stage"], state["epoch"]] if state is not None else []
        if self.group.agreed(lambda: reached) != reached:
            raise WorkerLostError(
                "the processes of this training found different checkpoints: the store does not show all of them the same"
            )
        return state

    @cached_property
    def remembered(self) -> Teacher:
        """The teacher with its answers so far."""
        return self._remembering(self.teacher)

    def _remembering(self, module: Module, features: int = 0) -> Teacher:
        size = -(-self.spec.batch_size // self.group.size)
        return Teacher(module, self.taught, min(size, len(self.taught.teaching)), features)

    def objective(self, weights: Weights) -> TrainingObjective:
        """What is minimized. Raises RecipeError."""
        items, rows = self.taught, []
        for place in self._examples:
            with torch.no_grad():
                answers = call(self.teacher, items.tensors([place]))
            axes = [tensor.batch_axis for tensor in self.signature.outputs]
            rows.append(
                [
                    to_array(answer if axis is None else answer.select(axis, 0))
                    for answer, axis in zip(answers, axes, strict=True)
                ]
            )
        spec = self.evaluation or EvaluationSpec(uri="none", metric=Metric.AGREEMENT)
        told: list[str] = []
        made = objective(Taught(self.signature, rows, items.labels, spec), self.spec, weights, told)
        self.notes.extend(note for note in told if note not in self.notes)
        return made

    @property
    def _examples(self) -> tuple[int, ...]:
        """Places of items whose answers say what an output is."""
        items = self.taught
        return items.held_out[:EXAMPLES] + items.teaching[: max(EXAMPLES - len(items.held_out), 0)]

    def _revealed(self, student: Module, spec: FeaturesSpec) -> tuple[Revealing, Teacher, tuple[float, ...]]:
        """`student` with its features, the teacher with its own, and their standard deviations. Raises RecipeError."""
        axis = self.signature.inputs[0].batch_axis if self.signature.batchable else None
        items = self.example[0].shape[axis] if axis is not None else None
        student.eval()
        pairs = self.group.every(lambda: paired(spec, self.teacher, student, self.example, items))
        teacher = self._remembering(Revealing(self.teacher, [pair.teacher for pair in pairs]), len(pairs))
        shown = [teacher.answers(run)[-len(pairs) :] for run in self.taught.runs(self._examples)]
        scales = (
            torch.cat([value.flatten() for value in values]).std(correction=0) for values in zip(*shown, strict=True)
        )
        self.notes.append(f"features that were followed: {joined(pair.words for pair in pairs)}")
        torch.manual_seed(self.spec.seed)
        own = Revealing(student, [pair.student for pair in pairs], [pair.projection() for pair in pairs])
        return own, teacher, tuple(max(float(scale), LEAST_SCALE) for scale in scales)

    @cached_property
    def usual(self) -> TrainingObjective:
        """What is minimized where a step says nothing of it. Raises RecipeError."""
        return self.objective(USUAL)

    def gradients(self, student: Module) -> None:
        """Leave in each weight of `student` its gradient on some training items: what weights matter to. Raises RecipeError."""
        student.zero_grad(set_to_none=True)
        for answers, taught, run in self._on_some(student):
            self.usual.sensitivity(answers, taught, run).backward()
        for weight in student.parameters():
            if weight.requires_grad and weight.grad is None:  # no output that can be learned depends on it
                weight.grad = torch.zeros_like(weight)

    def loss_of(self, student: Module) -> float:
        """The sum of its losses on some training items. Raises RecipeError."""
        with torch.no_grad():
            return sum(float(self.usual.loss(*found)) * len(found[2]) for found in self._on_some(student))

    def changed(self, student: Module) -> float:
        """The share of the original's decisions on some training items, or of the variance of its answers, that `student` misses.

        Raises RecipeError.
        """
        judging = replace(self.usual, by_labels=None)
        with torch.no_grad():
            points = [judging.right(*found) for found in self._on_some(student)]
        return 1 - sum(right for right, _ in points) / max(sum(most for _, most in points), 1e-12)

    def _on_some(self, student: Module) -> Iterator[tuple[Tensors, Tensors, list[int]]]:
        """The answers of `student` and of the original to some training items, and their places, batch by batch."""
        items = self.taught
        student.eval()
        for place in range(0, min(LOOKED_AT, len(items.teaching)), self.spec.batch_size):
            for run in items.runs(items.teaching[place : place + self.spec.batch_size]):
                yield call(student, items.tensors(run)), self.remembered.answers(run), run

    def fit(
        self,
        student: Module,
        *,
        weights: Weights = USUAL,
        phase: Phase = WHOLE,
        prepared: Callable[[], None] = lambda: None,
        rate_share: float = 1.0,
    ) -> Progress:
        """Train `student` to answer as the teacher and the labels say; it has the best weights then.

        `prepared`: done after each step of the optimizer. `rate_share`: of the learning rate that is taken where none is asked for.
        Raises RecipeError.
        """
        self._try_precision(student)
        judging, rate = self.objective(weights), learning_rate(self.spec, rate_share)
        spec, epochs = self.spec.model_copy(update={"learning_rate": rate}), phase.epochs or self.epochs
        learner, teacher = student, self.remembered
        if weights.features is not None:
            learner, teacher, scales = self._revealed(student, weights.features)
            judging = replace(judging, scales=scales)
        trainer = Trainer(learner, teacher, judging, spec, epochs, phase.share, prepared, group=self.group)
        state = self.resumed if self.resumed is not None and self.resumed["stage"] == phase.number else None

        def keep(reached: dict[str, Any]) -> None:
            if not self.group.leads:
                return
            number = phase.number * LONGEST + int(reached["epoch"])
            self.checkpoints.save(number, {**reached, "stage": phase.number, "architecture": phase.architecture})

        progress = trainer.run(state, keep)
        self._tell(trainer, progress, student)
        return progress

    def _try_precision(self, student: Module) -> None:
        """Raises RecipeError where mixed precision is asked for, and the model computes with the data type of its layers' answers."""
        if not self.spec.mixed_precision:
            return
        student.eval()
        try:
            with torch.no_grad(), mixed_precision():
                call(student, self.example)
        except RuntimeError as error:
            raise RecipeError(
                f"train.mixedPrecision: the model does not run in bfloat16: {quoted(error)}; leave it out"
            ) from error

    def _tell(self, trainer: Trainer, progress: Progress, student: Module) -> None:
        """Raises RecipeError where there is nothing to compare the student with."""
        chosen = next(row for row in progress.curve if row.epoch == progress.best)
        original = replace(trainer, student=trainer.teacher.module)._row(0, None)
        if not math.isfinite(original.score):
            raise RecipeError(
                f"the score of the original itself is {original.score} on the validation set: check its answers to data.training, and train.loss"
            )
        items = self.taught
        self.figures.append(
            TrainingFigures(
                items=len(items.teaching),
                held_out=len(items.held_out),
                epochs=progress.curve[-1].epoch,
                best=progress.best,
                score=chosen.score,
                original_score=original.score,
                judged=trainer.objective.words,
                loss=trainer.objective.told,
                parameters_before=parameters(self.teacher),
                parameters_after=parameters(student),
                seconds=round(progress.seconds, 3),
                ended=progress.ended,
                curve=_shown(progress),
            )
        )
        score = f"{trainer.objective.words}: {chosen.score:.3f} (original {original.score:.3f})"
        told = f"trained on {len(items.teaching)} items, {progress.ended}; {score}"
        self.notes.append(told)
        log.info("%s", told)


def begin(
    task: BuildTask,
    original: Path,
    folder: Path,
    checkpoints: Checkpoints,
    calibration: MappedItems | None,
    notes: list[str],
    group: Group = ALONE,
) -> Training:
    """The training that `task` asks for. Raises RecipeError where its items do not suit, StoreError."""
    plan = task.plan.training or TrainingPlan(spec=TrainSpec())
    items = None
    if task.training is not None:
        files = unpack(checkpoints.store, task.training, folder)
        labels = mapped(files[LABELS]) if LABELS in files else None
        items = training_items(opened_items(files, task.signature), labels)
        changes = augmenter(plan.augment, task.signature, items.tensors(items.teaching[:1]), labels)
        items = replace(items, augmenter=changes)
        _require_precision(plan.spec)
        _require_parts(min(plan.spec.batch_size, len(items.teaching)), group.size)

    return Training(
        original,
        task.signature,
        items,
        plan.spec,
        task.evaluation,
        checkpoints,
        calibration,
        notes,
        group=group,
        tolerated=plan.tolerated,
    )


def _require_parts(batch: int, nodes: int) -> None:
    """Raises RecipeError where a batch is too small to be shared."""
    if nodes > 1 and batch < 2 * nodes:
        raise RecipeError(
            f"train.nodes: {nodes} needs batches of {2 * nodes} items or more, two for each node, found {batch}: raise train.batchSize, or set "
            "fewer nodes"
        )


def _require_precision(spec: TrainSpec) -> None:
    """Raises RecipeError where this machine cannot train as it is asked to."""
    found = cpu.detect()
    if spec.mixed_precision and not found.bf16:
        raise RecipeError(
            f"train.mixedPrecision needs a CPU with bfloat16 instructions (AVX-512 BF16, AMX or Arm's), found {found.label}: leave it out, or run "
            "Jobs on such nodes"
        )


def parameters(module: Module) -> int:
    """How many weights it has."""
    return sum(weight.numel() for weight in module.parameters())


def _shown(progress: Progress) -> tuple[TrainingEpoch, ...]:
    """Its curve, thinned where it is long; the first epoch, the best and the last stay."""
    step, last = -(-len(progress.curve) // SHOWN_EPOCHS), len(progress.curve) - 1
    kept = (
        row
        for place, row in enumerate(progress.curve)
        if not place % step or place == last or row.epoch == progress.best
    )
    return tuple(rounded(row) for row in kept)
