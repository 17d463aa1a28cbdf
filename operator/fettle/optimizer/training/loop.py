"""The training loop: the one place in which weights are learned, whatever the technique.

A training is a function of its seed and its items: the order of the items and what dropout drops follow from the seed and the number of the
epoch, so that one that goes on from a checkpoint ends where an undisturbed one does, bit for bit, on one class of CPU and number of cores.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from fettle.api.progress import TrainingStatus, progress_line
from fettle.api.report import TrainingEpoch
from fettle.api.training import TrainSpec
from fettle.api.vocabulary import Optimizer, Schedule
from fettle.errors import RecipeError
from fettle.optimizer.training.items import batches
from fettle.optimizer.training.objective import TrainingObjective
from fettle.optimizer.training.program import Module, call
from fettle.optimizer.training.teacher import Teacher
from fettle.optimizer.training.together import ALONE, Group

RATES = {Optimizer.ADAM_W: 1e-3, Optimizer.SGD: 0.02}
MOMENTUM = 0.9
CLIPPED = 5.0  # norm of all gradients: one strange batch must not throw away an epoch
DIVERGED = 20.0  # times the first held-out loss
LEAST_LOSS = 0.05  # the first may be next to nothing; a loss of 1 is that of answers that say nothing
EVALUATED = 256  # items at most in one run while held-out items are judged, and no more than train.batchSize: it bounds the memory
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a training has come: the epoch that comes next, the best state, the curve, seconds spent, and why it is over."""

    epoch: int = 1
    best: int = 0
    seconds: float = 0.0
    curve: tuple[TrainingEpoch, ...] = ()
    ended: str = ""

    @property
    def best_score(self) -> tuple[float, float]:
        """Of the best epoch: first the score, then the loss."""
        return next(_rank(row) for row in self.curve if row.epoch == self.best)


def _rank(row: TrainingEpoch) -> tuple[float, float]:
    return row.score, -row.held_out_loss


Keep = Callable[[dict[str, Any]], None]
AfterStep = Callable[[], None]


