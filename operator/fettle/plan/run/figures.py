"""The figures of a status, with four significant digits. Only what is written is rounded: decisions use the results of the tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from fettle.api.base import ApiModel
from fettle.api.text import significant

Row = TypeVar("Row", bound=ApiModel)


def shown(rows: Iterable[Row]) -> tuple[Row, ...]:
    """`rows` with every floating-point number rounded. Rounding again changes nothing."""
    return tuple(type(row).model_validate(_rounded(row.model_dump())) for row in rows)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return tuple(map(_rounded, value)) if isinstance(value, list | tuple) else value
