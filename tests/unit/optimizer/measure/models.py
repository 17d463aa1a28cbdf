"""Small real models on scikit-learn's digits, and a store that holds them: what the tests of measuring work on."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from tests.warm import warm

from fettle.api.data import EvaluationSpec
from fettle.api.labels import LabelForm, LabelReading
from fettle.api.recipe import QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.report import MeasureReport
from fettle.api.signature import Signature, Tensor
from fettle.api.task import BuiltCandidate, CandidatePlan, MeasureTask, StoredData, StoredModel
from fettle.api.vocabulary import Metric, Precision, QuantizeMode, RuntimeName
from fettle.optimizer import measure
from fettle.optimizer.measure import process
from fettle.optimizer.measure.schedule import TimingSchedule
from fettle.store.arrays import Array
from fettle.store.store import Store
from fettle.store.uris import Mounts

SIGNATURE = Signature(
    inputs=(Tensor(name="pixels", dtype="FP32", shape=(-1, 64), batch_axis=0),),
    outputs=(Tensor(name="logits", dtype="FP32", shape=(-1, 10), batch_axis=0),),
)
CLASSES = LabelReading(form=LabelForm.CLASSES, told="class indices, 0 to 9", classes=10)  # as prepare reads them
STATIC = (RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.STATIC)),)
# One process start of two short rounds: what is said of accuracy, of files and of the store does not depend on how long is timed.
SHORT = TimingSchedule(least_starts=1, looks=(1,), least_rounds=1, rounds=2, most_rounds=2, block_seconds=0.02)
MOUNTS = Mounts(allow_files=True)


@dataclass(frozen=True)
class Digits:
    """A linear classifier of the digits, and the items it was not trained on."""

    weights: Array
    bias: Array
    images: Array
    labels: Array
    training: Array
    training_labels: Array


@cache
def digits() -> Digits:
    """Train on the first 1,000, keep the rest. Nobody changes them."""
    data = load_digits()
    images = data.data.astype(np.float32) / 16
    model = LogisticRegression(max_iter=500).fit(images[:1000], data.target[:1000])
    return Digits(
        weights=model.coef_.T.astype(np.float32),
        bias=model.intercept_.astype(np.float32),
        images=images[1000:],
        labels=data.target[1000:].astype(np.int64),
        training=images[:1000],
        training_labels=data.target[:1000].astype(np.int64),
    )


def classifier(
    weights: Array, bias: Array, extra: list[onnx.NodeProto] | None = None, result: str = "sum"
) -> onnx.ModelProto:
    """pixels @ weights + bias -> logits; `extra` nodes lead from `sum` to `result`."""
    nodes = [
        helper.make_node("MatMul", ["pixels", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        *(extra or []),
        helper.make_node("Identity", [result], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def put_model(store: Store, folder: Path, name: str, model: onnx.ModelProto) -> StoredModel:
    """Store a model."""
    home = folder / name
    home.mkdir(parents=True)
    onnx.save(model, home / "model.onnx")
    return store.put_model(home, "model.onnx")


def candidate(
    name: str,
    model: StoredModel,
    runtime: RuntimeName = RuntimeName.ONNXRUNTIME,
    steps: tuple[RecipeStep, ...] = (),
    precision: Precision = Precision.FLOAT32,
    untouched: bool = False,
) -> BuiltCandidate:
    """A candidate with one thread."""
    settings = RuntimeSettings(precision=precision, graph_optimization=not untouched)
    plan = CandidatePlan(name=name, recipe=name, runtime=runtime, settings=settings, untouched=untouched)
    return BuiltCandidate(plan=plan, model=model, steps=steps)


def task(
    store: Store, original: StoredModel, items: StoredData, *candidates: BuiltCandidate, **changes: Any
) -> MeasureTask:
    """A measuring task."""
    values: dict[str, Any] = {
        "store": store.uri,
        "target": "cpu",
        "threads": 1,
        "batch_sizes": (1,),
        "source_sha256": "0" * 64,
        "signature": SIGNATURE,
        "baseline": candidate("original", original, untouched=True),
        "candidates": candidates,
        "items": items,
        "generated": False,
        "evaluation": EvaluationSpec(uri="pvc://data/evaluation.npz", metric=Metric.ACCURACY),
        "labels": CLASSES if items.labelled else None,
        "alpha": 0.05,
    }
    return MeasureTask(**(values | changes))


def open_store(folder: Path) -> Store:
    """An empty store in a folder."""
    return Store.open(f"file://{folder}", MOUNTS)


@dataclass(frozen=True)
class Bench:
    """A store with models and items."""

    store: Store
    folder: Path
    data: Digits
    original: StoredModel
    items: StoredData

    def model(self, name: str, *arguments: Any) -> StoredModel:
        """Store a classifier."""
        return put_model(self.store, self.folder / "models", name, classifier(*arguments))

    def measure(
        self,
        *candidates: BuiltCandidate,
        schedule: TimingSchedule = SHORT,
        original: StoredModel | None = None,
        cold: bool = False,
        **changes: Any,
    ) -> MeasureReport:
        """Measure candidates beside the original on all items, but for what is changed of the task. `cold`: each worker starts as in a Job."""
        asked = task(self.store, original or self.original, changes.pop("items", self.items), *candidates, **changes)
        with nullcontext() if cold else warm(process):
            return measure.run(asked, self.store, schedule)


def make_bench(folder: Path) -> Bench:
    """The digits, their linear classifier, 797 labelled items."""
    store, data = open_store(folder / "store"), digits()
    original = put_model(store, folder / "models", "original", classifier(data.weights, data.bias))
    return Bench(store, folder, data, original, store.put_data({"pixels": data.images, "labels": data.labels}))
