"""Structured pruning of heads and of blocks: they are gone from the graph, which answers as the model did without what they add."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tests.data import trainable
from tests.unit.optimizer.training.course import Course
from tests.unit.optimizer.training.test_kills import killing
from torch import nn

from fettle.api.signature import Signature
from fettle.optimizer.training.blocks import Blocks, blocks, leave_out
from fettle.optimizer.training.checkpoints import Checkpoints
from fettle.optimizer.training.heads import attentions, without_heads
from fettle.optimizer.training.program import call, opened
from fettle.optimizer.training.session import Training

EXAMPLE = (torch.from_numpy(trainable.digits()["training"]["image"][:2]),)
FORMS = ("fused", "written", "cut", "layer")


@pytest.fixture(scope="module")
def attentive(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A net with attention that knows its digits."""
    return Course.of(tmp_path_factory.mktemp("attentive"), trainable.learned(trainable.Attentive, epochs=20))


def taken_in(module: nn.Module, folder: Path, signature: Signature) -> torch.fx.GraphModule:
    """`module` as steps get it."""
    return opened(trainable.save(module.eval(), folder / "model.pt2"), signature, EXAMPLE)


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_without_some_heads_answers_as_one_whose_next_layer_ignores_them(
    course: Course, tmp_path: Path, form: str
) -> None:
    torch.manual_seed(1)
    graph, ignoring = (
        taken_in(module, tmp_path, course.prepared.signature) for module in [trainable.Attentive(form)] * 2
    )
    (found,) = attentions(graph, EXAMPLE)
    assert (found.heads, found.size) == (4, 8)
    without_heads(graph, found, [0, 2])
    with torch.no_grad():
        weight = ignoring.get_submodule(found.behind).weight
        for head in (0, 2):
            weight[:, head * 8 : head * 8 + 8] = 0
        torch.testing.assert_close(call(graph, EXAMPLE), call(ignoring, EXAMPLE))
    assert graph.get_submodule(found.behind).weight.shape == (32, 16)
    (left,) = attentions(graph, EXAMPLE)
    assert left.heads == 2
    without_heads(graph, left, [1])
    assert attentions(graph, EXAMPLE) == [], "one head stays"
    many = torch.cat([EXAMPLE[0]] * 3)
    assert call(graph, (many,))[0].shape == (6, 10), "the number of items still varies"


@pytest.mark.parametrize("importance", ["Magnitude", "Taylor"])
def test_heads_that_are_pruned_are_gone_and_the_rest_learns(attentive: Course, importance: str) -> None:
    step = {"prune": {"unit": "Heads", "ratio": 0.5, "importance": importance}}
    report = attentive.build(step, epochs=2)
    assert report.built is not None, report.message
    assert "2 heads of attention were removed" in report.message
    assert report.training is not None
    fewer = report.training.parameters_before - report.training.parameters_after
    assert fewer == 3 * (32 * 16 + 16) + 16 * 32, "half of the rows of three layers, and half of the columns of one"
    assert report.training.curve[-1].held_out_loss < report.training.curve[0].held_out_loss


def test_heads_that_can_no_longer_be_told_from_the_rows_stay(tmp_path: Path) -> None:
    course = Course.of(tmp_path, trainable.Attentive(heads=8, width=16).eval(), judged=False)
    report = course.build({"prune": {"unit": "Heads", "ratio": 0.75, "iterations": 2}}, epochs=2)
    assert report.message == "prune unit Heads: no further heads can be removed: lower ratio or iterations"
    once = course.build({"prune": {"unit": "Heads", "ratio": 0.5}}, epochs=1)
    assert once.built is not None, once.message


@pytest.mark.parametrize(
    ("module", "unit", "rounds", "gone"),
    [
        (trainable.Attentive(heads=8), "Heads", 4, "2 heads of attention were removed"),
        (trainable.Net(blocks=4), "Blocks", 2, "1 residual blocks were left out"),
    ],
    ids=["heads", "blocks"],
)
def test_many_rounds_remove_as_many_units_as_one(
    tmp_path: Path, module: nn.Module, unit: str, rounds: int, gone: str
) -> None:
    course = Course.of(tmp_path, module.eval(), judged=False)
    report = course.build({"prune": {"unit": unit, "ratio": 0.25, "iterations": rounds}}, epochs=rounds)
    assert report.built is not None, report.message
    assert gone in report.message


