"""The example of a table through `fettle optimize` as a person runs it: the command, and a process for each task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_trees_lose_their_map_of_probabilities_and_answer_exactly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fettle.cli.main", "optimize", "-o", "json"]
    command += ["-f", str(EXAMPLES / "tabular" / "optimizedmodel.yaml")]
    command += ["--measure-seconds", "1"]  # what is gained here is nobody's claim
    command += ["--map", f"pvc://models={EXAMPLES}", "--store", str(tmp_path / "store")]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)["status"]
    rows = {row["name"]: row for row in status["candidates"]}
    assert [output["name"] for output in status["source"]["outputs"]] == ["output_label", "output_probability"]
    assert rows["prepared-onnxruntime"]["exact"] is True
    assert rows["prepared-openvino"]["reason"] == "UnsupportedModel"
    assert status["baselines"][0]["accuracy"]["value"] == pytest.approx(215 / 228)  # 57 of the 285 were split off
