"""A runtime is added as docs/design/where.md says, in a copy of the package, and `fettle optimize` measures it beside the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from tests.data import models
from tests.package_copy import PackageCopy

# A runtime: onnx's own evaluator, written to be read. It is slow, and says so by its figures alone.
RUNTIME = """
import numpy as np
from onnx.reference import ReferenceEvaluator

from fettle.api.executed import Executed
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


@pytest.fixture
def package(tmp_path: Path) -> PackageCopy:
    """A fresh copy."""
    return PackageCopy(tmp_path / "package")


def optimize(package: PackageCopy, document: Path, claim: Path) -> dict[str, Any]:
    """The object after `fettle optimize`, with `claim` as the claim `models`."""
    places = ["--map", f"pvc://models={claim}", "--store", str(claim / "store")]
    options = ["-f", str(document), "-o", "json", "--measure-seconds", "1", *places]
    done = package.python("-m", "fettle.cli.main", "optimize", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    optimized: dict[str, Any] = json.loads(done.stdout)
    return optimized


def test_a_runtime_is_one_file_and_its_entries_and_is_measured_beside_the_others(
    package: PackageCopy, tmp_path: Path
) -> None:
    package.add("runtimes/reference.py", RUNTIME)
    package.enter("api/vocabulary.py", '    TORCHSCRIPT = "torchscript"\n', '    REFERENCE = "reference"\n')
    row = '    RuntimeEntry(RuntimeName.REFERENCE, "onnx", ("ONNX",), (Precision.FLOAT32,), process_bytes=128 << 20),\n'
    package.enter("api/catalog.py", "RUNTIMES: tuple[RuntimeEntry, ...] = (\n", row)
    package.enter("api/images.py", "_SERVED = frozenset({", '"onnx", ')  # no image of servers had its library
    claim = tmp_path / "claim"
    model = models.save(models.hard_swish(), claim / "model/model.onnx")
    items = np.random.default_rng(0).normal(0, 2, (100, 8)).astype(np.float32)
    scores = onnxruntime.InferenceSession(str(model)).run(None, {"x": items})[0]
    np.savez(claim / "evaluation.npz", x=items, labels=scores.argmax(1))
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
    status = optimize(package, tmp_path / "om.yaml", claim)["status"]
    rows = {row["name"]: row for row in status["candidates"]}
    tried = {name for name, row in rows.items() if row.get("reason") != "Pruned"}
    assert tried == {"original", "float32-onnxruntime", "float32-reference"}
    toy = rows["float32-reference"]
    assert (toy["runtime"], toy["exact"]) == ("reference", True), "certified: it answers as the original"
    assert toy["executed"]["f32"] > 0
    assert toy["measurements"], "timed in the same rounds as the others"
    assert toy["speedup"]["high"] < 1, "it is slow, and its figures say so"
