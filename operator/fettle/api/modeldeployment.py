"""The kind ModelDeployment: which artifact serves, and how a new one is rolled out."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from fettle.api.base import ApiModel, PrinterColumn, Rule, rules
from fettle.api.modeldeployment_status import ModelDeploymentStatus
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

    min: Annotated[float, Field(ge=0, le=1, description="Smallest share that is good.")] = 0.99


@rules(
    Rule(
        "has(self.maxMilliseconds) || has(self.maxRatioToStable)",
        "latency needs maxMilliseconds, maxRatioToStable or both",
    )
)
class LatencySpec(ApiModel):
    """Bound on the server's time per request that was answered; how fast a failure came says nothing of the model."""

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
    success_rate: Annotated[
        SuccessRateSpec,
        Field(
            description="Share of requests that the model answered; asked of every canary, whatever else is bounded."
        ),
    ] = SuccessRateSpec()
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
    """Serves an optimized model. Each new version starts as a canary and is rolled back automatically when live traffic shows that it is worse."""

    metadata: dict[str, Any]
    spec: ModelDeploymentSpec
    status: ModelDeploymentStatus = ModelDeploymentStatus()
