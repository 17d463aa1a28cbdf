"""What the report shows of trainings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.unit.optimizer.report.run_of_digits import BUILD, PREPARE, fill, open_store
from tests.unit.optimizer.report.test_report import published

from fettle.api.report import BuildEntry, BuildReport, PrepareReport, TrainedModel, TrainingEpoch, TrainingFigures
from fettle.optimizer.report import plot_training
from fettle.store.cache import write_trained
from fettle.store.store import Store

ENDS = [
    "20 epochs",
    "stopped early: no gain in 2 epochs",
    "stopped at train.deadlineSeconds, 1.25 s of 2 s for this round, in epoch 4",
]


def trained(ended: str) -> TrainingFigures:
    """A training of four epochs, the third of which was the best."""
    rows = [
        (None, 0.9, 0.5, None),
        (0.8, 0.6, 0.7, 1e-3),
        (0.5, 0.4, 0.8, 8e-4),
        (0.3, 0.3, 0.9, 5e-4),
        (0.2, 0.5, 0.8, 2e-4),
    ]
    return TrainingFigures(
        items=90,
        held_out=10,
        epochs=4,
        best=3,
        score=0.9,
        original_score=0.95,
        judged="share of held-out decisions that are right by the labels",
        loss="CrossEntropy",
        parameters_before=1000,
        parameters_after=500,
        seconds=8,
        ended=ended,
        curve=tuple(
            TrainingEpoch(epoch=epoch, loss=loss, held_out_loss=held_out, score=score, learning_rate=rate)
            for epoch, (loss, held_out, score, rate) in enumerate(rows)
        ),
    )


def with_training(store: Store, ended: str) -> None:
    """The finished run's build is a training that ended so."""
    build = store.result(BUILD)
    assert isinstance(build, BuildReport)
    store.put_result(BUILD, build.model_copy(update={"name": "lean-torchscript", "training": trained(ended)}))


@pytest.mark.parametrize("ended", ENDS)
def test_the_report_draws_each_training_with_where_and_why_it_ended(tmp_path: Path, ended: str) -> None:
    store = open_store(tmp_path / "store")
    fill(store, tmp_path / "model")
    with_training(store, ended)
    (drawn,) = re.findall(
        r'<svg role="img" aria-label="(Held-out score of [^"]*)".*?</svg>', published(store), re.DOTALL
    )
    assert "0.5 before training, 0.9 in epoch 3" in drawn
    assert f"0.8 in epoch 4, where it ended: {ended}; the original 0.95" in drawn
    assert f"end: {ended}" in published(store)
    assert "right by the labels; loss on labels: CrossEntropy" in published(store)


def test_a_run_that_takes_an_earlier_training_as_it_is_shows_its_course_too(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    fill(store, tmp_path / "model")
    prepare, key = store.result(PREPARE), "7" * 64
    assert isinstance(prepare, PrepareReport)
    entry = BuildEntry(name="lean-torchscript", cache_key=key, built=prepare.portable)
    store.put_result(PREPARE, prepare.model_copy(update={"builds": (entry,)}))
    write_trained(store, key, TrainedModel(**dict(prepare.portable), training=trained(ENDS[1])))
    assert f"0.8 in epoch 4, where it ended: {ENDS[1]}; the original 0.95" in published(store)
    assert store.names("reports/vision/digits/3.tensorboard") == ["lean-torchscript"]


def test_loss_and_learning_rate_stand_below_the_score() -> None:
    drawn = plot_training.curve("lean", trained(ENDS[0]))
    assert drawn is not None
    for label in (
        "held-out score",
        "loss",
        "training",
        "held out",
        "learning rate",
        "epoch (star: used; square: the end",
    ):
        assert label in drawn
    assert "#0a0b" not in drawn, "every colour is the page's"


def test_the_curve_of_an_earlier_version_has_no_learning_rate() -> None:
    figures = trained(ENDS[0])
    rows = [row.model_copy(update={"learning_rate": None}) for row in figures.curve]
    assert plot_training.curve("lean", figures.model_copy(update={"curve": tuple(rows)})) is not None
