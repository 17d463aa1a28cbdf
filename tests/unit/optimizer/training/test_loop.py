"""The training loop: it ends with the best so far, whatever ends it, and one that is killed ends where an undisturbed one does."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.optimizer.training.course import Course
from tests.warm import Popen

from fettle.api.progress import progress_in
from fettle.api.report import BuildReport, unframe
from fettle.api.signature import Signature, Tensor
from fettle.api.task import BuildTask, encode_task
from fettle.api.vocabulary import Augmentation
from fettle.errors import StoreError
from fettle.optimizer import stage
from fettle.optimizer.measure.items import MappedItems
from fettle.optimizer.training import loop, session, teacher
from fettle.optimizer.training.items import TrainingItems
from fettle.optimizer.training.program import Module, call
from fettle.optimizer.training.teacher import Teacher
from fettle.runtimes import cpu
from fettle.store.cache import Learned, build_key
from fettle.store.store import Store
from fettle.store.uris import Mounts


def test_the_deadline_ends_a_training_with_the_best_so_far(course: Course) -> None:
    report = course.build({"distill": {"student": {"width": 0.5}}}, epochs=10_000, deadlineSeconds=2)
    assert report.built is not None, report.message
    assert report.training is not None
    assert report.training.ended.startswith("stopped at train.deadlineSeconds, 2 s, in epoch")
    assert 0 < report.training.epochs < 10_000


def test_no_run_takes_more_items_than_a_batch(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lowers batchSize for the sake of memory means held-out items and the teacher as well."""
    sizes: list[int] = []

    def watched(module: Module, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        sizes.append(len(inputs[0]))
        return call(module, inputs)

    for module in (loop, teacher):
        monkeypatch.setattr(module, "call", watched)
    report = course.build({"distill": {}}, epochs=1, batchSize=16)
    assert report.built is not None, report.message
    assert max(sizes) == 16


def test_rounds_of_pruning_share_the_deadline(course: Course) -> None:
    step = {"prune": {"ratio": 0.5, "iterations": 4}}
    report = course.build(step, epochs=10_000, deadlineSeconds=2)
    assert report.training is not None, report.message
    assert "stopped at train.deadlineSeconds, 1.25 s of 2 s for this round, in epoch" in report.training.ended


def test_a_training_that_gains_nothing_stops(course: Course) -> None:
    report = course.build({"distill": {}}, epochs=50, patience=2, learningRate=1e-7)
    assert report.training is not None
    assert "no gain in 2 epochs" in report.training.ended
    assert report.training.epochs < 50


def test_a_training_tells_after_each_epoch_how_far_it_has_come(
    course: Course, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        report = course.build({"distill": {"student": {"width": 0.5}}}, epochs=3, learningRate=0.004)
    assert report.training is not None, report.message
    told = [progress for record in caplog.records if (progress := progress_in(record.getMessage())) is not None]
    assert [(progress.epoch, progress.epochs) for progress in told] == [(1, 3), (2, 3), (3, 3)]
    before, *curve = report.training.curve
    assert [(one.loss, one.validation_loss, one.validation_score, one.learning_rate) for one in told] == [
        (row.loss, row.held_out_loss, row.score, row.learning_rate) for row in curve
    ]
    assert told[-1].best_epoch == report.training.best
    assert before.learning_rate is None
    assert [row.learning_rate for row in curve] == pytest.approx([0.004, 0.003, 0.001]), "half a cosine"


def test_a_long_curve_keeps_its_ends_and_its_best_epoch(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SHOWN_EPOCHS", 2)
    figures = course.build({"distill": {"student": {"width": 0.5}}}, epochs=7).training
    assert figures is not None
    assert {row.epoch for row in figures.curve} == {0, 4, 7, figures.best}


@pytest.mark.parametrize("rate", [1e9])
def test_a_training_that_diverges_is_a_row_that_says_so(course: Course, rate: float) -> None:
    report = course.build({"distill": {"student": {"width": 0.5}}}, epochs=3, learningRate=rate / 1e7, optimizer="SGD")
    assert report.built is None
    assert "before it improved the model; set train.learningRate below 100" in report.message


def process(task: BuildTask, folder: Path) -> Popen:
    """A Job's process, as its pod starts it; on one core, as the trainings of this process are."""
    environment = {
        **os.environ,
        "FETTLE_TASK": encode_task(task),
        "FETTLE_MOUNTS": json.dumps({"claim": str(folder)}),
        "FETTLE_TERMINATION_LOG": str(folder / "termination"),
    }
    return Popen(
        (sys.executable, "-m", "fettle.optimizer"),
        cores=[min(os.sched_getaffinity(0))],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("w"),
        start_new_session=True,
    )


def answered(folder: Path, out: str) -> BuildReport:
    """What it answered."""
    termination = json.loads((folder / "termination").read_text())
    assert termination["outcome"] == "Succeeded", termination
    report = unframe(out, termination["resultSha256"])
    assert isinstance(report, BuildReport)
    return report


def test_the_teacher_says_the_same_of_an_item_in_whatever_company_it_is_asked() -> None:
    """A last batch is a small one, for which libraries add up in another order; after a restart other items are in it."""
    torch.manual_seed(0)
    signature = Signature(
        inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 512), batch_axis=0),),
        outputs=(Tensor(name="y", dtype="FP32", shape=(-1, 10), batch_axis=0),),
    )
    rows = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    items = TrainingItems(MappedItems({"x": rows}, signature), None, tuple(range(64)), ())
    module = torch.nn.Sequential(torch.nn.Linear(512, 64), torch.nn.Linear(64, 10))
    (whole,) = Teacher(module, items, 64).answers(range(64))
    for size in (1, 2, 3, 5):
        (few,) = Teacher(module, items, 64).answers(range(size))
        assert torch.equal(few, whole[:size])
    asked = Teacher(module, items, 16)
    (kept,) = asked.answers(range(20))
    assert torch.equal(asked.answers(range(19, -1, -1))[0], kept.flip(0))


