"""The kind ModelDeployment: which artifact serves, and how a new one is rolled out."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from fettle.api.base import ApiModel, PrinterColumn, Rule, rules
from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.pods import LocalReference, Toleration
from fettle.api.server import ServerSpec
from fettle.api.uris import SecretName, artifact_rules
from fettle.api.vocabulary import Name, RuntimeName, Sha256, Uri


class ModelReference(ApiModel):
    """An OptimizedModel of this namespace to follow: each new winner is a new revision."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the OptimizedModel.")]
    target: Annotated[Name, Field(description="Target of the OptimizedModel whose artifact is served.")]


@rules(
    Rule(
        "has(self.ref) != has(self.uri)",
        "model requires exactly one of ref (follow an OptimizedModel) and uri (a fixed artifact)",
    ),
    Rule(
        "!has(self.uri) || (has(self.sha256) && has(self.runtime))",
        "model.uri requires model.sha256 and model.runtime",
    ),
    Rule(
        "!has(self.ref) || (!has(self.sha256) && !has(self.runtime))",
        "model.sha256 and model.runtime may only be set together with model.uri, not with model.ref",
    ),
    *artifact_rules("model.uri"),
)
class ModelSpec(ApiModel):
    """What serves: an OptimizedModel's winner, or a fixed artifact of the store."""

    ref: Annotated[ModelReference | None, Field(description="OptimizedModel in this namespace to follow.")] = None
    uri: Annotated[
        Uri | None,
        Field(
            description="Fixed artifact: pvc://CLAIM/artifacts/SHA256, s3://BUCKET/artifacts/SHA256, or "
            "oci://REGISTRY/REPOSITORY@sha256:DIGEST, as `fettle push` prints it."
        ),
    ] = None
    secret_name: SecretName = None
    sha256: Annotated[Sha256 | None, Field(description="sha256 of the fixed artifact's manifest.")] = None
    runtime: Annotated[RuntimeName | None, Field(description="Runtime of the fixed artifact.")] = None


class TemplateSpec(ApiModel):
    """Additional settings of the pods."""

    labels: Annotated[dict[str, str], Field(max_length=32, description="Labels of the pods.")] = {}
    annotations: Annotated[dict[str, str], Field(max_length=32, description="Annotations of the pods.")] = {}
    node_selector: Annotated[
        dict[str, str],
        Field(max_length=32, description="Node labels that the pods require, beside those of the target."),
    ] = {}
    tolerations: Annotated[
        tuple[Toleration, ...], Field(max_length=32, description="Tolerations of the pods, beside those of the target.")
    ] = ()
    affinity: Annotated[
        dict[str, Any] | None, Field(description="In Pod syntax.", json_schema_extra={"x-preserve": True})
    ] = None
    topology_spread_constraints: Annotated[
        tuple[dict[str, Any], ...],
        Field(max_length=8, description="In Pod syntax.", json_schema_extra={"x-preserve": True}),
    ] = ()
    service_account_name: Annotated[
        str | None,
        Field(
            max_length=253,
            description="ServiceAccount of the pods. Its token is only mounted for server.auth.tokenReview.",
        ),
    ] = None
    image_pull_secrets: Annotated[
        tuple[LocalReference, ...],
        Field(max_length=8, description="Image pull Secrets.", json_schema_extra={"x-map-keys": ["name"]}),
    ] = ()
    priority_class_name: Annotated[str | None, Field(max_length=253, description="PriorityClass of the pods.")] = None
    runtime_class_name: Annotated[
        str | None, Field(max_length=253, description="RuntimeClass of the pods. Defaults to the target's.")
    ] = None


class Pause(ApiModel):
    """A wait; without seconds it lasts until promote."""

    seconds: Annotated[
        int | None,
        Field(ge=1, le=604_800, description="Duration in seconds. Without it, the pause lasts until `promote`."),
    ] = None


@rules(Rule("has(self.weight) != has(self.pause)", "a step must have exactly one key: weight or pause"))
class RolloutStep(ApiModel):
    """One step of a rollout: exactly one key."""

    weight: Annotated[int | None, Field(ge=0, le=100, description="Percentage of traffic for the canary.")] = None
    pause: Annotated[Pause | None, Field(description="Wait while the analysis continues.")] = None


class SuccessRateSpec(ApiModel):
    """Bound on the share of requests that the model answered."""

    min: Annotated[float, Field(ge=0, le=1, description="Minimum success rate.")] = 0.99


