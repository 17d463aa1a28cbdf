"""Status of a ModelDeployment: what serves, what is on trial and how it does, what served before."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel, nothing
from fettle.api.conditions import Condition, ObservedGeneration


class Verdict(StrEnum):
    """What a window said."""

    PENDING = "Pending"
    GOOD = "Good"
    BAD = "Bad"
    INCONCLUSIVE = "Inconclusive"


class MetricRecord(ApiModel):
    """What one metric said in a window, also where it was still pending when another one decided."""

    metric: Annotated[
        str, Field(max_length=32, description="Metric, such as successRate, p99Milliseconds or p99RatioToStable.")
    ]
    verdict: Annotated[Verdict, Field(description="Verdict of the metric.")]
    value: Annotated[float | None, Field(description="Measured value. Absent if nothing could be measured.")] = None
    bound: Annotated[float, Field(description="Bound from the spec.")]
    samples: Annotated[int, Field(description="Number of samples behind the value.")] = 0


class AnalysisWindow(ApiModel):
    """A window that was judged."""

    start: Annotated[str, Field(max_length=32, description="When the window started (RFC 3339, UTC).")]
    end: Annotated[str, Field(max_length=32, description="When the window ended.")]
    weight: Annotated[int, Field(description="Weight in effect at the end of the window, in percent.")] = 0
    requests: Annotated[int, Field(description="Number of requests to the canary.")] = 0
    failures: Annotated[int, Field(description="Number of requests that the model did not answer.")] = 0
    verdict: Annotated[
        Verdict, Field(description="Verdict of the window.", json_schema_extra={"enum": [Verdict.GOOD, Verdict.BAD]})
    ]
    metrics: Annotated[tuple[MetricRecord, ...], Field(max_length=8, description="Result of each metric.")] = ()


class AnalysisStatus(ApiModel):
    """The window that is being watched, summed over the canary's pods."""

    window_start: Annotated[str, Field(max_length=32, description="When the window started (RFC 3339, UTC).")]
    requests: Annotated[
        int,
        Field(
            description="Number of requests to the canary since windowStart. Right after a window ends, until the next reading, it is the count of "
            "the window that just ended."
        ),
    ] = 0
    failures: Annotated[int, Field(description="Number of requests that the model did not answer.")] = 0
    compared: Annotated[
        int,
        Field(
            description="Number of items on which the answers of the canary and of the stable revision were compared in the same window. They are "
            "recent items of the stable revision, not the canary's own requests."
        ),
    ] = 0
    agreed: Annotated[int, Field(description="Number of compared items with the same answer.")] = 0
    unsure: Annotated[
        int, Field(description="Number of items that do not count, because stable was unsure of its own answer.")
    ] = 0
    consecutive: Annotated[int, Field(description="Number of bad windows in a row.")] = 0
    verdict: Annotated[Verdict, Field(description="Verdict of the last complete window.")] = Verdict.PENDING
    message: Annotated[
        str | None,
        Field(
            max_length=512,
            description="Metric, value, bound and sample count of that verdict. While there are too few samples since then to judge, their number.",
        ),
    ] = None
    windows: Annotated[
        tuple[AnalysisWindow, ...],
        Field(
            max_length=20,
            description="Last judged windows of this rollout, oldest first. They are kept in the ledger afterwards.",
        ),
    ] = ()


class RevisionStatus(ApiModel):
    """A revision that has pods."""

    revision: Annotated[str, Field(max_length=64, description="Hash of what the pods run.")]
    artifact: Annotated[str, Field(max_length=1024, description="URI of the artifact that it serves.")]
    replicas: Annotated[int, Field(description="Number of requested pods.")] = 0
    ready: Annotated[int, Field(description="Number of ready pods.")] = 0