@dataclass
class Trainer:
    """A student, what it learns and how. `share`: of the time that the spec gives. `prepared`: applied to the weights after each step, such
    as a mask."""

    student: Module
    teacher: Teacher
    objective: TrainingObjective
    spec: TrainSpec
    epochs: int
    share: float = 1.0
    prepared: AfterStep = lambda: None
    clock: Callable[[], float] = time.monotonic
    group: Group = ALONE

    def run(self, state: dict[str, Any] | None, keep: Keep) -> Progress:
        """Train from `state`, or from the start; the student has the best weights then. `keep` takes the state after each epoch.

        Raises RecipeError where it diverges before it gained anything, MemoryError.
        """
        optimizer = self._optimizer()
        self.group.every(self._require_same_student)
        self.group.share(self.student.state_dict().values())
        progress, best = self._begun(state, optimizer)
        started = self.clock() - progress.seconds
        while not progress.ended and progress.epoch <= self.epochs:
            loss = self._epoch(progress.epoch, optimizer, started)
            self.group.share(self.student.state_dict().values())
            before = replace(progress, seconds=self.clock() - started)
            progress = self._judged(before, loss)
            if progress.best != before.best:
                best = _copied(self.student.state_dict())
            keep(self._state(progress, optimizer, best))
            log.info("%s", progress_line(self._status(progress)))
        self.student.load_state_dict(best)
        self.student.eval()
        return progress if progress.ended else replace(progress, ended=f"{self.epochs} epochs")

    # ------------------------------------------------------------------------------------------------------------- states

    def _require_same_student(self) -> None:
        """Raises RecipeError where another process made a student of other shapes: each of them changes the model for itself."""
        shapes = [list(value.shape) for value in self.student.state_dict().values()]
        if self.group.agreed(lambda: shapes) != shapes:
            raise RecipeError(
                "train.nodes: the pods changed the model to different shapes, because their CPUs round differently: use nodes with the same class "
                "of CPU, or set it to 1"
            )

    def _begun(self, state: dict[str, Any] | None, optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, Any]]:
        if state is None:
            row = self._row(0, None)
            if not math.isfinite(row.held_out_loss + row.score):
                self._require_numbers()
                on = f" ({self.objective.told})" if self.objective.told else ""
                raise RecipeError(
                    f"the loss{on} is {row.held_out_loss} on the validation set before any training: check the labels and train.loss"
                )
            log.info("epoch 0: held-out loss %.4f, score %.4f", row.held_out_loss, row.score)
            return Progress(curve=(row,)), _copied(self.student.state_dict())
        self.student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        curve = tuple(TrainingEpoch.model_validate(row) for row in state["curve"])
        return Progress(state["epoch"], state["best"], state["seconds"], curve, state["ended"]), state["best_student"]

    def _state(self, progress: Progress, optimizer: torch.optim.Optimizer, best: dict[str, Any]) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "optimizer": optimizer.state_dict(),
            "best_student": best,
            "epoch": progress.epoch,
            "best": progress.best,
            "seconds": progress.seconds,
            "curve": [row.to_json() for row in progress.curve],
            "ended": progress.ended,
        }

    def _status(self, progress: Progress) -> TrainingStatus:
        """What is shown of it while it goes on."""
        row = rounded(progress.curve[-1])
        return TrainingStatus(
            epoch=row.epoch,
            epochs=self.epochs,
            loss=row.loss,
            validation_loss=row.held_out_loss,
            validation_score=row.score,
            best_epoch=progress.best,
            learning_rate=row.learning_rate,
            seconds=round(progress.seconds, 3),
        )

    # -------------------------------------------------------------------------------------------------------------- epochs

    def _optimizer(self) -> torch.optim.Optimizer:
        """Weights of one dimension, of biases and norms, do not decay."""
        trained = [weight for weight in self.student.parameters() if weight.requires_grad]
        if any(weight.dtype == torch.float16 for weight in trained):
            raise RecipeError("the model has weights in float16, which cannot be trained: provide the model in float32")
        groups = [
            {"params": [weight for weight in trained if weight.ndim > 1], "weight_decay": self.spec.weight_decay},
            {"params": [weight for weight in trained if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise RecipeError("the model has no weights that can be trained")
        if self.spec.optimizer is Optimizer.SGD:
            return torch.optim.SGD(groups, lr=self._rate(0.0), momentum=MOMENTUM, nesterov=True)
        return torch.optim.AdamW(groups, lr=self._rate(0.0))

    def _rate(self, share: float) -> float:
        """The learning rate when that share of the training is done."""
        rate = learning_rate(self.spec)
        return rate * (1 + math.cos(math.pi * share)) / 2 if self.spec.schedule is Schedule.COSINE else rate

    def _epoch(self, epoch: int, optimizer: torch.optim.Optimizer, started: float) -> float | None:
        """The mean loss of an epoch; None where it was stopped: the deadline, or a loss that is no number."""
        items = self.teacher.items
        with training(self.student, items.signature.batchable and self.spec.batch_size > 1):
            torch.manual_seed(self.spec.seed * 1_000_003 + epoch + 100_003 * self.group.rank)
            planned = list(batches(items.teaching, self.spec.batch_size, self.spec.seed, epoch, self.group.size))
            total = 0.0
            for number, places in enumerate(planned):
                if self.group.any(self.clock() - started >= self.share * self.spec.deadline_seconds):
                    return None
                share = (epoch - 1 + number / len(planned)) / self.epochs
                for group in optimizer.param_groups:
                    group["lr"] = self._rate(share)
                loss = self._step(places, optimizer, (self.spec.seed, epoch, number))
                if not math.isfinite(loss):
                    return loss
                total += loss * len(places)
            return total / len(items.teaching)

    def _step(self, places: Sequence[int], optimizer: torch.optim.Optimizer, drawn: tuple[int, ...]) -> float:
        """The mean loss of these items. `drawn`: the numbers from which random changes of them follow."""
        group, refused = self.group, ""
        weights = [weight for some in optimizer.param_groups for weight in some["params"]]
        optimizer.zero_grad(set_to_none=True)
        try:
            total = self._part(places, drawn)
        except RecipeError as error:
            if group.size == 1:
                raise
            refused, total = error.message, math.nan  # the others wait for the gradients
        total = group.add(weights, total)
        if math.isfinite(total):
            torch.nn.utils.clip_grad_norm_(weights, CLIPPED)
            optimizer.step()
            self.prepared()
        else:
            group.refuse(refused)
        return total

    def _part(self, places: Sequence[int], drawn: tuple[int, ...]) -> float:
        """The share of this process in the loss of these items, and the gradients of it."""
        items, total, group = self.teacher.items, 0.0, self.group
        for number, run in enumerate(items.runs(group.part(places))):
            given = items.seen(run, (*drawn, number * group.size + group.rank))
            taught = self.teacher.answers(run) if items.augmenter is None else self.teacher.afresh(given)
            loss = self.objective.loss(self._answers(given), taught, run) * (len(run) / len(places))
            total += float(loss.detach())
            if not math.isfinite(total):
                break
            loss.backward()
        return total

    def _answers(self, given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The student's, whose layers compute in bfloat16 in mixed precision; what is made of them is not rounded further."""
        if not self.spec.mixed_precision:
            return call(self.student, given)
        with mixed_precision():
            answers = call(self.student, given)
        return tuple(answer.float() if answer.is_floating_point() else answer for answer in answers)

    # ------------------------------------------------------------------------------------------------------------- judging

    def _judged(self, progress: Progress, loss: float | None) -> Progress:
        """`progress` after an epoch whose mean loss this was."""
        row = self._row(progress.epoch, loss if loss is not None and math.isfinite(loss) else None)
        known = loss is None or math.isfinite(loss)
        if not known or not math.isfinite(row.held_out_loss + row.score):
            if progress.best == 0:
                self._require_numbers()
            return self._stopped(progress, f"the loss was not a finite number in epoch {progress.epoch}")
        log.info(
            "epoch %d of %d: loss %s, held-out loss %.4f, score %.4f, %.1f s",
            progress.epoch,
            self.epochs,
            "(cut)" if loss is None else f"{loss:.4f}",
            row.held_out_loss,
            row.score,
            progress.seconds,
        )
        better = _rank(row) > progress.best_score
        told = replace(
            progress,
            curve=(*progress.curve, row),
            best=row.epoch if better else progress.best,
            epoch=progress.epoch + 1,
        )
        if loss is None:
            seconds = f"{self.spec.deadline_seconds} s"
            if self.share < 1:
                seconds = f"{self.share * self.spec.deadline_seconds:.3g} s of {seconds} for this round"
            return replace(told, ended=f"stopped at train.deadlineSeconds, {seconds}, in epoch {row.epoch}")
        if (
            row.held_out_loss > DIVERGED * max(progress.curve[0].held_out_loss, LEAST_LOSS)
            and row.score < progress.curve[0].score
        ):
            return self._stopped(told, f"it diverged in epoch {row.epoch}")
        patience = self.spec.patience
        if patience is not None and row.epoch - told.best >= patience:
            return replace(told, ended=f"stopped early: no gain in {patience} epochs")
        return told

    def _stopped(self, progress: Progress, why: str) -> Progress:
        """A training that went wrong: with the best so far, if there is any. Raises RecipeError."""
        if progress.best == 0:
            raise RecipeError(
                f"the training was stopped: {why}, before it improved the model; "
                f"set train.learningRate below {learning_rate(self.spec):g}"
            )
        return replace(progress, ended=why)

    def _require_numbers(self) -> None:
        """Raises RecipeError where a loss is no number because the original has answers that are none."""
        for run in self._runs([*self.teacher.items.held_out, *self.teacher.items.teaching]):
            if not all(bool(answer.isfinite().all()) for answer in self.teacher.answers(run)):
                raise RecipeError(
                    "the original answers some training items with NaN or infinity, which nothing can learn: leave such items out of data.training"
                )

    def _row(self, epoch: int, loss: float | None) -> TrainingEpoch:
        held_out_loss, score = self.group.agreed(self._held_out)
        return TrainingEpoch(
            epoch=epoch,
            loss=loss,
            held_out_loss=held_out_loss,
            score=score,
            learning_rate=self._rate((epoch - 1) / self.epochs) if epoch else None,
        )

    def _held_out(self) -> tuple[float, float]:
        """The loss on held-out items, and the score."""
        items = self.teacher.items
        losses = points = possible = 0.0
        self.student.eval()
        with torch.no_grad():
            for run in self._runs(items.held_out):
                answers, taught = call(self.student, items.tensors(run)), self.teacher.answers(run)
                losses += float(self.objective.loss(answers, taught, run)) * len(run)
                right, most = self.objective.right(answers, taught, run)
                points, possible = points + right, possible + most
        return losses / len(items.held_out), points / possible if possible else 0.0

    def _runs(self, places: Sequence[int]) -> Iterator[list[int]]:
        """`places` in runs of a bounded size."""
        size = min(EVALUATED, self.spec.batch_size)
        for start in range(0, len(places), size):
            yield from self.teacher.items.runs(places[start : start + size])


def learning_rate(spec: TrainSpec, share: float = 1.0) -> float:
    """The learning rate at the start: the one that is set, else that `share` of what is usual for the optimizer."""
    return spec.learning_rate or RATES[spec.optimizer] * share


@contextmanager
def training(student: Module, several: bool) -> Iterator[None]:
    """The student in training mode; what normalizes over a batch is not, where a batch is one item."""
    student.train()
    if not several:
        for layer in student.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.eval()
    try:
        yield
    finally:
        student.eval()


def mixed_precision() -> torch.autocast:
    """The context in which layers compute in bfloat16."""
    return torch.autocast("cpu", torch.bfloat16)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in state.items()}


def rounded(row: TrainingEpoch) -> TrainingEpoch:
    """To six digits, as curves and status show it."""
    figures = row.model_dump(exclude={"epoch"}, exclude_none=True, by_alias=False)
    return row.model_copy(update={name: float(f"{value:.6g}") for name, value in figures.items()})
