"""The kind ModelDeployment: which artifact serves, how a new one is rolled out, and what happened."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from fettle.api.base import ApiModel, PrinterColumn, Rule, rules
from fettle.api.conditions import Condition
from fettle.api.pods import EnvVar, LocalReference, ResourceSpec, Toleration
from fettle.api.vocabulary import Name, RuntimeName, Sha256, Uri


class ModelReference(ApiModel):
    """An OptimizedModel of this namespace to follow: each new winner is a new revision."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the OptimizedModel.")]
    target: Annotated[Name, Field(description="Which of its targets.")]


@rules(
    Rule(
        "has(self.ref) != has(self.uri)",
        "model needs exactly one of ref (follow an OptimizedModel) and uri (a fixed artifact)",
    ),
    Rule(
        "!has(self.uri) || (has(self.sha256) && has(self.runtime))",
        "model.uri needs model.sha256 and model.runtime beside it",
    ),
    Rule(
        "!has(self.ref) || (!has(self.sha256) && !has(self.runtime))",
        "model.sha256 and model.runtime belong to model.uri, not to model.ref",
    ),
    Rule(
        "!has(self.uri) || self.uri.matches('^pvc://[a-z0-9][a-z0-9.-]*/.+$')",
        "model.uri must be pvc://CLAIM/PATH, an artifact in a claim of this namespace",
    ),
)
class ModelSpec(ApiModel):
    """What serves: an OptimizedModel's winner, or a fixed artifact of the store."""

    ref: Annotated[ModelReference | None, Field(description="Follow an OptimizedModel of this namespace.")] = None
    uri: Annotated[Uri | None, Field(description="A fixed artifact: pvc://CLAIM/artifacts/SHA256.")] = None
    sha256: Annotated[Sha256 | None, Field(description="Digest of the fixed artifact's manifest.")] = None
    runtime: Annotated[RuntimeName | None, Field(description="Runtime of the fixed artifact.")] = None


class ServerSpec(ApiModel):
    """The inference server in each pod."""

    samples: Annotated[
        int,
        Field(
            ge=0,
            le=4096,
            description="Recent items each pod keeps in memory with their answers, for a canary to compare itself with; 0: none.",
        ),
    ] = 256

    threads: Annotated[
        int | None,
        Field(
            ge=1,
            le=256,
            description="Threads of one inference; default: the artifact's. Another value voids its measured figures.",
        ),
    ] = None
    resources: Annotated[ResourceSpec, Field(description="Resources of the server's container.")] = ResourceSpec()
    image: Annotated[str | None, Field(max_length=512, description="Server image; default: the operator's.")] = None
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=64,
            description="Environment of the server's container.",
            json_schema_extra={"x-map-keys": ["name"]},
        ),
    ] = ()


class TemplateSpec(ApiModel):
    """What the pods get besides the server."""

    labels: Annotated[dict[str, str], Field(max_length=32, description="Labels of the pods.")] = {}
    annotations: Annotated[dict[str, str], Field(max_length=32, description="Annotations of the pods.")] = {}
    node_selector: Annotated[dict[str, str], Field(max_length=32, description="Added to the target's own.")] = {}
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32, description="Added to the target's own.")] = ()
    affinity: Annotated[
        dict[str, Any] | None, Field(description="As in a Pod.", json_schema_extra={"x-preserve": True})
    ] = None
    topology_spread_constraints: Annotated[
        tuple[dict[str, Any], ...],
        Field(max_length=8, description="As in a Pod.", json_schema_extra={"x-preserve": True}),
    ] = ()
    service_account_name: Annotated[
        str | None, Field(max_length=253, description="ServiceAccount of the pods; no token is mounted.")
    ] = None
    image_pull_secrets: Annotated[
        tuple[LocalReference, ...],
        Field(max_length=8, description="Secrets to pull images with.", json_schema_extra={"x-map-keys": ["name"]}),
    ] = ()
    priority_class_name: Annotated[str | None, Field(max_length=253, description="PriorityClass of the pods.")] = None
    runtime_class_name: Annotated[
        str | None, Field(max_length=253, description="RuntimeClass of the pods; default: the target's.")
    ] = None


