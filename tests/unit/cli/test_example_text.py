"""The example of texts through `fettle optimize`. A file of its own: it takes long, and files run side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.cli.example import optimize, row


@pytest.mark.timeout(300)
def test_a_text_classifier_is_proved_on_texts_that_neither_trained_nor_calibrated_it(tmp_path: Path) -> None:
    recipe = {"name": "int8", "steps": [{"quantize": {"mode": "Static"}}]}
    status = optimize("text", tmp_path, target={"runtimes": ["onnxruntime"]}, recipes=[recipe])
    assert status["baselines"][0]["accuracy"]["value"] == pytest.approx(0.931, abs=0.001)
    int8 = row(status, "int8-onnxruntime")
    assert (int8["evidence"], int8["samples"]) == ("Labels", 2308)
    assert int8["accuracyDrop"]["high"] <= 0.01
