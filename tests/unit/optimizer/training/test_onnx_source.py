"""ONNX sources are taken back into PyTorch where that gives the same answers, and refused by name where it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tests.data import models, trainable
from tests.unit.optimizer.training.course import Course

from fettle.api.recipe import RecipeStep
from fettle.api.source import FactorySpec, InputSpec, SourceSpec
from fettle.api.task import BuildPlan, TrainingPlan
from fettle.api.training import TrainSpec
from fettle.api.vocabulary import RuntimeName


@pytest.fixture(scope="module")
def graphs(course: Course, tmp_path_factory: pytest.TempPathFactory) -> Course:
    """The same net as an ONNX file."""
    folder = tmp_path_factory.mktemp("graphs")
    (folder / "model").mkdir()
    shutil.copyfile(course.path(course.prepared.portable), folder / "model/model.onnx")
    return Course.of(folder, uri="model/model.onnx")


def test_an_onnx_source_is_pruned_like_one_of_pytorch(graphs: Course) -> None:
    """With as many epochs as there are by default: batch normalization is folded into its weights, and what is left learns more slowly."""
    report = graphs.build({"prune": {"ratio": 0.5}})
    assert report.built is not None, report.message
    figures = report.training
    assert figures is not None
    assert figures.parameters_after < 0.4 * figures.parameters_before
    assert graphs.accuracy(report.built) > graphs.accuracy(graphs.prepared.portable) - 0.1


def test_an_operator_that_pytorch_lacks_is_named(graphs: Course, tmp_path: Path) -> None:
    folder = tmp_path / "claim"
    (folder / "model").mkdir(parents=True)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Binarizer", ["flat"], ["cut"], domain="ai.onnx.ml", threshold=0.5),
        helper.make_node("MatMul", ["cut", "w"], ["output"]),
    ]
    weights = models.stored("w", np.random.default_rng(0).normal(0, 1, (64, 10)).astype(np.float32))
    graph = models.model(
        nodes,
        [models.tensor("image", ["N", 1, 8, 8])],
        [models.tensor("output", ["N", 10], TensorProto.FLOAT)],
        [weights],
    )
    graph.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    onnx.save(graph, folder / "model/model.onnx")
    report = Course.of(folder, uri="model/model.onnx", judged=False).build({"distill": {}}, epochs=1)
    assert report.built is None
    assert "Binarizer cannot be converted from ONNX to PyTorch" in report.message


TRAINED = BuildPlan(
    name="lean-onnxruntime",
    family=RuntimeName.ONNXRUNTIME,
    steps=(RecipeStep.model_validate({"prune": {}}),),
    training=TrainingPlan(spec=TrainSpec()),
)


def weights_of(module: torch.nn.Module, folder: Path, code: str, *more: InputSpec) -> SourceSpec:
    """A source of weights, and of the code that makes their module."""
    torch.save(module.state_dict(), folder / "weights.pt")
    (folder / "nets.py").write_text(
        f"from tests.data.trainable import Net, Scaled\n\n\ndef create():\n    return {code}\n"
    )
    return SourceSpec(
        uri="pvc://claim/weights.pt",
        trusted=True,
        factory=FactorySpec(callable="nets:create", uri="pvc://claim/nets.py"),
        inputs=(InputSpec(name="image", dtype="FP32", shape=("N", 1, 8, 8)), *more),
    )


def test_weights_of_a_module_that_code_makes_are_trained_as_its_own_program(tmp_path: Path) -> None:
    source = weights_of(trainable.learned(), tmp_path, "Net()")
    made = Course.of(tmp_path, source=source, builds=(TRAINED,))
    assert made.prepared.teacher is not None and made.prepared.teacher.format == "TorchExport"
    report = made.build({"distill": {"student": {"width": 0.5}}}, epochs=2)
    assert report.built is not None, report.message
    figures = report.training
    assert figures is not None
    assert figures.curve[-1].held_out_loss < figures.curve[0].held_out_loss
    own = sum(weight.numel() for weight in trainable.Net().parameters())
    assert figures.parameters_before == own, "batch normalization is not folded into weights"


def test_a_program_is_made_only_where_something_is_trained(tmp_path: Path) -> None:
    made = Course.of(tmp_path, source=weights_of(trainable.learned(), tmp_path, "Net()"))
    assert made.prepared.teacher is None


def test_where_the_program_takes_other_inputs_than_the_artifact_the_portable_form_is_trained(tmp_path: Path) -> None:
    module = trainable.Scaled(trainable.learned())
    constant = InputSpec(name="scale", dtype="FP32", shape=(1,), value=2)
    source = weights_of(module, tmp_path, "Scaled(Net())", constant)
    made = Course.of(tmp_path, source=source, builds=(TRAINED,))
    assert made.prepared.teacher is None
    assert any("trainings start from the portable form" in note for note in made.prepared.notes)
    report = made.build({"distill": {"student": {"width": 0.5}}}, epochs=1)
    assert report.built is not None, report.message
