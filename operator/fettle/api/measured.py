"""What was measured of a model: its accuracy, its agreement with the original, and its times. Part of the status of an OptimizedModel."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel
from fettle.api.vocabulary import AgreementMode, Basis, Metric


class MetricValue(ApiModel):
    """A metric and its value."""

    metric: Annotated[Metric, Field(description="Name of the metric.")]
    value: Annotated[float, Field(description="Value on the evaluation items.")]


class Interval(ApiModel):
    """A point and its interval, unfavorable and favorable end included."""

    value: Annotated[float, Field(description="Point estimate.")]
    low: Annotated[float, Field(description="Lower end of the interval.")]
    high: Annotated[float, Field(description="Upper end of the interval.")]


class SpeedupStatus(Interval):
    """Times faster than the baseline, paired in the same rounds: one run, or with objective Throughput the items of a second."""

    basis: Annotated[Basis, Field(description="What was timed as the baseline.")]


class AgreementStatus(Interval):
    """Share of items on which candidate and original agree."""

    mode: Annotated[AgreementMode, Field(description="How answers were compared.")]
    variance_kept: Annotated[
        float | None,
        Field(
            description="Share of the original's variance over the items that is preserved in the worst channel: "
            "1 - var(candidate - original) / var(original), where 1 is all and 0 is nothing or worse. Absent if no compared output has a "
            "floating-point channel that varies."
        ),
    ] = None
    worst_channel: Annotated[
        str | None,
        Field(
            max_length=253,
            description="The worst channel in numpy notation: boxes[:, 4, :] is index 4 of axis 1 of the output boxes.",
        ),
    ] = None
    unsure: Annotated[
        int | None,
        Field(
            description="Number of items that do not count in the agreement, because the original itself is unsure (agreement.unsure: Skip). "
            "Absent if all items count."
        ),
    ] = None


class Flips(ApiModel):
    """Items on which exactly one of original and candidate is right."""

    worse: Annotated[
        int, Field(description="Number of items that the original gets right and the candidate gets wrong.")
    ]
    better: Annotated[
        int, Field(description="Number of items that the original gets wrong and the candidate gets right.")
    ]


class Percentiles(ApiModel):
    """Milliseconds; a percentile for which too few runs were made is absent."""

    p50: Annotated[float | None, Field(description="Median. Needs 30 runs.")] = None
    p90: Annotated[float | None, Field(description="90th percentile. Needs 36 runs.")] = None
    p95: Annotated[float | None, Field(description="95th percentile. Needs 72 runs.")] = None
    p99: Annotated[float | None, Field(description="99th percentile. Needs 367 runs.")] = None


class Measurement(ApiModel):
    """One batch size, timed."""

    batch_size: Annotated[int, Field(description="Batch size.")]
    latency_milliseconds: Annotated[Percentiles, Field(description="Time of one run, in milliseconds.")]
    items_per_second: Annotated[float, Field(description="Items per second in the median block.")]
    peak_memory_bytes: Annotated[int, Field(description="Peak resident memory of the process, in bytes.")]
    runs: Annotated[int, Field(description="Number of timed runs.")]
    restarts: Annotated[
        int,
        Field(
            description="Number of processes in which the measurement started the model, one after the other, because a start alone can change "
            "its time. It does not refer to restarts of pods."
        ),
    ]
    gpu_milliseconds: Annotated[
        Percentiles | None,
        Field(
            description="Time of one run on the GPU between CUDA events, copies to and from the GPU included, in milliseconds. For information: "
            "latencyMilliseconds decides. Not set for onnxruntime-cuda, several streams and CPUs."
        ),
    ] = None


def worth(
    accuracy: MetricValue | None,
    constant: MetricValue | None,
    samples: int | None,
    labels: str | None,
    answers: str | None = None,
) -> str:
    """How good a model is on its items, as text."""
    if accuracy is None:
        return "not judged"
    read_as = f"; answers read as {answers}" if answers else ""
    if accuracy.metric == Metric.AGREEMENT or labels is None:
        compared = f"its answers by {accuracy.metric}" if answers else "its answers"
        return f"{samples} items without labels, compared with {compared}{read_as}"
    beside = f" (the best constant predictor scores {constant.value:.4g})" if constant is not None else ""
    return f"{accuracy.metric} {accuracy.value:.4g} on {samples} items{beside}; labels: {labels}{read_as}"
