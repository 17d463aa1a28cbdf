"""What docs/design/where.md says of adding something is done here, in a copy of the package: one new file, and one entry in each list."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from tests.data import models

import fettle

SOURCE = Path(inspect.getfile(fettle)).parent

# A format whose file is a matrix: the model is x @ matrix, and numpy runs the original.
FORMAT = """
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fettle.api.vocabulary import SourceFormat
from fettle.optimizer.onnx import inputs as onnx_inputs
from fettle.optimizer.sources.base import Original
from fettle.optimizer.sources.onnx import saved


class Matrix:
    name, stored, title = SourceFormat.MATRIX, "ONNX", "matrices of numpy"

    def recognises(self, path, head):
        return head.startswith(b"\\x93NUMPY")

    def require(self, path):
        pass

    def companions(self, path):
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


# A runtime: onnx's own evaluator, written to be read. It is slow, and says so by its figures alone.
RUNTIME = """
import numpy as np
from onnx.reference import ReferenceEvaluator

from fettle.api.optimizedmodel_status import Executed
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Interrupt, checked_inputs, require_settings


class ReferenceSession:
    def __init__(self, evaluator, settings, signature):
        self._evaluator, self._settings, self._signature = evaluator, settings, signature

    def infer(self, inputs, interrupt=None):
        if self._evaluator is None:
            raise RuntimeFailure("the session is closed")
        names = [tensor.name for tensor in self._signature.outputs]
        with (interrupt or Interrupt()).ending(lambda: None):
            answers = self._evaluator.run(names, checked_inputs(self._signature, inputs))
        return {name: np.array(answer) for name, answer in zip(names, answers, strict=True)}

    def effective_settings(self):
        return self._settings.model_copy(update={"threads": 1, "streams": 1})

    def close(self):
        self._evaluator = None


class Reference:
    name = RuntimeName.REFERENCE

    def load(self, entry, settings, signature=None):
        if signature is None:
            raise RuntimeFailure("a signature is needed")
        try:
            evaluator = ReferenceEvaluator(str(entry))
        except Exception as error:
            raise RuntimeFailure(f"onnx cannot evaluate {entry.name}: {error}") from error
        session = ReferenceSession(evaluator, settings, signature)
        require_settings(session, settings, "onnx.reference")
        return session

    def executed(self, entry, settings, inputs, signature=None):
        count = len(ReferenceEvaluator(str(entry)).proto_.graph.node)
        return Executed(f32=count, total=count)

    def capabilities(self):
        return frozenset({Precision.FLOAT32})


RUNTIME = Reference()
"""


class Package:
    """A copy of the package that can be changed and run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(SOURCE, folder / "fettle", ignore=shutil.ignore_patterns("__pycache__"))

    def add(self, path: str, text: str) -> None:
        """A new file."""
        assert not (self.folder / "fettle" / path).exists()
        (self.folder / "fettle" / path).write_text(text)

    def enter(self, path: str, behind: str, text: str) -> None:
        """An entry in a list that is there."""
        file = self.folder / "fettle" / path
        source = file.read_text()
        assert source.count(behind) == 1, f"{path} has {behind!r} {source.count(behind)} times"
        file.write_text(source.replace(behind, behind + text))

    def optimize(self, document: Path, folder: Path) -> dict[str, Any]:
        """The object after `fettle optimize`, with `folder` as the claim `models`."""
        command = [
            sys.executable,
            "-m",
            "fettle.cli.main",
            "optimize",
            "-f",
            document,
            "-o",
            "json",
            "--measure-seconds",
            "1",
        ]
        done = subprocess.run(
            [*command, "--map", f"pvc://models={folder}", "--store", folder / "store"],
            env=os.environ | {"PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        optimized: dict[str, Any] = json.loads(done.stdout)
        return optimized

    def run(self, task: dict[str, object], claim: Path) -> dict[str, object]:
        """The report of a task, run as a Job runs it."""
        environment = os.environ | {
            "PYTHONPATH": str(self.folder),
            "FETTLE_TASK": json.dumps(task),
            "FETTLE_MOUNTS": json.dumps({"claim": str(claim)}),
            "FETTLE_TERMINATION_LOG": str(claim / "termination"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "fettle.optimizer"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (claim / "termination").read_text() + done.stderr[-2000:]
        report: dict[str, object] = json.loads(done.stdout.splitlines()[-1].partition(" ")[2])
        return report


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A fresh copy."""
    return Package(tmp_path / "package")


def prepare(uri: str, **more: object) -> dict[str, object]:
    """The task of preparing what lies there."""
    return {"kind": "prepare", "store": "pvc://claim/store", "source": {"uri": uri}, "data": {}, "builds": [], **more}


