"""A metric of one's own is read from its address, and what it said once holds as long as it is the same code."""

from __future__ import annotations

import numpy as np
import pytest
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import CustomMetricSpec, EvaluationSpec
from fettle.api.vocabulary import Metric
from fettle.errors import DataError

SAME_CLASS = """
def score(outputs, label):
    return float(outputs["scores"].argmax() == label["scores"].argmax())
"""
NEVER = "def score(outputs, label):\n    return 0.0\n"


def evaluation(bench: Workbench) -> EvaluationSpec:
    items = bench.data("items", image=np.random.default_rng(1).normal(size=(40, 1, 16, 16)).astype(np.float32))
    custom = CustomMetricSpec(uri="pvc://claim/metric.py")
    return EvaluationSpec(uri=items, metric=Metric.CUSTOM, custom=custom)


def test_its_code_goes_with_the_answer_and_other_code_asks_again(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    script = bench.folder / "metric.py"
    script.write_text(SAME_CLASS)
    task = bench.task(evaluation=evaluation(bench))
    report = bench.prepare(task)
    assert (report.metric, report.custom_code) == (Metric.CUSTOM, SAME_CLASS)
    assert bench.prepare(task) == report
    script.write_text(NEVER)
    with pytest.raises(DataError, match="Custom of the original against itself is 0, expected 1"):
        bench.prepare(task)


BROKEN = {
    "nothing there": (None, r"metric.py \(data.evaluation.custom.uri\): No such file"),
    "too large": (b"#" * (64 << 10) + b"#", "larger than 64 KiB"),
    "no text": (b"\xff\xfe\x00", "not a Python file in UTF-8"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_is_no_code_is_invalid_data(bench: Workbench, what: str) -> None:
    content, message = BROKEN[what]
    bench.put(models.dynamic_batch())
    if content is not None:
        (bench.folder / "metric.py").write_bytes(content)
    with pytest.raises(DataError, match=message):
        bench.prepare(bench.task(evaluation=evaluation(bench)))
