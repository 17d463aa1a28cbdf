"""The notebook of the examples: every word of its cells, but for what only takes time."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fettle
from fettle.cli.local.results import published
from fettle.plan.run import default_plan

NOTEBOOK = Path(__file__).parents[3] / "examples" / "notebook" / "digits.ipynb"


def test_the_notebook_optimizes_the_classifier_that_it_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {
        "target": fettle.Target(runtimes=("onnxruntime",), threads=1),
        "options": fettle.RunOptions(measure_seconds=0.2, progress=False),
    }
    lines = tuple(line for line in default_plan.LINES if line.recipe in ("float32", "int8"))
    monkeypatch.setattr(default_plan, "LINES", lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fettle, "optimize", partial(fettle.optimize, **quick), raising=False)
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    result = names["result"]
    assert result.winner is not None, result.message
    assert result.artifact == tmp_path / "fettle-store" / "artifacts" / result.winner.sha256
    assert (result.artifact / "manifest.json").is_file()
    assert "mlpclassifier" in result.report.read_text()
    assert "<iframe" in result._repr_html_()
    told = capsys.readouterr().out
    assert "original" in told and str(result.artifact) in told
    assert published(Path("fettle-store"), "mlpclassifier", None) == result.winner, (
        "what `fettle serve` finds by the name"
    )
    answers = result.predict(names["test_x"])
    assert isinstance(answers, dict)
    same = answers["probabilities"].argmax(1) == names["model"].predict(names["test_x"])
    assert same.mean() > 0.97
    baseline = result.status.baselines[0]
    assert baseline.accuracy.metric == "Accuracy"
    assert baseline.accuracy.value == pytest.approx(names["model"].score(names["test_x"], names["test_y"]), abs=0.02)