def test_heads_of_an_onnx_source_are_pruned_too(tmp_path: Path) -> None:
    for name in ("program", "graph/model"):
        (tmp_path / name).mkdir(parents=True)
    written = Course.of(tmp_path / "program", trainable.Attentive("written").eval(), judged=False)
    shutil.copyfile(written.path(written.prepared.portable), tmp_path / "graph/model/model.onnx")
    graph = Course.of(tmp_path / "graph", uri="model/model.onnx", judged=False)
    report = graph.build({"prune": {"unit": "Heads"}}, epochs=1)
    assert report.built is not None, report.message
    assert "2 heads of attention were removed" in report.message


def test_a_model_without_attention_is_refused_with_what_was_looked_for(course: Course) -> None:
    report = course.build({"prune": {"unit": "Heads"}}, epochs=1)
    assert report.built is None
    assert "no heads can be removed: the model has no attention with several heads" in report.message


def test_a_block_without_which_little_is_lost_is_left_out_and_the_rest_learns(course: Course) -> None:
    report = course.build({"prune": {"unit": "Blocks", "ratio": 0.5}}, epochs=4)
    assert report.built is not None, report.message
    assert "1 residual blocks were left out" in report.message
    assert report.training is not None
    assert report.training.parameters_after < 0.7 * report.training.parameters_before
    assert course.accuracy(report.built) > course.accuracy(course.prepared.portable) - 0.05


def test_a_block_that_changes_values_in_place_is_left_out_too(tmp_path: Path) -> None:
    course = Course.of(tmp_path, trainable.InPlace().eval(), judged=False)
    report = course.build({"prune": {"unit": "Blocks"}}, epochs=1)
    assert report.built is not None, report.message
    assert report.training is not None
    assert report.training.parameters_after < 0.7 * report.training.parameters_before


def test_the_block_that_changes_nothing_goes_first(tmp_path: Path) -> None:
    def idle() -> trainable.Net:
        net = trainable.Net()
        for weight in net.blocks[0].get_submodule("4").parameters():
            nn.init.zeros_(weight).requires_grad_(False)
        return net

    report = Course.of(tmp_path, trainable.learned(idle)).build({"prune": {"unit": "Blocks"}}, epochs=1)
    assert report.built is not None, report.message
    assert report.training is not None
    assert report.training.curve[0].score == pytest.approx(report.training.original_score)


def test_a_model_with_fewer_than_two_blocks_is_refused(tmp_path: Path) -> None:
    course = Course.of(tmp_path, trainable.Plain(), judged=False)
    report = course.build({"prune": {"unit": "Blocks"}}, epochs=1)
    assert report.built is None
    assert "the model has 0 residual blocks" in report.message


def test_blocks_one_behind_the_other_go_together(course: Course, tmp_path: Path) -> None:
    net = trainable.Attentive().eval()
    graph = taken_in(net, tmp_path, course.prepared.signature)
    names = blocks(graph, EXAMPLE)
    assert len(names) == 2
    leave_out(graph, EXAMPLE, names)
    with torch.no_grad():
        wanted = net.head(net.enter(EXAMPLE[0].flatten(1, 2)).mean(1))
        torch.testing.assert_close(call(graph, EXAMPLE)[0], wanted)


class Crossing(nn.Module):
    """Of two sums, the second is the end of a block only once the first block is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 1, 8, 8] -> [N, 1, 8, 8]"""
        found: torch.Tensor = (image + self.first(image)) + self.second(image)
        return found


def test_blocks_that_went_in_two_rounds_go_again_after_a_kill(course: Course, tmp_path: Path) -> None:
    graph = taken_in(Crossing(), tmp_path, course.prepared.signature)
    (first,) = blocks(graph, EXAMPLE)
    again = copy.deepcopy(graph)
    leave_out(graph, EXAMPLE, [first])
    (second,) = blocks(graph, EXAMPLE)
    Blocks(cast("Training", SimpleNamespace(example=EXAMPLE)), 2).again(again, [first, second])
    assert torch.equal(call(again, EXAMPLE)[0], EXAMPLE[0])


@pytest.mark.parametrize(
    "step",
    [{"unit": "Heads", "iterations": 2}, {"unit": "Blocks"}],
    ids=["heads in two rounds", "blocks"],
)
def test_pruning_that_is_killed_ends_with_the_file_of_an_undisturbed_one(
    attentive: Course, step: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = attentive.build({"prune": step}, epochs=2)
    assert undisturbed.built is not None, undisturbed.message
    for kept in (False, True, False, True):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Checkpoints, "save", killing(kept))
            attentive.build({"prune": step}, epochs=2)
    assert attentive.build({"prune": step}, epochs=2).built == undisturbed.built
