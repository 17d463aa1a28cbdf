"""Knowledge distillation: a student learns from the original's answers, and from labels if there are any (Hinton et al., 2015)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fettle.api.text import quoted
from fettle.api.training import DistillStep, StudentSpec
from fettle.errors import RecipeError, RuntimeFailure
from fettle.optimizer.own_code import called, guarded
from fettle.optimizer.steps import Work
from fettle.optimizer.training.blocks import without_blocks
from fettle.optimizer.training.channels import Channels
from fettle.optimizer.training.export import as_onnx, save
from fettle.optimizer.training.objective import Weights
from fettle.optimizer.training.program import Module, call
from fettle.optimizer.training.session import Training, parameters
from fettle.runtimes.torchscript import named_outputs


def distill(work: Work[DistillStep]) -> Path:
    """Train the student. Raises RecipeError."""
    training, step = work.trained, work.step

    def made() -> Module:
        spec = step.student or StudentSpec()
        student = _student(spec, training, work)
        _require_same_answers(student, training)
        if spec.callable is not None:
            _require_export(spec.callable, student, work)
        return student

    student = training.group.every(made)  # code of a user's own may fail in one process alone
    training.fit(student, weights=Weights(step.alpha, step.beta, step.temperature, step.features))
    work.notes.append(
        f"a student of {parameters(student):,} parameters, the teacher has {parameters(training.teacher):,}"
    )
    return save(student, training.example, training.signature, work.folder / "model.pt2")


def _student(spec: StudentSpec, training: Training, work: Work[DistillStep]) -> Module:
    if spec.callable is not None:
        return _own(spec.callable)
    student = training.open(work.entry)
    if spec.depth is not None:
        gone = without_blocks(student, training.example, spec.depth)
        work.notes.append(f"residual blocks left out: {gone}")
    if spec.width is not None:
        Channels.of(training, student).remove(student, spec.width)
    return student


def _own(name: str) -> Module:
    """The student that `module:callable` makes. Raises RecipeError."""
    with guarded(lambda error: _failure(name, error)):
        made = called(name)
    if not isinstance(made, nn.Module):
        raise RecipeError(f"distill.student.callable {name} made a {type(made).__name__}, expected a torch.nn.Module")
    return _Flat(made)


def _failure(name: str, error: BaseException) -> RecipeError:
    where = ", ".join(path for path in sys.path if path)[:200]
    return RecipeError(
        f"distill.student.callable {name} could not make a student: {type(error).__name__}: "
        f"{quoted(error)}; modules are looked for in {where}"
    )


class _Flat(nn.Module):
    """A user's module that returns its answers as a tuple, in Fettle's order of the outputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As the module, its answers in a tuple."""
        return tuple(named_outputs(self.module(*inputs)).values())


def _require_same_answers(student: Module, training: Training) -> None:
    """Raises RecipeError if the student's answers do not have the teacher's types and shapes."""
    student.eval()
    with torch.no_grad():
        wanted = _forms(call(training.teacher, training.example))
        try:
            found = _forms(call(student, training.example))
        except (RuntimeError, TypeError, ValueError, RuntimeFailure) as error:
            raise RecipeError(f"the student does not accept the original's inputs: {quoted(error)}") from error
    if found != wanted:
        raise RecipeError(f"the student has the outputs {found}, the original {wanted}: they must be the same")


def _require_export(name: str, student: Module, work: Work[DistillStep]) -> None:
    """Raises RecipeError if nobody could use what is learned: before the training, and not hours later."""
    training = work.trained
    try:
        as_onnx(student, training.example, training.signature, work.folder / "tried")
    except RecipeError as error:
        raise RecipeError(f"distill.student.callable {name}: {error.message}") from error


def _forms(answers: Sequence[torch.Tensor]) -> str:
    return ", ".join(f"{str(answer.dtype).removeprefix('torch.')} {list(answer.shape)}" for answer in answers)
