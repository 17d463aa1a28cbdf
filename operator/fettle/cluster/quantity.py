"""Kubernetes quantities as numbers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity


def quantity(value: Any) -> Decimal | None:
    """A quantity ('250m', '1Gi', 2) as a number, or None when it is none."""
    if not isinstance(value, str | int | float):
        return None
    try:
        number = Decimal(parse_quantity(str(value)))  # a float by its digits: 0.1 is '100m'
    except ValueError:
        return None
    return number if number.is_finite() else None
