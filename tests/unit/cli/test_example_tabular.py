"""The example of a table through `fettle optimize`. A file of its own: it takes long, and files run side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.cli.example import optimize, row


@pytest.mark.timeout(300)
def test_trees_lose_their_map_of_probabilities_and_answer_exactly(tmp_path: Path) -> None:
    status = optimize("tabular", tmp_path)
    assert [output["name"] for output in status["source"]["outputs"]] == ["output_label", "output_probability"]
    assert row(status, "prepared-onnxruntime")["exact"] is True
    assert row(status, "prepared-openvino")["reason"] == "UnsupportedModel"
    assert status["baselines"][0]["accuracy"]["value"] == pytest.approx(215 / 228)  # 57 of the 285 were split off
