"""How a training begins and ends where something is odd: the clock, the batch, the items, the original's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fettle.api.data import EvaluationSpec
from fettle.api.signature import Signature, Tensor
from fettle.api.training import TrainSpec
from fettle.api.vocabulary import Metric
from fettle.errors import RecipeError
from fettle.optimizer.measure.items import MappedItems
from fettle.optimizer.training.items import TrainingItems, training_items
from fettle.optimizer.training.loop import Trainer
from fettle.optimizer.training.objective import Taught, Weights, objective
from fettle.optimizer.training.teacher import Teacher
from fettle.runtimes.base import Array

SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4), batch_axis=0),),
    outputs=(Tensor(name="y", dtype="FP32", shape=(-1, 3), batch_axis=0),),
)
ROWS = np.random.default_rng(7).normal(size=(60, 4)).astype(np.float32)


def items(rows: Array = ROWS, labels: Array | None = None) -> TrainingItems:
    return training_items(MappedItems({"x": rows}, SIGNATURE), labels)


def original() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def trainer(
    taught: TrainingItems, teacher: nn.Module, student: nn.Module | None = None, *, epochs: int = 2, **more: Any
) -> Trainer:
    """A student, by default one that knows nothing yet, and its original; `more`: `train` as in a manifest, and a clock."""
    torch.manual_seed(1)
    given: dict[str, Any] = {"clock": more.pop("clock")} if "clock" in more else {}
    with torch.no_grad():
        examples = [[answer] for answer in original()(torch.from_numpy(ROWS[:32])).numpy()]
    metric = Metric.AGREEMENT if taught.labels is None else Metric.ACCURACY
    spec = EvaluationSpec(uri="none", metric=metric)
    judging = objective(Taught(SIGNATURE, examples, taught.labels, spec), TrainSpec(), Weights(), [])
    train = TrainSpec.model_validate({"batchSize": 16, **more})
    return Trainer(
        nn.Linear(4, 3) if student is None else student, Teacher(teacher, taught, 16), judging, train, epochs, **given
    )


def slow() -> Callable[[], float]:
    """A clock by which an hour passes between two looks."""
    return map(float, count(step=3600)).__next__


def test_a_deadline_that_has_passed_before_the_first_step_leaves_the_student_as_it_began() -> None:
    made, kept = trainer(items(), original(), deadlineSeconds=60, clock=slow()), list[dict[str, Any]]()
    before = {name: weight.clone() for name, weight in made.student.state_dict().items()}
    progress = made.run(None, kept.append)
    assert (progress.best, progress.curve[-1].epoch) == (0, 1)
    assert progress.ended == "stopped at train.deadlineSeconds, 60 s, in epoch 1"
    assert all(torch.equal(weight, before[name]) for name, weight in made.student.state_dict().items())
    again = trainer(items(), original(), deadlineSeconds=60, clock=slow()).run(kept[-1], kept.append)
    assert (again, len(kept)) == (progress, 1), "a pod that is killed behind it trains nothing more"


def test_a_student_that_answers_as_its_original_at_first_may_lose_a_little() -> None:
    """Its first loss is next to nothing, and twenty times that is no measure."""
    student = nn.Linear(4, 3)
    student.load_state_dict(original().state_dict())

    def move() -> None:
        with torch.no_grad():
            student.bias[0] += 0.1

    progress = replace(trainer(items(), original(), student, epochs=1), prepared=move).run(None, lambda _: None)
    before, after = (row.held_out_loss for row in progress.curve)
    assert before < 1e-6
    assert 0.02 < after < 1
    assert progress.ended == "1 epochs"


def test_weights_in_float16_are_refused_and_not_the_learning_rate() -> None:
    with pytest.raises(RecipeError, match="weights in float16, which cannot be trained"):
        trainer(items(), original(), original().half()).run(None, lambda _: None)


@pytest.mark.parametrize("size", [1, 2])
def test_what_normalizes_over_a_batch_trains_with_batches_of_one_item_too(size: int) -> None:
    """With one, its statistics stay as they are: those of one item say nothing."""
    norm = nn.BatchNorm1d(8)
    student = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 3))
    progress = trainer(items(), original(), student, epochs=5, batchSize=size, optimizer="SGD").run(
        None, lambda _: None
    )
    assert progress.ended == "5 epochs"
    assert progress.curve[-1].held_out_loss < progress.curve[0].held_out_loss
    assert bool(norm.running_mean is not None and norm.running_mean.any()) == (size > 1)


class Odd(nn.Module):
    """An original that has no number for one item."""

    def __init__(self, row: Array, instead: float) -> None:
        super().__init__()
        self.usual, self.row, self.instead = original(), torch.from_numpy(row), instead

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 4] -> [N, 3]"""
        answers: torch.Tensor = self.usual(x)
        return torch.where((x == self.row).all(1, keepdim=True), self.instead, answers)


@pytest.mark.parametrize("instead", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["held_out", "teaching"])
def test_an_original_that_answers_no_number_is_blamed_and_not_the_learning_rate(part: str, instead: float) -> None:
    taught = items()
    teacher = Odd(ROWS[getattr(taught, part)[0]], instead)
    with pytest.raises(RecipeError, match="the original answers some training items with NaN or infinity"):
        trainer(taught, teacher).run(None, lambda _: None)


def test_labels_of_one_class_train_to_an_end_and_are_judged_like_others() -> None:
    taught = items(labels=np.zeros(60, np.int64))
    progress = trainer(taught, original()).run(None, lambda _: None)
    assert progress.ended == "2 epochs"
    assert progress.curve[-1].held_out_loss < progress.curve[0].held_out_loss


@pytest.mark.parametrize(
    ("rows", "found"),
    [(ROWS[:19], "found 19:"), (np.repeat(ROWS[:1], 60, 0), r"found 60 \(1 distinct\):"), (np.tile(ROWS[:19], (9, 1)), r"\(19 distinct\)")],
    ids=["few", "copies of one", "copies of few"],
)  # fmt: skip
def test_few_items_are_refused_however_often_they_are_repeated(rows: Array, found: str) -> None:
    with pytest.raises(RecipeError, match=rf"training needs 20 distinct items or more, .*{found}"):
        items(rows)


def test_copies_of_an_item_are_all_held_out_or_all_teach() -> None:
    taught = items(np.tile(ROWS[:20], (3, 1)))
    parts = [{place % 20 for place in part} for part in (taught.held_out, taught.teaching)]
    assert [len(part) for part in parts] == [2, 18]
    assert not parts[0] & parts[1]