class CanaryStatus(RevisionStatus):
    """The canary revision, during a rollout."""

    weight: Annotated[
        int, Field(description="Weight of the last weight step that took effect, in percent; 0 before the first.")
    ] = 0
    actual_weight: Annotated[
        int, Field(description="Percentage of traffic that it actually gets (its share of ready pods).")
    ] = 0
    step: Annotated[
        int,
        Field(
            description="Index of the current step, from 0. Pauses count too; after the last step, it is the number of steps."
        ),
    ] = 0
    started_at: Annotated[str, Field(max_length=32, description="When this rollout started.")] = ""
    step_started_at: Annotated[str, Field(max_length=32, description="When this step took effect.")] = ""
    progressed_at: Annotated[
        str, Field(max_length=32, description="When the rollout last made progress. The deadline counts from here.")
    ] = ""
    analysis: Annotated[AnalysisStatus | None, Field(description="State of the analysis.")] = None


class RevisionRecord(ApiModel):
    """A line of the ledger: what served when, and why it left."""

    revision: Annotated[str, Field(max_length=64, description="Hash of what the pods ran.")]
    artifact: Annotated[str, Field(max_length=1024, description="URI of the artifact that it served.")]
    entered: Annotated[
        str | None, Field(max_length=32, description="When it first got traffic. Absent if it never did.")
    ] = None
    left: Annotated[str | None, Field(max_length=32, description="When it lost its traffic.")] = None
    reason: Annotated[str | None, Field(max_length=64, description="Why it left.")] = None


class Address(ApiModel):
    """Address for requests."""

    url: Annotated[str, Field(max_length=512, description="URL inside the cluster.")]


class CommandStatus(ApiModel):
    """The command that was handled last; its token acts once."""

    name: Annotated[
        str, Field(max_length=64, description="Command: promote, promote-full, abort, retry or rollback-to.")
    ]
    value: Annotated[str, Field(max_length=256, description="Value of the annotation, such as <revision>/<token>.")]


class RollbackStatus(ApiModel):
    """An order that holds: what serves instead of what the spec asks for."""

    desired: Annotated[
        str,
        Field(
            max_length=64,
            description="Revision that the spec asked for. The rollback ends when the spec asks for another one.",
        ),
    ]
    target: Annotated[str, Field(max_length=64, description="Revision from the ledger that is served instead.")]


class ModelDeploymentStatus(ApiModel):
    """The observed state of the ModelDeployment."""

    observed_generation: ObservedGeneration = None
    replicas: Annotated[int, Field(description="Number of pods of all revisions.")] = 0
    ready_replicas: Annotated[int, Field(description="Number of ready pods of all revisions.")] = 0
    selector: Annotated[str, Field(max_length=512, description="Label selector of the pods, for autoscalers.")] = ""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=8,
            description="Conditions: Ready, Progressing, Degraded, Paused, Reconciling, Stalled.",
            json_schema_extra={"x-map-keys": ["type"]},
        ),
    ] = ()
    address: Annotated[Address | None, Field(description="Address for requests.")] = None
    stable: Annotated[RevisionStatus | None, Field(description="The stable revision.")] = None
    canary: Annotated[CanaryStatus | None, Field(description="The canary revision, during a rollout.")] = None
    revisions: Annotated[
        tuple[RevisionRecord, ...],
        Field(max_length=100, description="The ledger, oldest first."),
    ] = ()
    last_command: Annotated[CommandStatus | None, Field(description="Last command that was handled.")] = None
    commands: Annotated[
        tuple[CommandStatus, ...],
        Field(
            max_length=8,
            description="Last handled value of each command. Older tokens never act again.",
            exclude_if=nothing,
            json_schema_extra={"x-map-keys": ["name"]},
        ),
    ] = ()
    desired_revision: Annotated[
        str | None,
        Field(max_length=64, description="Revision that the spec asks for. Absent while its model is not ready."),
    ] = None
    rollback: Annotated[RollbackStatus | None, Field(description="The `rollback-to` in force.")] = None
    failed_revision: Annotated[
        str | None,
        Field(
            max_length=64,
            description="Revision that failed or was aborted. It is not tried again until the spec changes or somebody runs `retry`.",
        ),
    ] = None
