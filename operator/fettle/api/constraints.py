"""What a published artifact must keep."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel


class AccuracyConstraint(ApiModel):
    """Bound on what may be lost."""

    max_drop: Annotated[
        float,
        Field(
            ge=0,
            description="Largest loss, in the metric's unit; without labels 1 - agreement. "
            "The unfavourable end of the 95 % interval must satisfy this bound.",
        ),
    ]
    max_changed: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Largest share of answers that may differ from the original's, for better or worse: changes that cancel out leave "
            "a metric as it was. Decisions for Accuracy and F1; variance for Regression and MeanSquaredError; 1 - cosine for "
            "CosineSimilarity. The unfavourable end of the 95 % interval must satisfy this bound. Default: maxDrop + 0.1, or 0.1 "
            "where the metric is no share.",
        ),
    ] = None


class LatencyConstraint(ApiModel):
    """Bound on time."""

    max_milliseconds: Annotated[float, Field(gt=0, description="Milliseconds for one run of the first batch size.")]
    percentile: Annotated[int, Field(description="50, 90, 95 or 99.", json_schema_extra={"enum": [50, 90, 95, 99]})] = (
        99
    )


class SizeConstraint(ApiModel):
    """Bound on size."""

    max_bytes: Annotated[int, Field(gt=0, description="Bytes of all files of the artifact.")]


class SpeedupConstraint(ApiModel):
    """Bound on the gain."""

    min: Annotated[
        float,
        Field(
            gt=0,
            description="Times faster than the baseline. The unfavourable end of the 95 % interval must satisfy this bound.",
        ),
    ]


class Constraints(ApiModel):
    """What a published artifact must keep. ALL of it holds, or nothing is published."""

    accuracy: Annotated[AccuracyConstraint | None, Field(description="Loss against the original.")] = None
    latency: Annotated[LatencyConstraint | None, Field(description="Time of one run.")] = None
    size: Annotated[SizeConstraint | None, Field(description="Size of the artifact.")] = None
    speedup: Annotated[SpeedupConstraint | None, Field(description="Gain over the original.")] = None