class Pause(ApiModel):
    """A wait; without seconds it lasts until promote."""

    seconds: Annotated[int | None, Field(ge=1, le=604_800, description="How long; absent: until `promote`.")] = None


@rules(Rule("has(self.weight) != has(self.pause)", "a step has exactly one key: weight or pause"))
class RolloutStep(ApiModel):
    """One step of a rollout: exactly one key."""

    weight: Annotated[int | None, Field(ge=0, le=100, description="Percent of the traffic to the canary.")] = None
    pause: Annotated[Pause | None, Field(description="Wait, watched by the analysis.")] = None


class SuccessRateSpec(ApiModel):
    """Bound on the share of requests that the model answered."""

    min: Annotated[float, Field(ge=0, le=1, description="Smallest share that is good.")]


@rules(
    Rule(
        "has(self.maxMilliseconds) || has(self.maxRatioToStable)",
        "latency needs maxMilliseconds, maxRatioToStable or both",
    )
)
class LatencySpec(ApiModel):
    """Bound on the server's time per request."""

    percentile: Annotated[int, Field(description="50, 90, 95 or 99.", json_schema_extra={"enum": [50, 90, 95, 99]})] = (
        99
    )
    max_milliseconds: Annotated[float | None, Field(gt=0, description="Absolute bound.")] = None
    max_ratio_to_stable: Annotated[
        float | None, Field(ge=1, description="Bound against the stable revision in the same window.")
    ] = None


@rules(Rule("self.min <= 0.999", "agreement.min must be at most 0.999: more is not proved by the samples of a canary"))
class AgreementBound(ApiModel):
    """Bound on the share of live items that the canary answers as the stable revision did."""

    min: Annotated[
        float,
        Field(ge=0.01, le=1, description="Smallest share that is good, of the items that stable was sure of."),
    ]


@rules(
    Rule(
        "has(self.successRate) || has(self.latency) || has(self.agreement)",
        "analysis needs successRate, latency, agreement or several of them: without a bound there is nothing to judge by",
    )
)
class AnalysisSpec(ApiModel):
    """How a canary is judged while it gets traffic."""

    interval_seconds: Annotated[
        int, Field(ge=1, le=3600, description="Length of a window; it extends until minRequests.")
    ] = 10
    min_requests: Annotated[
        int, Field(ge=1, le=1_000_000, description="Requests a window needs before it is judged.")
    ] = 50
    failure_limit: Annotated[
        int, Field(ge=1, le=100, description="This many bad windows in a row fail the rollout.")
    ] = 2
    success_rate: Annotated[SuccessRateSpec | None, Field(description="Share of requests that the model answered.")] = (
        None
    )
    latency: Annotated[LatencySpec | None, Field(description="Time per request.")] = None
    agreement: Annotated[
        AgreementBound | None,
        Field(
            description="Answers compared with the stable revision's, to the same live inputs. Needs server.samples."
        ),
    ] = None


class OnFailure(StrEnum):
    """What a failed analysis does."""

    ROLLBACK = "Rollback"
    PAUSE = "Pause"


