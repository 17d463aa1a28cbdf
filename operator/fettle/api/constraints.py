"""What a published artifact must keep."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api import metrics
from fettle.api.base import ApiModel
from fettle.api.vocabulary import Metric

# The share of answers that may change in addition to `maxDrop`. Answers can change without a loss of accuracy, for example in an int8 build of
# a model that is often unsure: its wrong answers become other wrong answers.
DEFAULT_CHANGES = 0.1


class AccuracyConstraint(ApiModel):
    """Bound on what may be lost."""

    max_drop: Annotated[
        float,
        Field(
            ge=0,
            description="Maximum accuracy drop, in the unit of the metric. Without labels, the drop is 1 - agreement. "
            "The unfavorable end of the 95 % interval must satisfy this bound.",
        ),
    ]
    max_changed: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Maximum share of answers that differ from the original's, for better or worse. It catches changes that cancel out in the "
            f"metric. The share is {metrics.changed_described()}, and 1 - the metric by the original's answers for the others. The unfavorable "
            "end of the 95 % interval must satisfy this bound. Default: maxDrop + 0.1, or 0.1 if the metric is in the unit of the labels.",
        ),
    ] = None

    def changes_by_default(self, metric: Metric) -> bool:
        """Whether `maxChanged` is what it defaults to."""
        return self.max_changed == default_changes(self.max_drop, metric)

    def changed(self, metric: Metric) -> str:
        """'0.12 (default)': the bound on changed answers, and whether it is what it defaults to. Empty if there is none."""
        if self.max_changed is None:
            return ""
        return f"{self.max_changed:g}" + (" (default)" if self.changes_by_default(metric) else "")


def default_changes(max_drop: float, metric: Metric) -> float:
    """The default of `maxChanged`. A drop in the unit of the labels says nothing about a share of answers."""
    lost = 0.0 if metrics.in_unit_of_labels(metric) else max_drop
    return round(min(lost + DEFAULT_CHANGES, 1.0), 6)


class LatencyConstraint(ApiModel):
    """Bound on time."""

    max_milliseconds: Annotated[
        float, Field(gt=0, description="Maximum time for one run with the first batch size, in milliseconds.")
    ]
    percentile: Annotated[
        int, Field(description="Percentile: 50, 90, 95 or 99.", json_schema_extra={"enum": [50, 90, 95, 99]})
    ] = 99


class SizeConstraint(ApiModel):
    """Bound on size."""

    max_bytes: Annotated[int, Field(gt=0, description="Maximum total size of the artifact's files, in bytes.")]


class SpeedupConstraint(ApiModel):
    """Bound on the gain."""

    min: Annotated[
        float,
        Field(
            gt=0,
            description="Minimum speed-up over the baseline. The unfavorable end of the 95 % interval must satisfy this bound.",
        ),
    ]


class Constraints(ApiModel):
    """Constraints. A published artifact satisfies all of them."""

    accuracy: Annotated[
        AccuracyConstraint | None, Field(description="Bound on the accuracy drop compared with the original.")
    ] = None
    latency: Annotated[LatencyConstraint | None, Field(description="Bound on the time of one run.")] = None
    size: Annotated[SizeConstraint | None, Field(description="Bound on the size of the artifact.")] = None
    speedup: Annotated[SpeedupConstraint | None, Field(description="Bound on the speed-up over the original.")] = None
