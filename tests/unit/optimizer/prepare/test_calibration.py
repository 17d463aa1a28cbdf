"""Too few items to calibrate with: what is prepared, and what the plan makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench
from tests.unit.plan.optimize.world import make_spec

from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.reasons import Reason
from fettle.plan.run.applicable import CALIBRATION_NEEDED
from fettle.plan.run.candidates import plan_target
from fettle.plan.run.constraints import in_force
from fettle.plan.run.planned import PlannedCandidate

RECIPES = [{"name": "exact", "steps": []}, {"name": "small", "steps": [{"quantize": {"mode": "Static"}}]}]
CERTIFYING = models.images(60)


def planned(bench: Workbench, **data: Any) -> dict[str, PlannedCandidate]:
    """The rows of a run on these items (arrays by `calibration` and `evaluation`) that may lose whatever it likes."""
    bench.put(models.dynamic_batch())
    given = {kind: {"uri": bench.data(kind, image=images)} for kind, images in data.items()}
    targets = [{"name": "cpu", "runtimes": ["onnxruntime"]}]
    spec: OptimizedModelSpec = make_spec(
        data=given, recipes=RECIPES, targets=targets, constraints={"accuracy": {"maxDrop": 1}}
    )
    report = bench.prepare(bench.task(evaluation=spec.data.evaluation, calibration=spec.data.calibration))
    return {row.name: row for row in plan_target(spec, spec.targets[0], report, in_force(spec)).candidates}


TOO_FEW: list[tuple[str, dict[str, Any], str]] = [
    ("three were given", {"calibration": models.images(3, seed=1), "evaluation": CERTIFYING}, "found 3 that are not evaluation items too"),
    ("all of them are evaluation items", {"calibration": CERTIFYING[:20], "evaluation": CERTIFYING}, "found 0 that are not evaluation items too"),
    ("a fifth of evaluation is too few", {"evaluation": CERTIFYING[:49]}, "found 9, split off from 49 evaluation items"),
    ("evaluation has none to spare", {"evaluation": CERTIFYING[:4]}, "found 0, split off from 4 evaluation items"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "data", "words"), TOO_FEW, ids=[line[0] for line in TOO_FEW])
def test_where_too_few_items_are_left_to_calibrate_that_recipe_is_refused_and_exact_ones_go_on(
    bench: Workbench, what: str, data: dict[str, Any], words: str
) -> None:
    rows = planned(bench, **data)
    refusal = rows["small-onnxruntime"].refusal
    assert refusal is not None
    assert refusal.reason == Reason.CALIBRATION_TOO_SMALL
    assert f"needs {CALIBRATION_NEEDED} calibration items or more, {words}" in refusal.message
    assert rows["original"].refusal is None and rows["exact-onnxruntime"].refusal is None


ENOUGH: list[tuple[str, dict[str, Any]]] = [
    ("as many were given", {"calibration": models.images(CALIBRATION_NEEDED, seed=1), "evaluation": CERTIFYING}),
    ("evaluation is as large as the message asks for", {"evaluation": CERTIFYING[: 5 * CALIBRATION_NEEDED]}),
]


@pytest.mark.parametrize(("what", "data"), ENOUGH, ids=[line[0] for line in ENOUGH])
def test_with_as_many_items_as_are_needed_it_is_tried(bench: Workbench, what: str, data: dict[str, Any]) -> None:
    assert planned(bench, **data)["small-onnxruntime"].refusal is None