def test_a_training_that_was_killed_ends_with_the_same_file_as_an_undisturbed_one(
    course: Course, tmp_path: Path
) -> None:
    """With all that is drawn at random: the order of items, what dropout drops, how images are changed. In mixed precision where this CPU
    has bfloat16; test_losses.py has one in float32."""
    more: dict[str, Any] = {"augment": tuple(Augmentation), "mixedPrecision": cpu.detect().bf16}
    task = course.task({"prune": {"ratio": 0.5, "iterations": 2}}, epochs=8, **more)
    folder = tmp_path / "claim"
    shutil.copytree(course.folder, folder)
    store = Store.open("pvc://claim/store", Mounts({"claim": folder}))
    key = build_key(
        task.plan, task.portable, task.calibration, cpu.detect(), learned=Learned(task.original, task.training)
    )
    first = process(task, folder)

    def whole() -> list[str]:
        return [name for name in store.names(f"checkpoints/{key}") if name.endswith(".pt")]

    while len(whole()) < 2:
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = whole()
    assert len(kept) in (2, 3), "the newest two, and one more while the oldest is being removed"
    (folder / "store/checkpoints" / key / kept[-1]).write_bytes(b"cut off")  # the one before it is taken
    second = process(task, folder)
    out, _ = second.communicate()
    resumed = answered(folder, out)
    undisturbed = course.build({"prune": {"ratio": 0.5, "iterations": 2}}, epochs=8, **more)
    assert undisturbed.built is not None, undisturbed.message
    assert resumed.built == undisturbed.built
    assert resumed.training is not None
    assert undisturbed.training is not None
    assert resumed.training.curve == undisturbed.training.curve
    assert not store.names(f"checkpoints/{key}"), "what is done needs none"


@pytest.mark.parametrize("lost", ["builds", "results"])
def test_a_training_whose_result_could_not_be_kept_goes_on_from_its_last_checkpoint(
    course: Course, tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    folder = tmp_path / "claim"
    shutil.copytree(course.folder, folder, ignore=shutil.ignore_patterns("checkpoints"))  # those of other tests
    task, mounts = course.task({"distill": {}}, epochs=2), Mounts({"claim": folder})
    blocked = folder / "store" / lost
    shutil.rmtree(blocked, ignore_errors=True)
    blocked.write_text("no folder")
    caplog.set_level(logging.INFO)
    with pytest.raises(StoreError):
        stage.run(task, mounts)
    blocked.unlink()
    report = stage.run(task, mounts)
    assert isinstance(report, BuildReport)
    assert report.built is not None, report.message
    assert "resuming from checkpoint" in caplog.text
    assert not list((folder / "store/checkpoints").glob("*/*.pt"))


FAILING = """
calls = []

def loss(outputs, labels):
    (scores,) = outputs.values()
    if scores.requires_grad:
        calls.append(1)
    if len(calls) > 12:
        raise ValueError("enough")
    return scores.mean()
"""


def test_a_training_that_is_refused_in_the_end_leaves_no_checkpoint(
    course: Course, caplog: pytest.LogCaptureFixture
) -> None:
    """Here by its loss in the first of the 12 steps of its second epoch."""
    caplog.set_level(logging.INFO)
    task = course.task({"distill": {}}, epochs=3, loss="Custom", custom={"code": FAILING})
    report = stage.run(task, Mounts({"claim": course.folder}))
    assert isinstance(report, BuildReport)
    assert report.built is None
    assert "train.custom failed on a batch: ValueError: enough" in report.message
    assert "epoch 1 of 3" in caplog.text
    assert not course.store.names(f"checkpoints/{report.cache_key}")
