"""The other steps that train: each makes what it says, and hands it on in the portable form."""

from __future__ import annotations

import importlib
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from tests.data import trainable
from tests.unit.optimizer.training.course import Course

from fettle.api.recipe import QuantizeStep, RecipeStep, completed
from fettle.api.report import BuildReport
from fettle.api.vocabulary import QuantizeMode, QuantizePreset
from fettle.optimizer import build, stage
from fettle.optimizer.steps import torch_low_rank
from fettle.optimizer.steps.torch_aware import AwareLayer
from fettle.optimizer.training.checkpoints import Checkpoints
from fettle.runtimes.base import Array
from fettle.store.uris import Mounts


def kernels(course: Course, report: BuildReport) -> list[Array]:
    """What it stores with more than one dimension."""
    assert report.built is not None, report.message
    found = [numpy_helper.to_array(tensor) for tensor in course.onnx(report.built).graph.initializer]
    return [array for array in found if array.ndim > 1]


def test_magnitude_pruning_sets_the_smallest_weights_to_0_and_training_keeps_them_there(course: Course) -> None:
    report = course.build({"prune": {"method": "Magnitude", "sparsity": 0.6}}, epochs=2)
    weights = np.concatenate([kernel.reshape(-1) for kernel in kernels(course, report)])
    assert np.mean(weights == 0) == pytest.approx(0.6, abs=0.02)
    assert "the measured speed-up shows whether the model gets faster" in report.message
    assert report.training is not None
    assert report.training.score > 0.7
    assert report.built is not None
    packed = [len(zlib.compress(course.path(model).read_bytes())) for model in (report.built, course.prepared.portable)]
    assert packed[0] < 0.7 * packed[1], "zeros compress"


def test_of_every_four_neighbouring_weights_two_stay(course: Course) -> None:
    report = course.build({"prune": {"method": "NM"}}, epochs=1)
    grouped = [kernel for kernel in kernels(course, report) if kernel.shape[1] % 4 == 0]
    assert grouped
    for kernel in grouped:
        last = np.moveaxis(kernel, 1, -1)
        assert (np.sum(last.reshape(*last.shape[:-1], -1, 4) != 0, axis=-1) <= 2).all()
    assert "2:4 sparsity: GPUs may use sparse kernels; no runtime on a CPU gains from it" in report.message


def test_where_three_of_four_weights_stay_nothing_is_promised_of_gpus(course: Course) -> None:
    report = course.build({"prune": {"method": "NM", "n": 3, "m": 4}}, epochs=1)
    assert "3:4 sparsity: no runtime on a CPU gains from it" in report.message


@pytest.mark.parametrize(
    ("step", "told", "share"),
    [
        ({"lowRank": {"rank": 0.4}}, "layers are factorized", 0.9),
        ({"replace": {"depthwiseSeparable": {"minChannels": 8}}}, "5 convolutions are depthwise-separable", 0.4),
        ({"distill": {"student": {"width": 0.5}, "temperature": 2}}, "a student of", 0.5),
        ({"distill": {"student": {"depth": 0.5}, "alpha": 0}}, "residual blocks left out: 1 of 2", 0.7),
        ({"distill": {"student": {"callable": "tests.data.trainable:student"}}}, "a student of", 0.5),
    ],
    ids=["lowRank", "replace", "width", "depth", "callable"],
)
def test_a_smaller_model_learns(course: Course, step: dict[str, Any], told: str, share: float) -> None:
    report = course.build(step, epochs=2)
    assert report.built is not None, report.message
    assert told in report.message
    figures = report.training
    assert figures is not None
    assert figures.parameters_after < share * figures.parameters_before
    assert figures.curve[-1].held_out_loss < figures.curve[0].held_out_loss


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (
            {"distill": {"student": {"callable": "tests.data.trainable:nothing"}}},
            "made a int, expected a torch.nn.Module",
        ),
        ({"distill": {"student": {"callable": "not.there:student"}}}, "ModuleNotFoundError"),
        (
            {"distill": {"student": {"callable": "tests.data.trainable:leaving"}}},
            "could not make a student: SystemExit: 3",
        ),
        ({"distill": {"student": {"callable": "tests.data.trainable:stranger"}}}, "they must be the same"),
        (
            {"distill": {"student": {"callable": "tests.data.trainable:doubled"}}},
            "the student has the outputs float64 [2, 10], the original float32 [2, 10]: they must be the same",
        ),
        ({"prune": {"method": "NM", "n": 4, "m": 4}}, "m must be greater"),
        ({"replace": {"depthwiseSeparable": {"minChannels": 999}}}, "no convolution of 999 channels or more"),
        ({"lowRank": {"rank": 0.99}}, "no layer gets smaller"),
        ({"distill": {"student": {"depth": 0.99}}}, "none can be left out"),
    ],
)
def test_what_a_step_cannot_do_is_refused_with_the_reason(course: Course, step: dict[str, Any], told: str) -> None:
    report = course.build(step, epochs=1)
    assert report.built is None
    assert told in report.message


