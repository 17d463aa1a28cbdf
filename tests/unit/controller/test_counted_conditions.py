"""What the operator counts."""

from __future__ import annotations

from typing import Any

from fettle.controller.metrics import rolled_back, with_condition


def _object(**conditions: str) -> dict[str, Any]:
    return {"status": {"conditions": [{"type": name, "status": status} for name, status in conditions.items()]}}


def test_objects_are_counted_by_the_conditions_that_are_true() -> None:
    objects = [
        _object(Ready="True", Stalled="False"),
        _object(Ready="False", Stalled="True"),
        _object(Stalled="True"),
        {},
        {"status": None},
        {"status": {"conditions": None}},
    ]
    assert {name: with_condition(objects, name) for name in ("Ready", "Reconciling", "Stalled")} == {
        "Ready": 1,
        "Reconciling": 0,
        "Stalled": 2,
    }


def test_rollbacks_in_force_are_counted() -> None:
    back = {"status": {"rollback": {"desired": "b", "target": "a"}}}
    assert rolled_back([back, _object(Ready="True"), {}, {"status": None}, {"status": {"rollback": None}}]) == 1