def test_a_source_format_is_one_file_and_three_entries(package: Package, tmp_path: Path) -> None:
    package.add("optimizer/sources/matrix.py", FORMAT)
    package.enter("optimizer/sources/__init__.py", "from fettle.optimizer.sources import onnx, torch", ", matrix")
    package.enter("optimizer/sources/__init__.py", "    *torch.FORMATS,\n", "    *matrix.FORMATS,\n")
    package.enter("api/vocabulary.py", '    TORCH_EXPORT = "TorchExport"\n', '    MATRIX = "Matrix"\n')
    row = '    FormatEntry(SourceFormat.MATRIX, ("numpy", "onnx"), RuntimeName.ONNXRUNTIME, (".npy",)),\n'
    package.enter("api/catalog.py", "FORMATS: tuple[FormatEntry, ...] = (\n", row)
    claim = tmp_path / "claim"
    claim.mkdir()
    np.save(claim / "model.npy", np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32))
    report = package.run(prepare("pvc://claim/model.npy"), claim)
    assert report["source"]["format"] == "Matrix"  # type: ignore[index]
    assert report["signature"]["inputs"] == [  # type: ignore[index]
        {"name": "x", "dtype": "FP32", "shape": [-1, 4], "batchAxis": 0}
    ]
    assert "onnxruntime" in report["portableRuntimes"]  # type: ignore[operator]


def test_a_step_is_one_function_and_its_entries(package: Package, tmp_path: Path) -> None:
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
    prepared = package.run(prepare("pvc://claim/model/model.onnx"), claim)
    task = {"kind": "build", "store": "pvc://claim/store", "cacheKey": "0" * 64} | {
        "plan": {"name": "half", "family": "onnxruntime", "steps": [{"half": {}}]},
        "portable": prepared["portable"],
        "signature": prepared["signature"],
    }
    built = package.run(task, claim)
    assert built["built"], built
    made, portable = (
        onnx.load(str(claim / "store/blobs" / model["files"][0]["sha256"]))  # type: ignore[index]
        for model in (built["built"], prepared["portable"])
    )
    assert len(made.graph.initializer) == len(portable.graph.initializer)
    assert made.SerializeToString() != portable.SerializeToString()


def test_a_runtime_is_one_file_and_its_entries_and_is_measured_beside_the_others(
    package: Package, tmp_path: Path
) -> None:
    package.add("runtimes/reference.py", RUNTIME)
    package.enter("api/vocabulary.py", '    TORCHSCRIPT = "torchscript"\n', '    REFERENCE = "reference"\n')
    row = '    RuntimeEntry(RuntimeName.REFERENCE, "onnx", ("ONNX",), (Precision.FLOAT32,), process_bytes=128 << 20),\n'
    package.enter("api/catalog.py", "RUNTIMES: tuple[RuntimeEntry, ...] = (\n", row)
    package.enter("api/catalog.py", "_SERVED = frozenset({", '"onnx", ')  # no image of servers had its library
    claim = tmp_path / "claim"
    model = models.save(models.dynamic_batch(), claim / "model/model.onnx")
    draw = np.random.default_rng(0).normal(0, 5, (2, 100, 1, 1, 1))
    images = (models.images(100) * draw[0] + draw[1]).astype(np.float32)  # some of each class
    scores = onnxruntime.InferenceSession(str(model)).run(None, {"image": images})[0]
    np.savez(claim / "evaluation.npz", image=images, labels=scores.argmax(1))
    document = {
        "apiVersion": "fettle.dev/v1alpha1",
        "kind": "OptimizedModel",
        "metadata": {"name": "toy"},
        "spec": {
            "source": {"uri": "pvc://models/model/model.onnx"},
            "data": {"evaluation": {"uri": "pvc://models/evaluation.npz"}},
            "targets": [{"name": "cpu", "runtimes": ["onnxruntime", "reference"]}],
            "objective": "Size",  # else what is so much slower than the others is not timed to the end
            "search": {"maxCandidates": 3},
        },
    }
    (tmp_path / "om.yaml").write_text(yaml.safe_dump(document))
    status = package.optimize(tmp_path / "om.yaml", claim)["status"]
    rows = {row["name"]: row for row in status["candidates"]}
    tried = {name for name, row in rows.items() if row.get("reason") != "Pruned"}
    assert tried == {"original", "float32-onnxruntime", "float32-reference"}
    toy = rows["float32-reference"]
    assert (toy["runtime"], toy["exact"]) == ("reference", True), "certified: it answers as the original"
    assert toy["executed"]["f32"] > 0
    assert toy["measurements"], "timed in the same rounds as the others"
    assert toy["speedup"]["high"] < 1, "it is slow, and its figures say so"