def test_a_student_that_cannot_be_exported_is_refused_before_it_is_trained(
    course: Course, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    name = "tests.data.trainable:deciding"
    report = course.build({"distill": {"student": {"callable": name}}}, epochs=1)
    assert report.built is None
    assert report.message.startswith(f"distill.student.callable {name}: PyTorch could not export the model: ")
    assert "epoch 0" not in caplog.text


def test_a_student_of_ones_own_is_looked_for_again_when_its_code_has_changed(
    course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    task = course.task({"distill": {"student": {"callable": "late_student:student"}}}, epochs=1)
    mounts = Mounts({"claim": course.folder})
    refused = stage.run(task, mounts)
    assert isinstance(refused, BuildReport)
    assert "ModuleNotFoundError" in refused.message
    (tmp_path / "late_student.py").write_text("from tests.data.trainable import student\n")
    importlib.invalidate_caches()
    built = stage.run(task, mounts)
    assert isinstance(built, BuildReport)
    assert built.built is not None, built.message
    assert stage.run(task, mounts) == built, "nothing has changed"
    (tmp_path / "late_student.py").write_text("from tests.data.trainable import student as student\n")
    changed = stage.run(task, mounts)
    assert isinstance(changed, BuildReport)
    assert changed.cache_key != built.cache_key


def test_a_factorization_that_was_killed_goes_on_with_the_rank_that_it_began_with(
    course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock finds another rank each time."""
    task = course.task({"lowRank": {"targetSpeedup": 1.2}}, epochs=2)
    save = Checkpoints.save

    def killed(self: Checkpoints, number: int, state: dict[str, Any]) -> None:
        save(self, number, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch_low_rank, "least_for", lambda *_: 0.6)
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            build.run(task, course.store)
    monkeypatch.setattr(torch_low_rank, "least_for", lambda *_: 0.3)
    report = build.run(task, course.store)
    assert report.built is not None, report.message
    assert report.training is not None
    assert [row.epoch for row in report.training.curve] == [0, 1, 2]


def test_layers_in_float64_are_factorized_in_float64(tmp_path: Path) -> None:
    course = Course.of(tmp_path, trainable.Double().eval(), judged=False)
    report = course.build({"lowRank": {"rank": 0.3}}, epochs=1)
    assert report.built is not None, report.message


def test_low_rank_needs_no_training_data(course: Course) -> None:
    task = course.task({"lowRank": {"rank": 0.5}}).model_copy(update={"training": None})
    report = build.run(task, course.store)
    assert report.built is not None, report.message
    assert report.training is None


def test_training_for_int8_hands_on_weights_that_quantizing_does_not_change(course: Course) -> None:
    report = course.build({"quantize": {"mode": "Aware"}}, epochs=2)
    assert report.training is not None
    assert report.training.parameters_after == report.training.parameters_before
    assert report.training.score > 0.9
    found = kernels(course, report)
    assert len(found) == 7
    for kernel in found:
        # In ONNX, a dense layer's outputs may be its columns.
        grids = [np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1) for axis in (0, 1)]
        steps = [grid / np.abs(grid).max(axis=1, keepdims=True) * 127 for grid in grids]
        assert min(float(np.abs(step - step.round()).max()) for step in steps) < 1e-3


def test_a_recipe_that_trains_for_int8_is_quantized_behind_it() -> None:
    aware = RecipeStep.model_validate({"quantize": {"mode": "Aware", "preset": "Transformer", "operators": ["MatMul"]}})
    first, second = completed((aware,))
    assert first == aware
    assert second.quantize == QuantizeStep(
        mode=QuantizeMode.STATIC, preset=QuantizePreset.TRANSFORMER, operators=("MatMul",)
    )


@pytest.mark.parametrize("later", ["Static", "Mixed", "Aware"])
def test_a_recipe_is_quantized_once(later: str) -> None:
    steps = tuple(RecipeStep.model_validate({"quantize": {"mode": mode}}) for mode in ("Aware", later))
    assert [step for step in completed(steps) if step.quantizes] == [
        steps[1] if later != "Aware" else RecipeStep(quantize=QuantizeStep())
    ]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_layers_of_every_float_learn_in_int8(kind: torch.dtype) -> None:
    layer = AwareLayer(torch.nn.Linear(4, 2).to(kind))
    answer = layer(torch.linspace(-1, 3, 40).reshape(10, 4).to(kind))
    answer.sum().backward()
    assert answer.dtype == kind
    assert all(weight.grad is not None for weight in layer.parameters())


def test_ranges_of_a_layer_follow_its_items_in_training_only() -> None:
    layer = AwareLayer(torch.nn.Linear(4, 2))
    data = torch.linspace(-1, 3, 40).reshape(10, 4)
    layer.eval()
    layer(data)
    assert (float(layer.low), float(layer.high)) == (0, 0), "not yet known"
    layer.train()
    layer(data)
    assert (float(layer.low), float(layer.high)) == (-1, 3)
    layer(2 * data)
    assert (float(layer.low), float(layer.high)) == pytest.approx((-1.01, 3.03))
