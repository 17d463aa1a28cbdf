"""What docs/design/where.md says of adding something is done here, in a copy of the package: one new file, and one entry in each list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tests.data import models
from tests.package_copy import PackageCopy

Array = np.ndarray[Any, Any]

# A format whose file is a matrix: the model is x @ matrix, and numpy runs the original.
FORMAT = """
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fettle.api.vocabulary import FormatName
from fettle.optimizer.onnx import inputs as onnx_inputs
from fettle.optimizer.sources.base import Original
from fettle.optimizer.sources.onnx import saved


class Matrix:
    name, stored, title = FormatName.MATRIX, "ONNX", "matrices of numpy"

    def recognizes(self, path, head):
        return head.startswith(b"\\x93NUMPY")

    def require(self, path, trusted):
        pass

    def companions(self, path, beside):
        return ()

    def hints(self, path, inputs):
        return None

    def convert(self, path, inputs, folder):
        matrix = np.load(path)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "matrix",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", matrix.shape[0]])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", matrix.shape[1]])],
            [numpy_helper.from_array(matrix, "w")],
        )
        folder.mkdir()
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / "model.onnx")
        return folder / "model.onnx"

    def original(self, path, plain, inputs, folder):
        matrix = np.load(path)
        run = lambda given: {"y": given["x"] @ matrix}
        made = saved(plain.model, folder, path.parent)
        return Original(plain.model, made, plain.signature, onnx_inputs.hints(plain.model), run, False, True)

    def unconverted(self, path, inputs):
        return None


FORMATS = (Matrix(),)
"""

# A step that rounds weights to half precision and back: lossy, without data.
STEP = """
import numpy as np
import onnx
from onnx import numpy_helper


def half(work):
    model = onnx.load(work.entry)
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            rounded = numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(rounded, weight.name))
    onnx.save(model, work.folder / "model.onnx")
    return work.folder / "model.onnx"
"""

# A metric for models whose first number beats the second, or does not.
METRIC = """
from fettle.optimizer.measure.tasks.base import Likeness, TaskMetric, share


class FirstWins(TaskMetric):
    def __init__(self, name):
        self._name, self.outputs, self.told = name, frozenset({name}), f"whether the first number of {name} is the greater one"

    @classmethod
    def fit(cls, signature, examples, spec):
        return cls(spec.output or signature.outputs[0].name)

    def likeness(self, examples):
        return Likeness.NONE

    def decode(self, answer):
        first, second = answer[self._name].reshape(-1)[:2]
        return bool(first > second)

    def read(self, label, said):
        return bool(label.reshape(-1)[0])

    def scorer(self, labelled):
        return Same()


class Same:
    def __init__(self):
        self._same = []

    def add(self, said, truth):
        self._same.append(said == truth)

    def pool(self):
        return share(self._same)
"""
METRIC_ROW = """    MetricEntry(
        Metric.FIRST_WINS,
        judges="which of two numbers is greater",
        by_labels="share of items whose first number wins where it should",
        without_labels="the same, against the original's numbers",
        title="right winners",
        proof=Proof.ITEMS,
        scorer="first_wins:FirstWins",
    ),
"""
# A candidate that errs in every hundredth item, with labels and without any, and what people and the plan are told of the metric.
JUDGED = """
import json
import numpy as np
from fettle.api import metrics
from fettle.api.data import EvaluationSpec
from fettle.api.vocabulary import Metric
from fettle.optimizer.report.text import metric_name
from tests.unit.optimizer.measure.task_answers import judged, reference
from tools.docs import task_metrics

def answers(wins):
    return [{"y": np.array([win, 0.5], np.float32)} for win in wins]

