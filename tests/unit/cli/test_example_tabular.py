"""The example of a table through `fettle optimize`: every word of its YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.cli import in_process

from fettle.api.reasons import Reason
from fettle.cli.local.manifests import read
from fettle.store.uris import Mounts

EXAMPLES = Path(__file__).parents[3] / "examples"


async def test_trees_lose_their_map_of_probabilities_and_answer_exactly(tmp_path: Path) -> None:
    (manifest,) = read((EXAMPLES / "tabular" / "optimizedmodel.yaml").read_text(), "-", tmp_path).models
    (tmp_path / "store").mkdir()
    mounts = Mounts({"models": EXAMPLES, "fettle-store": tmp_path / "store"})
    status = await in_process.optimized(manifest.spec, mounts)
    rows = {row.name: row for row in status.candidates}
    assert status.source is not None
    assert [output.name for output in status.source.outputs] == ["output_label", "output_probability"]
    assert rows["prepared-onnxruntime"].exact is True
    assert rows["prepared-openvino"].reason == Reason.UNSUPPORTED_MODEL
    (baseline,) = status.baselines
    assert baseline.accuracy is not None
    assert baseline.accuracy.value == pytest.approx(215 / 228, abs=1e-4)  # 57 of the 285 were split off
