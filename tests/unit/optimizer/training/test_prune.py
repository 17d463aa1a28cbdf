"""Structured pruning: channels really go, what is left is trained, and comes back as a candidate like any other."""

from __future__ import annotations

import onnx
import pytest
from onnx import numpy_helper
from tests.unit.optimizer.training.course import Course

from fettle.api.report import BuildReport


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


def test_what_cannot_be_pruned_that_fast_is_refused_with_what_was_reached(course: Course) -> None:
    report = course.build({"prune": {"targetSpeedup": 100}})
    assert report.built is None
    assert "targetSpeedup 100 cannot be reached" in report.message
