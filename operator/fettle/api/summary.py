"""What an OptimizedModel has published, in words for `kubectl get`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel
from fettle.api.text import rounded


class Summary(ApiModel):
    """What is published, in words; one word per target, in the order of `targets`."""

    targets: Annotated[str, Field(description="Targets with a published artifact.")]
    speedup: Annotated[str, Field(description="Speed-up over the baseline.")]
    drop: Annotated[str, Field(description="Accuracy drop compared with the original, in the unit of the metric.")]
    size: Annotated[str, Field(description="Size of the artifact.")]


def word(value: float | None, form: str) -> str:
    """A number in a format, or '-'."""
    return "-" if value is None else form.format(value)


def size(count: int, gap: str = "") -> str:
    """'1.23MB', '83.3kB'; `gap` is between number and unit."""
    value, unit = (count / 1e6, "MB") if count >= 1e6 else (count / 1e3, "kB")
    return f"{rounded(value)}{gap}{unit}"
