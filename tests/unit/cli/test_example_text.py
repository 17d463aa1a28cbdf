"""The example of texts through `fettle optimize`: every word of its YAML but for what only takes time."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.unit.cli import in_process

from fettle.cli.local.manifests import read
from fettle.store.uris import Mounts

EXAMPLES = Path(__file__).parents[3] / "examples"


async def test_a_text_classifier_is_proved_on_texts_that_neither_trained_nor_calibrated_it(tmp_path: Path) -> None:
    document = yaml.safe_load((EXAMPLES / "text" / "optimizedmodel.yaml").read_text())
    document["spec"]["targets"][0]["runtimes"] = ["onnxruntime"]
    document["spec"]["recipes"] = [{"name": "int8", "steps": [{"quantize": {"mode": "Static"}}]}]
    (manifest,) = read(yaml.safe_dump(document), "-", tmp_path).models
    (tmp_path / "store").mkdir()
    mounts = Mounts({"models": EXAMPLES, "fettle-store": tmp_path / "store"})
    status = await in_process.optimized(manifest.spec, mounts)
    accuracy = status.baselines[0].accuracy
    assert accuracy is not None
    assert accuracy.value == pytest.approx(0.931, abs=0.001)
    int8 = next(row for row in status.candidates if row.name == "int8-onnxruntime")
    assert (int8.evidence, int8.samples) == ("Labels", 2308)
    assert int8.accuracy_drop is not None
    assert int8.accuracy_drop.high <= 0.01
