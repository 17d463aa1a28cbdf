"""Distillation of features: a student follows what the original computes on the way, and nothing of that is left in its file."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data import trainable
from tests.unit.optimizer.training.course import Course
from torch import nn

from fettle.api.report import BuildReport
from fettle.optimizer import build
from fettle.optimizer.training.features import Pair, Projection, Revealing, watched

NARROW: dict[str, Any] = {"student": {"width": 0.5}, "alpha": 0}


class Masked(trainable.Attentive):
    """Attention of each row to those before it, as a mask of -inf says."""

    def attended(self, given: torch.Tensor) -> torch.Tensor:
        """What the heads make of the rows."""
        query, key, value = (
            layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mask = torch.full((8, 8), -math.inf).triu(1)
        mixed = (query @ key.transpose(-2, -1) + mask).softmax(-1) @ value
        answer: torch.Tensor = self.mix(mixed.transpose(1, 2).reshape(-1, *given.shape[1:]))
        return answer


def distilled(course: Course, **more: Any) -> BuildReport:
    """The answer of a build with a narrow student."""
    report = course.build({"distill": {**NARROW, **more}}, epochs=2)
    assert report.built is not None, report.message
    return report


def stored(course: Course, report: BuildReport) -> dict[str, tuple[int, ...]]:
    """The shapes of what its file stores."""
    assert report.built is not None
    return {tensor.name: tuple(tensor.dims) for tensor in course.onnx(report.built).graph.initializer}


def test_a_narrower_student_follows_features_through_projections_which_its_file_does_not_have(course: Course) -> None:
    plain, following = distilled(course), distilled(course, features={"weight": 2})
    assert "features that were followed: " in following.message
    assert plain.training is not None and following.training is not None
    curve = following.training.curve
    assert curve[-1].held_out_loss < curve[0].held_out_loss
    assert curve[0].held_out_loss > plain.training.curve[0].held_out_loss, "features are part of the loss"
    assert following.training.parameters_after == plain.training.parameters_after
    assert stored(course, following) == stored(course, plain)
    assert following.built != plain.built


def test_pairs_that_are_named_are_followed(course: Course) -> None:
    report = distilled(course, features={"pairs": [{"teacher": "blocks.0.4"}, {"teacher": "deep.0"}]})
    assert "features that were followed: blocks_0_4_layer and deep_0_layer" in report.message


def test_a_student_of_ones_own_is_paired_by_the_names_of_its_layers(course: Course) -> None:
    step = {"student": {"callable": "tests.data.trainable:student"}}
    by_itself = course.build({"distill": {**step, "features": {}}}, epochs=1)
    assert by_itself.built is not None, by_itself.message
    assert "blocks_1_4_layer by blocks.1.4" in by_itself.message
    pairs = [{"teacher": "blocks.1.4", "student": "blocks.0"}]
    named = course.build({"distill": {**step, "features": {"pairs": pairs}}}, epochs=1)
    assert named.built is not None, named.message
    assert "features that were followed: blocks_1_4_layer by blocks.0" in named.message


def test_what_an_earlier_step_made_is_paired_with_the_original(course: Course) -> None:
    first = course.build({"prune": {"ratio": 0.5}}, epochs=1)
    task = course.task({"distill": {"features": {}}}, epochs=1)
    task = task.model_copy(update={"portable": first.built, "follows": first.cache_key})
    report = build.run(task, course.store)
    assert report.built is not None, report.message
    assert "deep_0_layer" in report.message


def test_what_a_mask_sets_to_minus_infinity_is_not_followed(tmp_path: Path) -> None:
    course = Course.of(tmp_path, Masked().eval(), judged=False)
    by_itself = course.build({"distill": {"features": {}}}, epochs=1)
    assert by_itself.built is not None, by_itself.message
    assert by_itself.training is not None
    assert all(math.isfinite(epoch.held_out_loss) for epoch in by_itself.training.curve)
    named = course.build({"distill": {"features": {"pairs": [{"teacher": "add"}]}}}, epochs=1)
    assert named.built is None
    assert "the original computes no finite value add with an item in each row" in named.message


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (
            {"features": {"pairs": [{"teacher": "blocks.7.0"}]}},
            r"the original computes no finite value blocks\.7\.0 .* blocks_0_0_layer",
        ),
        (
            {"features": {"pairs": [{"teacher": "deep.0", "student": "deep.9"}]}},
            r"the student computes no finite value deep\.9 .* deep_0_layer",
        ),
        (
            {"features": {"pairs": [{"teacher": "deep.0", "student": "stem.0"}]}},
            r"deep_0_layer of the original has the shape \[2, 32, 4, 4\], and stem_0_layer of the student \[2, 8, 8, 8\]",
        ),
        (
            {"student": {"callable": "tests.data.trainable:other_names"}, "features": {}},
            r"set features.pairs; the original has .* the student has .*first",
        ),
    ],
    ids=["unknown in the original", "unknown in the student", "another shape", "no name in common"],
)
def test_features_that_cannot_be_compared_are_refused_with_what_there_is(
    course: Course, step: dict[str, Any], told: str
) -> None:
    report = course.build({"distill": {**NARROW, **step}}, epochs=1)
    assert report.built is None
    assert re.search(told, report.message), report.message


def test_a_projection_is_there_where_a_size_differs_and_maps_along_it() -> None:
    wanted, own = torch.Size([2, 16, 4, 4]), torch.Size([2, 6, 4, 4])
    made = Pair("a", "b", wanted, own).projection()
    assert isinstance(made, Projection)
    assert made(torch.zeros(own)).shape == wanted
    assert isinstance(Pair("a", "b", own, own).projection(), nn.Identity)
    assert not Pair("a", "b", wanted, torch.Size([2, 6, 8, 4])).fits
    assert not Pair("a", "b", wanted, torch.Size([3, 16, 4, 4])[:3]).fits


def test_a_model_answers_as_without_being_watched() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    given = torch.randn(5, 4)
    shown = Revealing(module, ["1"])(given)
    assert torch.equal(shown[0], module(given))
    assert torch.equal(shown[1], module[:2](given))
    assert set(watched(module, (given,))[1]) == {"0", "1", "2"}
    assert not any(layer._forward_hooks for layer in module.modules())
