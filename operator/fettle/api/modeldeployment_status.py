"""Status of a ModelDeployment: what serves, what is on trial and how it does, what served before."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel
from fettle.api.conditions import Condition


class Verdict(StrEnum):
    """What a window said."""

    PENDING = "Pending"
    GOOD = "Good"
    BAD = "Bad"
    INCONCLUSIVE = "Inconclusive"


class MetricRecord(ApiModel):
    """What one metric said in a window."""

    metric: Annotated[
        str, Field(max_length=32, description="successRate, p99Milliseconds, p99RatioToStable, and so on.")
    ]
    verdict: Annotated[Verdict, Field(description="What it says.")]
    value: Annotated[float | None, Field(description="As measured; absent where nothing could be.")] = None
    bound: Annotated[float, Field(description="What the spec allows.")]
    samples: Annotated[int, Field(description="Requests it rests on.")] = 0


class AnalysisWindow(ApiModel):
    """A window that was judged."""

    start: Annotated[str, Field(max_length=32, description="When it began (RFC 3339, UTC).")]
    end: Annotated[str, Field(max_length=32, description="When it ended.")]
    weight: Annotated[int, Field(description="Weight that was asked at its end.")] = 0
    requests: Annotated[int, Field(description="Requests to the canary.")] = 0
    failures: Annotated[int, Field(description="Those of them that the model did not answer.")] = 0
    verdict: Annotated[Verdict, Field(description="Good or Bad.")]
    metrics: Annotated[tuple[MetricRecord, ...], Field(max_length=8, description="What each metric said.")] = ()


class AnalysisStatus(ApiModel):
    """The window that is being watched, summed over the canary's pods."""

    window_start: Annotated[str, Field(max_length=32, description="When it began (RFC 3339, UTC).")]
    requests: Annotated[int, Field(description="Requests in the window that was looked at last.")] = 0
    failures: Annotated[int, Field(description="Those of them that the model did not answer.")] = 0
    compared: Annotated[
        int, Field(description="Items in that window on which the canary was compared with the stable revision.")
    ] = 0
    agreed: Annotated[int, Field(description="Those of them that both answered alike.")] = 0
    unsure: Annotated[int, Field(description="Items beside them that stable itself was not sure of.")] = 0
    consecutive: Annotated[int, Field(description="Bad windows in a row.")] = 0
    verdict: Annotated[Verdict, Field(description="What the last whole window said.")] = Verdict.PENDING
    message: Annotated[
        str | None,
        Field(
            max_length=512,
            description="Metric, value, bound and sample count of that verdict; or what has come since then, while that is "
            "too little to judge.",
        ),
    ] = None
    windows: Annotated[
        tuple[AnalysisWindow, ...],
        Field(
            max_length=20,
            description="The last windows of this rollout that were judged, oldest first. The ledger keeps them afterwards.",
            json_schema_extra={"x-atomic": True},
        ),
    ] = ()


class RevisionStatus(ApiModel):
    """A revision that has pods."""

    revision: Annotated[str, Field(max_length=64, description="Hash of what the pods run.")]
    artifact: Annotated[str, Field(max_length=1024, description="Artifact it serves.")]
    replicas: Annotated[int, Field(description="Pods wanted.")] = 0
    ready: Annotated[int, Field(description="Pods ready.")] = 0


class CanaryStatus(RevisionStatus):
    """The revision on trial."""

    weight: Annotated[int, Field(description="Asked percent of the traffic.")] = 0
    actual_weight: Annotated[int, Field(description="Percent it really gets: its share of ready pods.")] = 0
    step: Annotated[int, Field(description="Index of the current step.")] = 0
    started_at: Annotated[str, Field(max_length=32, description="When this rollout began.")] = ""
    step_started_at: Annotated[str, Field(max_length=32, description="When this step began to hold.")] = ""
    progressed_at: Annotated[
        str, Field(max_length=32, description="When the rollout last made progress; the deadline counts from here.")
    ] = ""
    analysis: Annotated[AnalysisStatus | None, Field(description="What its traffic says.")] = None


class RevisionRecord(ApiModel):
    """A line of the ledger: what served when, and why it left."""

    revision: Annotated[str, Field(max_length=64, description="Hash of what the pods ran.")]
    artifact: Annotated[str, Field(max_length=1024, description="Artifact it served.")]
    entered: Annotated[
        str | None, Field(max_length=32, description="When it first got traffic; absent: it never did.")
    ] = None
    left: Annotated[str | None, Field(max_length=32, description="When it lost its traffic.")] = None
    reason: Annotated[str | None, Field(max_length=64, description="Why it left.")] = None


class Address(ApiModel):
    """Where requests go."""

    url: Annotated[str, Field(max_length=512, description="Inside the cluster.")]


class CommandStatus(ApiModel):
    """The command that was handled last; its token acts once."""

    name: Annotated[str, Field(max_length=64, description="promote, promote-full, abort, retry or rollback-to.")]
    value: Annotated[str, Field(max_length=256, description="What was annotated: <revision>/<token>.")]


class RollbackStatus(ApiModel):
    """An order that holds: what serves instead of what the spec asks for."""

    desired: Annotated[str, Field(max_length=64, description="Revision that the spec asks for; another one ends it.")]
    target: Annotated[str, Field(max_length=64, description="Revision of the ledger that is rolled out instead.")]


class ModelDeploymentStatus(ApiModel):
    """What serves, and what is on trial."""

    observed_generation: Annotated[int | None, Field(description="Generation of the spec this status speaks of.")] = (
        None
    )
    replicas: Annotated[int, Field(description="Pods of all revisions.")] = 0
    ready_replicas: Annotated[int, Field(description="Ready pods of all revisions.")] = 0
    selector: Annotated[str, Field(max_length=512, description="Label selector of the pods, for autoscalers.")] = ""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=8,
            description="Ready, Progressing, Degraded, Paused.",
            json_schema_extra={"x-map-keys": ["type"]},
        ),
    ] = ()
    address: Annotated[Address | None, Field(description="Where requests go.")] = None
    stable: Annotated[RevisionStatus | None, Field(description="The revision that serves.")] = None
    canary: Annotated[CanaryStatus | None, Field(description="The revision on trial.")] = None
    revisions: Annotated[
        tuple[RevisionRecord, ...],
        Field(max_length=100, description="The ledger, oldest first.", json_schema_extra={"x-atomic": True}),
    ] = ()
    last_command: Annotated[CommandStatus | None, Field(description="The command that was handled last.")] = None
    commands: Annotated[
        tuple[CommandStatus, ...],
        Field(
            max_length=8,
            description="The last value handled of each command: an older token never acts again.",
            json_schema_extra={"x-map-keys": ["name"]},
        ),
    ] = ()
    desired_revision: Annotated[
        str | None,
        Field(max_length=64, description="Revision that the spec asks for; absent while its model is not ready."),
    ] = None
    rollback: Annotated[RollbackStatus | None, Field(description="The `rollback-to` that holds.")] = None
    failed_revision: Annotated[
        str | None,
        Field(
            max_length=64,
            description="Revision that failed or was aborted; not tried again until `retry` or a new spec.",
        ),
    ] = None
