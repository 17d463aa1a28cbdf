"""docs/design/where.md leads from each field of the API to functions that are there."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from fettle.api.modeldeployment import ModelDeploymentSpec
from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.pods import EnvVar, LocalReference, ResourceSpec, Toleration

PAGE = Path(__file__).parents[3] / "docs" / "design" / "where.md"
# Copied into pods, so that Kubernetes reacts to their fields.
COPIED_WHOLE = {EnvVar, LocalReference, ResourceSpec, Toleration}
DATA = ("calibration", "evaluation", "training")  # what data.* stands for
KINDS = {"OptimizedModel": OptimizedModelSpec, "ModelDeployment": ModelDeploymentSpec}
STATUSES = {
    "Status of an OptimizedModel": OptimizedModelStatus,
    "Status of a ModelDeployment": ModelDeploymentStatus,
}


def models_in(annotation: Any) -> set[type[BaseModel]]:
    """The models that an annotation speaks of, through Annotated, tuples, unions."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return {annotation}
    return set().union(*(models_in(argument) for argument in get_args(annotation)))


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The path in a manifest of each field of a spec or a status that holds a value."""
    for name, field in model.model_fields.items():
        inner = {found for found in models_in(field.annotation) - COPIED_WHOLE if found.model_fields}
        here = f"{path}{field.alias or name}"
        if not inner:
            yield here
        for found in inner:
            yield from leaves(found, f"{here}{'[]' if 'tuple' in str(field.annotation) else ''}.")


def guide(kind: str) -> dict[str, list[str]]:
    """What the page says of a kind: path of a field -> places."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
    told: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            fields, places = (re.findall(r"`([^`]+)`", cell) for cell in line.strip("| ").split(" | "))
            told |= {field.replace("*", data): places for field in fields for data in DATA}
    return told


def is_below(field: str, row: str) -> bool:
    """Whether a row of the page stands for a field: its own, or one inside of it."""
    return field == row or field.startswith((f"{row}.", f"{row}[]."))


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_has_each_field_once(kind: str) -> None:
    assert sorted(guide(kind)) == sorted(set(leaves(KINDS[kind])))


@pytest.mark.parametrize("section", STATUSES)
def test_the_page_says_where_each_field_of_a_status_is_written(section: str) -> None:
    fields, rows = set(leaves(STATUSES[section])), set(guide(section))
    of_row = {row: {field for field in fields if is_below(field, row)} for row in rows}
    assert fields - set().union(*of_row.values()) == set()
    assert {row for row, found in of_row.items() if not found} == set()


@pytest.mark.parametrize(
    "place",
    sorted({place for section in (*KINDS, *STATUSES) for places in guide(section).values() for place in places}),
)
def test_what_the_page_names_is_there(place: str) -> None:
    file, function = place.split("::")
    module = importlib.import_module(f"fettle.{file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}")
    classes = [
        value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    assert any(function in vars(owner) for owner in (module, *classes))
