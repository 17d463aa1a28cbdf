"""Structured pruning: channels really go, what is left is trained, and comes back as a candidate like any other."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.data import trainable
from tests.unit.optimizer.training.course import Course
from torch import fx

from fettle.api.recipe import RuntimeSettings
from fettle.api.report import BuildReport
from fettle.api.signature import Signature
from fettle.errors import RecipeError
from fettle.optimizer.training import pace
from fettle.optimizer.training.channels import Channels
from fettle.optimizer.training.program import Module, opened
from fettle.optimizer.training.session import Training
from fettle.optimizer.training.together import ALONE
from fettle.runtimes.base import Session
from fettle.runtimes.onnxruntime import OnnxRuntime

EXAMPLE = (torch.zeros(2, 1, 8, 8),)


@pytest.fixture(scope="module")
def at_once(course: Course) -> BuildReport:
    """Half of the channels gone in one round, and one epoch."""
    return course.build({"prune": {}}, epochs=1)


def weights(model: onnx.ModelProto) -> int:
    """How many numbers it stores."""
    return sum(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)


def test_pruned_channels_are_gone_and_the_answers_are_as_good(course: Course) -> None:
    report = course.build({"prune": {"ratio": 0.5}}, epochs=16)
    assert report.built is not None, report.message
    model, original = course.onnx(report.built), course.onnx(course.prepared.portable)
    assert weights(model) < 0.35 * weights(original)
    assert course.accuracy(report.built) > course.accuracy(course.prepared.portable) - 0.05
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "output"]
    told = report.training
    assert told is not None
    assert (told.items, told.held_out, told.epochs, len(told.curve)) == (720, 80, 16, 17)
    assert told.parameters_after < 0.35 * told.parameters_before
    assert told.score == told.curve[told.best].score > told.curve[0].score
    assert "16 epochs" in told.ended


def test_the_same_seed_gives_the_same_file_and_another_seed_another(course: Course, at_once: BuildReport) -> None:
    second, other = (course.build({"prune": {}}, epochs=1, seed=seed).built for seed in (0, 1))
    assert at_once.built is not None
    assert at_once.built == second
    assert at_once.built != other


def test_channels_go_in_several_rounds_and_by_what_the_loss_says_of_them(course: Course, at_once: BuildReport) -> None:
    step = {"prune": {"ratio": 0.5, "iterations": 2, "importance": "Taylor"}}
    in_rounds = course.build(step, epochs=2)
    assert in_rounds.built is not None, in_rounds.message
    assert at_once.training is not None
    assert in_rounds.training is not None
    assert in_rounds.training.parameters_after < 1.3 * at_once.training.parameters_after
    assert in_rounds.built != at_once.built


@pytest.fixture
def wide(course: Course, tmp_path: Path) -> fx.GraphModule:
    """Five convolutions of 32 channels and one of 64."""
    path = trainable.save(trainable.Net(width=32).eval(), tmp_path / "model.pt2")
    return opened(path, course.prepared.signature, EXAMPLE)


def channels(module: fx.GraphModule) -> Channels:
    return Channels.of(cast("Training", SimpleNamespace(example=EXAMPLE)), module)


def widths(module: fx.GraphModule) -> list[int]:
    return [layer.out_channels for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)]


def test_the_higher_the_ratio_the_more_channels_go_and_a_few_stay(wide: fx.GraphModule) -> None:
    unit, found = channels(wide), dict[float, list[int]]()
    for ratio in (0.01, 0.3, 0.5, 0.75, 0.875, 0.99):
        trial = copy.deepcopy(wide)
        unit.remove(trial, 1 - ratio)
        found[ratio] = widths(trial)
    assert found == {
        0.01: [24] * 5 + [56],
        0.3: [24] * 5 + [48],
        0.5: [16] * 5 + [32],
        0.75: [8] * 5 + [16],
        0.875: [8] * 6,
        0.99: [8] * 6,
    }


@pytest.mark.parametrize("rounds", [2, 5, 20])
def test_many_rounds_remove_as_many_channels_as_one(wide: fx.GraphModule, rounds: int) -> None:
    unit, at_once = channels(wide), copy.deepcopy(wide)
    unit.remove(at_once, 0.3)
    history = [one for number in range(rounds) for one in unit.remove(wide, 0.3 ** ((number + 1) / rounds))]
    assert widths(wide) == widths(at_once) == [8] * 5 + [16]
    assert history


def test_what_no_judged_answer_depends_on_is_ranked_by_gradients_too(tmp_path: Path) -> None:
    course = Course.of(tmp_path, trainable.TwoHeaded().eval(), judged=False)
    report = course.build({"prune": {"importance": "Taylor"}}, epochs=1)
    assert report.built is not None, report.message
    assert report.message.count("no differentiable loss on labels") == 1, "it is looked at twice, and told once"


def test_what_cannot_be_pruned_that_fast_is_refused_with_what_was_reached(course: Course) -> None:
    report = course.build({"prune": {"targetSpeedup": 100}})
    assert report.built is None
    assert "targetSpeedup 100 cannot be reached" in report.message


def test_the_smallest_share_that_is_fast_enough_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model whose time falls with what is removed, and never below a fifth."""
    monkeypatch.setattr(pace, "_seconds", lambda share, *_: max(1 - share, 0.2))
    training = cast("Training", SimpleNamespace(group=ALONE))

    def least(wanted: float) -> float:
        return pace.least_for(wanted, lambda share: cast("Module", share), cast("Module", 0.0), training, tmp_path)

    assert 0.5 <= least(2) < 0.53
    with pytest.raises(RecipeError, match=r"targetSpeedup 6 cannot be reached: .* it is 5\.00 times as fast"):
        least(6)


def test_a_speed_up_is_looked_for_with_one_thread(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    load = OnnxRuntime.load

    def watched(self: OnnxRuntime, entry: Path, settings: RuntimeSettings, signature: Signature | None) -> Session:
        threads.append(settings.threads)
        return load(self, entry, settings, signature)

    monkeypatch.setattr("fettle.runtimes.cpu.usable_cores", lambda: 2)
    monkeypatch.setattr(pace, "SECONDS", 0.001)
    monkeypatch.setattr(OnnxRuntime, "load", watched)
    report = course.build({"prune": {"targetSpeedup": 100}})
    assert report.built is None
    assert threads == [1, 1], "the original and the smallest"