random = np.random.default_rng(0)
wins = random.integers(0, 2, 600)
errs = np.where(np.arange(600) % 100 == 0, 1 - wins, wins)
drops = [judged(reference(Metric.FIRST_WINS, answers(wins), labels), answers(errs)).drop for labels in (wins, None)]
print(json.dumps({
    "drops": [round(drop.value, 6) for drop in drops],
    "explained": EvaluationSpec.model_fields["metric"].description,
    "guide": task_metrics.rows(),
    "report": metric_name(Metric.FIRST_WINS, None),
    "task": Metric.FIRST_WINS in metrics.TASKS,
}))
"""

# Items as rows of numbers, the label last.
ITEMS = """
import numpy as np

from fettle.optimizer.data.column import Column
from fettle.optimizer.data.columns import Columns


def names(stream, uri):
    return {"x", "labels"}


def read(stream, wanted):
    table = np.loadtxt(stream, delimiter=",", dtype=np.float32)[: wanted.max_samples]
    found = {"x": table[:, :-1], "labels": table[:, -1].astype(np.int64)}
    columns = [Column(name, wanted) for name in wanted.columns([*found])]
    for column in columns:
        column.add(found[column.name])
    return Columns({column.name: column.array() for column in columns}, wanted.unused(list(found)))
"""


@pytest.fixture
def package(tmp_path: Path) -> PackageCopy:
    """A fresh copy."""
    return PackageCopy(tmp_path / "package")


def run(package: PackageCopy, task: dict[str, object], claim: Path) -> dict[str, object]:
    """The report of a task, run as a Job runs it."""
    done = package.python(
        "-m",
        "fettle.optimizer",
        FETTLE_TASK=json.dumps(task),
        FETTLE_MOUNTS=json.dumps({"claim": str(claim)}),
        FETTLE_TERMINATION_LOG=str(claim / "termination"),
    )
    assert done.returncode == 0, (claim / "termination").read_text() + done.stderr[-2000:]
    report: dict[str, object] = json.loads(done.stdout.splitlines()[-1].partition(" ")[2])
    return report


def prepare(uri: str, **more: object) -> dict[str, object]:
    """The task of preparing what lies there."""
    return {"kind": "prepare", "store": "pvc://claim/store", "source": {"uri": uri}, "data": {}, "builds": [], **more}


def test_a_source_format_is_one_file_and_three_entries(package: PackageCopy, tmp_path: Path) -> None:
    package.add("optimizer/sources/matrix.py", FORMAT)
    package.enter("optimizer/sources/__init__.py", "    lightgbm,\n", "    matrix,\n")
    package.enter("optimizer/sources/__init__.py", "    *torch.FORMATS,\n", "    *matrix.FORMATS,\n")
    package.enter("api/vocabulary.py", '    TORCH_EXPORT = "TorchExport"\n', '    MATRIX = "Matrix"\n')
    row = '    FormatEntry(FormatName.MATRIX, ("numpy", "onnx"), RuntimeName.ONNXRUNTIME, (".npy",)),\n'
    package.enter("api/formats.py", "FORMATS: tuple[FormatEntry, ...] = (\n", row)
    claim = tmp_path / "claim"
    claim.mkdir()
    np.save(claim / "model.npy", np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32))
    report = run(package, prepare("pvc://claim/model.npy"), claim)
    assert report["source"]["format"] == "Matrix"  # type: ignore[index]
    assert report["signature"]["inputs"] == [  # type: ignore[index]
        {"name": "x", "dtype": "FP32", "shape": [-1, 4], "batchAxis": 0}
    ]
    assert "onnxruntime" in report["portableRuntimes"]  # type: ignore[operator]


def answered(claim: Path) -> tuple[Array, Array]:
    """200 items, and eight numbers for each from a model that is put into the claim."""
    model = models.save(models.hard_swish(), claim / "model/model.onnx")
    items = np.random.default_rng(0).normal(0, 2, (200, 8)).astype(np.float32)
    return items, onnxruntime.InferenceSession(str(model)).run(None, {"x": items})[0]


def test_a_task_metric_is_one_file_and_two_entries(package: PackageCopy, tmp_path: Path) -> None:
    package.add("optimizer/measure/tasks/first_wins.py", METRIC)
    package.enter(
        "api/vocabulary.py", '    AUTO = "Auto"\n    ACCURACY = "Accuracy"\n', '    FIRST_WINS = "FirstWins"\n'
    )
    package.enter("api/metrics.py", "METRICS: tuple[MetricEntry, ...] = (\n", METRIC_ROW)
    claim = tmp_path / "claim"
    items, numbers = answered(claim)
    np.savez(claim / "items.npz", x=items, labels=(numbers[:, 0] > numbers[:, 1]).astype(np.int64))
    evaluation = {"uri": "pvc://claim/items.npz", "metric": "FirstWins"}
    report = run(package, prepare("pvc://claim/model/model.onnx", data={"evaluation": evaluation}), claim)
    assert report["metric"] == "FirstWins"
    assert any("the first number of" in note for note in report["notes"])  # type: ignore[attr-defined]
    done = package.python("-c", JUDGED)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["drops"], told["task"]) == ([0.01, 0.01], True)
    assert "FirstWins: which of two numbers is greater." in told["explained"]
    assert "| `FirstWins` | which of two numbers is greater |" in told["guide"]
    assert told["report"] == "right winners"


def test_a_format_of_items_is_one_file_and_one_entry(package: PackageCopy, tmp_path: Path) -> None:
    package.add("optimizer/data/csv.py", ITEMS)
    package.enter("optimizer/data/files.py", 'READERS = {"parquet": "parquet", ', '"csv": "csv", ')
    claim = tmp_path / "claim"
    items, scores = answered(claim)
    np.savetxt(claim / "items.csv", np.column_stack([items, scores.argmax(axis=1)]), delimiter=",")
    data = {"evaluation": {"uri": "pvc://claim/items.csv"}}
    report = run(package, prepare("pvc://claim/model/model.onnx", data=data), claim)
    assert report["items"]["labelled"]  # type: ignore[index]
    assert report["items"]["items"] + report["calibration"]["items"] == 200  # type: ignore[index]


def test_a_step_is_one_function_and_its_entries(package: PackageCopy, tmp_path: Path) -> None:
    package.add("optimizer/steps/onnx_half.py", STEP)
    package.enter("api/vocabulary.py", '    OPTIMIZE_GRAPH = "optimizeGraph"\n', '    HALF = "half"\n')
    parameters = (
        "class HalfStep(StepParameters):\n    @property\n    def kind(self) -> StepKind:\n        return StepKind.HALF\n\n"
        "    @property\n    def words(self) -> str:\n        return 'round weights'\n\n\n"
    )
    recipe = package.folder / "fettle/api/recipe.py"
    recipe.write_text(recipe.read_text().replace('@exactly_one("a step")', f'{parameters}@exactly_one("a step")'))
    package.enter(
        "api/recipe.py",
        '    """One transformation of the model: exactly one key."""\n',
        "    half: HalfStep | None = None\n",
    )
    row = '    StepEntry(StepKind.HALF, RuntimeName.ONNXRUNTIME, "ONNX", ("onnx",), "onnx_half:half", lossy=True),\n'
    package.enter("api/catalog.py", "STEPS: tuple[StepEntry, ...] = (\n", row)
    claim = tmp_path / "claim"
    models.save(models.dynamic_batch(), claim / "model/model.onnx")
    prepared = run(package, prepare("pvc://claim/model/model.onnx"), claim)
    task = {"kind": "build", "store": "pvc://claim/store", "cacheKey": "0" * 64} | {
        "plan": {"name": "half", "family": "onnxruntime", "steps": [{"half": {}}]},
        "portable": prepared["portable"],
        "signature": prepared["signature"],
    }
    built = run(package, task, claim)
    assert built["built"], built
    made, before = (
        onnx.load(str(claim / "store/blobs" / model["files"][0]["sha256"]))  # type: ignore[index]
        for model in (built["built"], prepared["portable"])
    )
    assert len(made.graph.initializer) == len(before.graph.initializer)
    assert made.SerializeToString() != before.SerializeToString()