@rules(
    Rule(
        "!has(self.steps) || self.steps.size() == 0 || (self.steps.exists(s, has(s.weight)) && "
        "self.steps.filter(s, has(s.weight))[self.steps.filter(s, has(s.weight)).size() - 1].weight == 100)",
        "the last weight of steps must be 100",
    ),
    Rule(
        "!has(self.steps) || self.steps.filter(s, has(s.weight)).map(s, s.weight).isSorted()",
        "weights of steps must ascend to 100",
    ),
)
class RolloutSpec(ApiModel):
    """How a new revision replaces the stable one."""

    steps: Annotated[
        tuple[RolloutStep, ...],
        Field(max_length=32, description="In order; none = straight to 100.", json_schema_extra={"x-atomic": True}),
    ] = ()
    analysis: Annotated[AnalysisSpec | None, Field(description="Absent: only readiness is watched.")] = None
    on_failure: Annotated[OnFailure, Field(description="What a failed analysis does.")] = OnFailure.ROLLBACK
    progress_deadline_seconds: Annotated[
        int, Field(ge=10, le=86_400, description="Longest time without progress; pauses do not count.")
    ] = 600
    revision_history_limit: Annotated[int, Field(ge=1, le=100, description="Revisions kept in the ledger.")] = 10


class TrafficProvider(StrEnum):
    """What splits the traffic."""

    REPLICAS = "Replicas"


class TrafficSpec(ApiModel):
    """How traffic is split between stable and canary."""

    provider: Annotated[TrafficProvider, Field(description="Replicas: by the share of pods behind one Service.")] = (
        TrafficProvider.REPLICAS
    )


@rules(
    Rule(
        "!has(self.rollout) || !has(self.rollout.analysis) || !has(self.rollout.analysis.agreement) || "
        "!has(self.server) || !has(self.server.samples) || self.server.samples > 0",
        "rollout.analysis.agreement compares samples, and server.samples is 0: raise it, or drop agreement",
    )
)
class ModelDeploymentSpec(ApiModel):
    """Which artifact serves, and how a new one is rolled out."""

    model: Annotated[ModelSpec, Field(description="What serves.")]
    replicas: Annotated[int, Field(ge=0, le=1000, description="Pods in total, stable and canary together.")] = 1
    server: Annotated[ServerSpec, Field(description="The inference server in each pod.")] = ServerSpec()
    template: Annotated[TemplateSpec, Field(description="What the pods get besides the server.")] = TemplateSpec()
    rollout: Annotated[RolloutSpec, Field(description="How a new revision replaces the stable one.")] = RolloutSpec()
    traffic: Annotated[TrafficSpec, Field(description="How traffic is split.")] = TrafficSpec()
    paused: Annotated[bool, Field(description="Hold the rollout where it is; scaling and healing go on.")] = False


# --------------------------------------------------------------------------------------------------------------- status


class Verdict(StrEnum):
    """What a window said."""

    PENDING = "Pending"
    GOOD = "Good"
    BAD = "Bad"
    INCONCLUSIVE = "Inconclusive"


class MetricFinding(ApiModel):
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
    metrics: Annotated[tuple[MetricFinding, ...], Field(max_length=8, description="What each metric said.")] = ()


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
        str | None, Field(max_length=512, description="Metric, value, bound and sample count of that verdict.")
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


COLUMNS = (
    PrinterColumn("Ready", ".status.conditions[?(@.type=='Ready')].status"),
    PrinterColumn("Stable", ".status.stable.revision"),
    PrinterColumn("Canary", ".status.canary.revision"),
    PrinterColumn("Weight", ".status.canary.actualWeight", "integer"),
    PrinterColumn("Step", ".status.canary.step", "integer"),
    PrinterColumn("Reason", ".status.conditions[?(@.type=='Progressing')].reason"),
    PrinterColumn("URL", ".status.address.url"),
    PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
)
NAME_RULE = Rule(
    "self.metadata.name.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$') && self.metadata.name.size() <= 46",
    "metadata.name must be a DNS-1035 label of at most 46 characters: lower-case letters, digits and '-', "
    "beginning with a letter",
)


@rules(NAME_RULE)
class ModelDeployment(ApiModel):
    """Serves an optimized model; a new one is a canary first, watched, and rolled back by itself when it is worse."""

    metadata: dict[str, Any]
    spec: ModelDeploymentSpec
    status: ModelDeploymentStatus = ModelDeploymentStatus()