@rules(
    Rule(
        "has(self.maxMilliseconds) || has(self.maxRatioToStable)",
        "latency requires maxMilliseconds, maxRatioToStable or both",
    )
)
class LatencySpec(ApiModel):
    """Bound on the server's time per request that was answered; how fast a failure came says nothing of the model."""

    percentile: Annotated[
        int, Field(description="Percentile: 50, 90, 95 or 99.", json_schema_extra={"enum": [50, 90, 95, 99]})
    ] = 99
    max_milliseconds: Annotated[float | None, Field(gt=0, description="Maximum latency in milliseconds.")] = None
    max_ratio_to_stable: Annotated[
        float | None, Field(ge=1, description="Maximum ratio to the latency of the stable revision in the same window.")
    ] = None


# As a rule: an API server tells a schema's maximum without its decimal places.
@rules(Rule("self.min <= 0.999", "agreement.min must be at most 0.999: the samples of a canary cannot prove more"))
class AgreementBound(ApiModel):
    """Bound on the share of live items that the canary answers as the stable revision did."""

    min: Annotated[
        float,
        Field(
            ge=0.01,
            le=1,
            description="Minimum share of items with the same answer, among the items of which stable is sure.",
        ),
    ]


class AnalysisSpec(ApiModel):
    """How a canary is judged while it gets traffic."""

    interval_seconds: Annotated[
        int,
        Field(
            ge=1, le=3600, description="Length of an analysis window. The window is extended until it has minRequests."
        ),
    ] = 10
    min_requests: Annotated[
        int, Field(ge=1, le=1_000_000, description="Minimum number of requests before a window is judged.")
    ] = 50
    failure_limit: Annotated[
        int, Field(ge=1, le=100, description="Number of bad windows in a row that fail the rollout.")
    ] = 2
    success_rate: Annotated[
        SuccessRateSpec,
        Field(description="Bound on the share of requests that the model answered. Always checked."),
    ] = SuccessRateSpec()
    latency: Annotated[LatencySpec | None, Field(description="Bound on the time per request.")] = None
    agreement: Annotated[
        AgreementBound | None,
        Field(
            description="Bound on the share of answers that equal the stable revision's on the same live inputs. Needs server.samples."
        ),
    ] = None


class OnFailure(StrEnum):
    """What happens if the analysis fails."""

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
        "weights of steps must be in ascending order, up to 100",
    ),
)
class RolloutSpec(ApiModel):
    """How a new revision replaces the stable one."""

    steps: Annotated[
        tuple[RolloutStep, ...],
        Field(
            max_length=32,
            description="Steps in order. Empty means that the canary goes straight to 100 percent.",
        ),
    ] = ()
    analysis: Annotated[
        AnalysisSpec | None,
        Field(description="Analysis of the canary's traffic. If absent, only readiness is checked."),
    ] = None
    on_failure: Annotated[OnFailure, Field(description="What happens if the analysis fails.")] = OnFailure.ROLLBACK
    progress_deadline_seconds: Annotated[
        int, Field(ge=10, le=86_400, description="Maximum time without progress, in seconds. Pauses do not count.")
    ] = 600
    revision_history_limit: Annotated[
        int, Field(ge=1, le=100, description="Number of revisions to keep in the ledger.")
    ] = 10


class TrafficProvider(StrEnum):
    """What splits the traffic."""

    REPLICAS = "Replicas"


class TrafficSpec(ApiModel):
    """How traffic is split between stable and canary."""

    provider: Annotated[
        TrafficProvider,
        Field(description="What splits the traffic. Replicas uses the share of pods behind one Service."),
    ] = TrafficProvider.REPLICAS


@rules(
    Rule(
        "!has(self.rollout) || !has(self.rollout.analysis) || !has(self.rollout.analysis.agreement) || "
        "!has(self.server) || !has(self.server.samples) || self.server.samples > 0",
        "rollout.analysis.agreement requires server.samples above 0: raise server.samples, or remove agreement",
    )
)
class ModelDeploymentSpec(ApiModel):
    """The artifact to serve, and how a new revision is rolled out."""

    model: Annotated[ModelSpec, Field(description="Artifact to serve.")]
    replicas: Annotated[int, Field(ge=0, le=1000, description="Total number of pods, stable and canary together.")] = 1
    server: Annotated[ServerSpec, Field(description="Settings of the inference server in each pod.")] = ServerSpec()
    template: Annotated[TemplateSpec, Field(description="Additional settings of the pods.")] = TemplateSpec()
    rollout: Annotated[RolloutSpec, Field(description="How a new revision replaces the stable one.")] = RolloutSpec()
    traffic: Annotated[TrafficSpec, Field(description="How traffic is split between stable and canary.")] = (
        TrafficSpec()
    )
    paused: Annotated[bool, Field(description="Pause the rollout. Scaling and replacing lost pods continue.")] = False


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
    """A ModelDeployment serves an optimized model. New versions start as canaries and are rolled back automatically if live traffic
    shows that they are worse."""

    metadata: dict[str, Any]
    spec: ModelDeploymentSpec
    status: ModelDeploymentStatus = ModelDeploymentStatus()
