"""`fettle.optimize`: a model and items as they are in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from tests.data import models
from tests.unit.plan.optimize.world import make_spec
from tests.unit.server.serving import publish

import fettle
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.cli.local.mounts import Places
from fettle.errors import UsageError
from fettle.library.items import GivenItems, RunItems
from fettle.library.models import written
from fettle.library.predict import Predictor
from fettle.store.uris import Mounts


class Net(torch.nn.Module):
    """Two inputs, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(4, 3), torch.nn.Linear(2, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.left(left) + self.right(right)


VECTORS = np.random.default_rng(3).standard_normal((300, 8)).astype(np.float32)
CLASSES = (VECTORS[:, 0] + VECTORS[:, 1] > 0).astype(np.int64)


def test_importing_fettle_imports_nothing_heavy() -> None:
    """Every process of the operator imports it."""
    code = "import sys, fettle; print(sorted({'numpy', 'torch', 'yaml', 'rich', 'fettle.cli'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_torch_module_is_exported_with_the_callers_items(tmp_path: Path) -> None:
    file = written(Net(), [np.zeros((5, 4), np.float32), np.zeros((5, 2), np.float32)], tmp_path)
    assert (file.inputs, file.name) == (("left", "right"), "Net")
    program = torch.export.load(file.path)
    answer = program.module()(torch.zeros(7, 4), torch.zeros(7, 2))
    assert answer.shape == (7, 3), "any number of items"


def test_a_scikit_learn_estimator_becomes_onnx(tmp_path: Path) -> None:
    estimator = LogisticRegression().fit(VECTORS, CLASSES)
    file = written(estimator, [VECTORS], tmp_path)
    assert (len(file.inputs), file.name) == (1, "LogisticRegression")
    assert {node.op_type for node in onnx.load(file.path).graph.node} & {"LinearClassifier", "MatMul", "Gemm"}


def test_an_estimator_that_becomes_another_model_in_onnx_is_refused(tmp_path: Path) -> None:
    """Float32 has not the digits that a Gaussian process without noise needs."""
    items = np.random.default_rng(0).normal(size=(200, 2))
    process = GaussianProcessRegressor(RBF(3.0), alpha=1e-10, optimizer=None).fit(items, np.sin(items).sum(1))
    with pytest.raises(
        UsageError, match=r"skl2onnx does not convert this GaussianProcessRegressor faithfully: .*of 200 items"
    ):
        written(process, [items.astype(np.float32)], tmp_path)


def test_an_onnx_model_is_named_after_its_graph_and_weights_are_no_inputs(tmp_path: Path) -> None:
    model = models.old_opset()
    file = written(model, [], tmp_path)
    assert file.inputs == ("image",)
    assert file.name == model.graph.name


def test_a_file_stays_where_it_is(tmp_path: Path) -> None:
    path = models.save(models.dynamic_batch(), tmp_path / "net.onnx")
    file = written(path, [], tmp_path)
    assert (file.path, file.inputs, file.name) == (str(path), ("image",), None)


REFUSED: list[tuple[str, Any, Any, str]] = [
    ("something that is no model", {"weights": 1}, VECTORS, "cannot optimize a builtins.dict: expected a path"),
    ("a module without items to export it with", Net(), None, "is exported with example inputs: pass evaluation"),
    ("a module that cannot be exported", Net(), np.zeros((4, 5, 6)), "torch.export cannot export this Net: "),
    ("labels of other items", "x.onnx", (VECTORS, CLASSES[:9]), "there are 9 labels for 300 items"),
    ("three values in a pair", "x.onnx", (VECTORS, CLASSES, CLASSES), r"expected a pair \(X, y\) of inputs and labels, found 3"),
    ("more arrays than inputs", "x.onnx", [VECTORS, VECTORS], "the model has the inputs x, and 2 arrays were given"),
    ("a model that is not there", "nowhere.onnx", {"x": VECTORS}, "nowhere.onnx does not exist"),
    ("arrays without names for a file of unknown inputs", "x.pt2", VECTORS, "the names of the model's inputs are not known"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "model", "evaluation", "message"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_does_not_go_together_is_refused_before_any_work(
    what: str, model: Any, evaluation: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models.save(models.conditional(), tmp_path / "x.onnx")
    (tmp_path / "x.pt2").write_bytes(b"")
    with pytest.raises(UsageError, match=message):
        fettle.optimize(model, evaluation)
    assert not (tmp_path / "fettle-store").exists()


def test_labels_of_a_pair_are_stored_beside_the_inputs(tmp_path: Path) -> None:
    path = GivenItems.of((VECTORS, CLASSES), labelled=True).file("evaluation", ("x",), tmp_path)
    assert path is not None
    with np.load(path) as stored:
        assert set(stored) == {"x", "labels"}
        np.testing.assert_array_equal(stored["labels"], CLASSES)


def test_a_model_that_cannot_be_optimized_is_told_by_the_result(tmp_path: Path) -> None:
    options = fettle.RunOptions(store=tmp_path / "store", measure_seconds=1, progress=False)
    result = fettle.optimize(models.custom_operator(), options=options)
    assert (result.winner, result.artifact) == (None, None)
    assert "SecretSauce" in result.message
    assert "SecretSauce" in result._repr_html_()


def lookup(root: Path) -> Path:
    """Folder of the look-up model's artifact: y = x for whole numbers below 12."""
    sha256 = publish(root)
    return root / "store" / "artifacts" / sha256


def test_predictions_are_those_of_any_number_of_items(tmp_path: Path) -> None:
    predictor = Predictor(lookup(tmp_path))
    rows = np.arange(600 * 4).reshape(600, 4) % 12
    np.testing.assert_array_equal(predictor.predict(rows.astype(np.float32)), rows)
    np.testing.assert_array_equal(predictor.predict({"x": rows}), rows, "numbers of another type")
    np.testing.assert_array_equal(predictor.predict([[1.0, 2, 3, 4]]), [[1, 2, 3, 4]], "a list")


UNFIT: list[tuple[str, Any, str]] = [
    ("an item without its batch", np.zeros(4), r"input x: expected shape \[-1, 4\] \(-1 = any size\), found \[4\]"),
    ("another width", np.zeros((2, 5)), r"found \[2, 5\]"),
    ("no items", np.zeros((0, 4)), "at least one"),
    ("another input", {"z": np.zeros((1, 4))}, "expected arrays for the inputs x, found z"),
    ("texts", np.array([["a"] * 4]), "input x: expected float32, found <U1: convert it with astype"),
    ("complex numbers", np.zeros((1, 4), complex), "input x: expected float32, found complex128"),
    ("a path", "items.npz", "the model has the inputs x, and 0 arrays were given"),
]


@pytest.mark.parametrize(("what", "given", "message"), UNFIT, ids=[case[0] for case in UNFIT])
def test_what_is_no_input_of_the_winner_is_refused(what: str, given: Any, message: str, tmp_path: Path) -> None:
    predictor = Predictor(lookup(tmp_path))
    with pytest.raises(UsageError, match=message):
        predictor.predict(given)


def test_a_run_that_published_nothing_predicts_nothing(tmp_path: Path) -> None:
    result = fettle.Result(OptimizedModelStatus(), Places(make_spec(), Mounts({}), "pvc://store"))
    with pytest.raises(UsageError, match="there is no winner to predict with"):
        result.predict(VECTORS)


def test_training_items_are_stored_with_their_labels(tmp_path: Path) -> None:
    items = RunItems.of(None, calibration=VECTORS[:9], training=({"x": VECTORS}, CLASSES))
    assert [array.shape for array in items.example] == [(9, 8)]
    files = items.files(("x",), tmp_path)
    assert files == {
        "evaluation": None,
        "calibration": str(tmp_path / "calibration.npz"),
        "training": str(tmp_path / "training.npz"),
    }
    with np.load(tmp_path / "training.npz") as stored:
        assert set(stored) == {"x", "labels"}
        np.testing.assert_array_equal(stored["labels"], CLASSES)


def test_training_items_with_other_labels_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models.save(models.conditional(), tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="there are 9 labels for 300 items"):
        fettle.optimize("x.onnx", VECTORS, training=(VECTORS, CLASSES[:9]))
    with pytest.raises(TypeError, match="trainning"):
        fettle.optimize("x.onnx", VECTORS, trainning=VECTORS)
    assert not (tmp_path / "fettle-store").exists()


def test_training_items_reach_the_run(tmp_path: Path) -> None:
    """Those that do not fit the model are what the run says first."""
    options = fettle.RunOptions(store=tmp_path / "store", measure_seconds=1, progress=False)
    estimator = LogisticRegression().fit(VECTORS, CLASSES)
    result = fettle.optimize(estimator, (VECTORS, CLASSES), training=(VECTORS[:, :3], CLASSES), options=options)
    assert result.winner is None
    assert "training.npz" in result.message
