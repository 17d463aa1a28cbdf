"""The status of an OptimizedModel."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, computed_field

from fettle.api.base import ApiModel, nothing
from fettle.api.conditions import Condition, ObservedGeneration
from fettle.api.constraints import Constraints
from fettle.api.executed import Executed
from fettle.api.measured import AgreementStatus, Flips, Interval, Measurement, MetricValue, SpeedupStatus, worth
from fettle.api.pods import Toleration
from fettle.api.progress import TrainingStatus
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Tensor
from fettle.api.summary import Summary, size, word
from fettle.api.vocabulary import Architecture, CandidateState, Evidence, FormatName, Quantity, RuntimeName, Sha256


class SourceStatus(ApiModel):
    """The source model."""

    sha256: Annotated[
        Sha256, Field(description="sha256 of the file, or of the canonical list of (path, sha256) of a folder.")
    ]
    format: Annotated[
        FormatName,
        Field(
            description="Detected format.", json_schema_extra={"enum": [f for f in FormatName if f != FormatName.AUTO]}
        ),
    ]
    bytes: Annotated[int, Field(description="Total size of all files, in bytes.")]
    inputs: Annotated[tuple[Tensor, ...], Field(max_length=64, description="Inputs of the model.")] = ()
    outputs: Annotated[tuple[Tensor, ...], Field(max_length=64, description="Outputs of the model.")] = ()


class CandidateStatus(ApiModel):
    """One row: recipe x runtime x settings."""

    name: Annotated[str, Field(max_length=128, description="Name of the candidate: recipe, runtime and settings.")]
    target: Annotated[str, Field(max_length=63, description="Target that the candidate is for.")]
    runtime: Annotated[RuntimeName, Field(description="Runtime of the candidate.")]
    recipe: Annotated[str, Field(max_length=63, description="Recipe of the candidate.")]
    settings: Annotated[RuntimeSettings, Field(description="Runtime settings.")] = RuntimeSettings()
    state: Annotated[CandidateState, Field(description="State of the candidate.")] = CandidateState.PENDING
    reason: Annotated[
        str | None, Field(max_length=64, description="Why the candidate was rejected, failed or was not preferred.")
    ] = None
    message: Annotated[str | None, Field(max_length=512, description="Human-readable explanation of the reason.")] = (
        None
    )
    bytes: Annotated[int | None, Field(description="Total size of its files, in bytes.")] = None
    training: Annotated[TrainingStatus | None, Field(description="Progress of the training that runs for it.")] = None
    artifact: Annotated[str | None, Field(max_length=64, description="sha256 of the manifest.")] = None
    exact: Annotated[
        bool | None,
        Field(
            description="Whether it has no lossy step and its outputs equal the original's within float32 rounding error on all items."
        ),
    ] = None
    evidence: Annotated[Evidence | None, Field(description="Evidence for the claim about accuracy.")] = None
    samples: Annotated[int | None, Field(description="Number of items used for evaluation.")] = None
    accuracy: Annotated[MetricValue | None, Field(description="Value of the metric.")] = None
    accuracy_drop: Annotated[
        Interval | None, Field(description="Accuracy drop compared with the original. Positive means worse.")
    ] = None
    agreement: Annotated[
        AgreementStatus | None, Field(description="Share of items with the same answer as the original.")
    ] = None
    flips: Annotated[
        Flips | None, Field(description="Items that changed from right to wrong or from wrong to right.")
    ] = None
    changed: Annotated[
        Interval | None,
        Field(
            description="Share of labeled decisions that differ from the original's, or of the decisions of another output if that share is larger."
        ),
    ] = None
    max_absolute_difference: Annotated[
        float | None, Field(description="Largest absolute difference of any output element.")
    ] = None
    speedup: Annotated[SpeedupStatus | None, Field(description="Speed-up over the baseline.")] = None
    executed: Annotated[
        Executed | None,
        Field(
            description="In which number types the runtime really computed: the number of the graph's compute nodes by type. It may differ from what "
            "the recipe and settings.precision request, because a runtime keeps some operators in another type."
        ),
    ] = None
    measurements: Annotated[
        tuple[Measurement, ...],
        Field(max_length=8, description="Measured times, one row per batch size.", exclude_if=nothing),
    ] = ()


class BaselineStatus(ApiModel):
    """The untouched source on a target."""

    target: Annotated[str, Field(max_length=63, description="Name of the target.")]
    runtime: Annotated[RuntimeName, Field(description="Runtime in which the original was timed.")]
    bytes: Annotated[int, Field(description="Total size of its files, in bytes.")]
    accuracy: Annotated[MetricValue | None, Field(description="Value of the metric.")] = None
    constant: Annotated[
        MetricValue | None,
        Field(
            description="Value of the metric for the best constant predictor: a trivial model that gives every item the same answer."
        ),
    ] = None
    samples: Annotated[int | None, Field(description="Number of items used for evaluation.")] = None
    labels: Annotated[str | None, Field(max_length=512, description="How the labels were interpreted.")] = None
    answers: Annotated[
        str | None,
        Field(
            max_length=512, description="How the original's answers are interpreted, if a task metric evaluates them."
        ),
    ] = None
    measurements: Annotated[
        tuple[Measurement, ...],
        Field(max_length=8, description="Measured times, one row per batch size.", exclude_if=nothing),
    ] = ()

    def p50(self, batch_size: int) -> float | None:
        """The median time of a run with a batch size, in milliseconds; None if it was not measured."""
        medians = (
            measurement.latency_milliseconds.p50
            for measurement in self.measurements
            if measurement.batch_size == batch_size
        )
        return next(medians, None)

    @property
    def worth(self) -> str:
        """How good the original is on the items: 'Accuracy 0.963 on 600 items (the best constant predictor scores 0.12); labels: …'."""
        return worth(self.accuracy, self.constant, self.samples, self.labels, self.answers)


class Placement(ApiModel):
    """Where the artifact was measured, hence where it should serve."""

    node_selector: Annotated[dict[str, str], Field(max_length=32, description="Node labels.", exclude_if=nothing)] = {}
    tolerations: Annotated[
        tuple[Toleration, ...], Field(max_length=32, description="Tolerations.", exclude_if=nothing)
    ] = ()
    runtime_class_name: Annotated[str | None, Field(max_length=253, description="RuntimeClass.")] = None
    architecture: Annotated[
        Architecture | None,
        Field(description="Compute capability of the GPU. Pods do not load the artifact on another GPU."),
    ] = None
    limits: Annotated[
        dict[str, Quantity] | None,
        Field(
            max_length=8,
            description="Resources of NVIDIA's device plugin that serving pods get, such as nvidia.com/gpu.",
        ),
    ] = None


class ArtifactStatus(ApiModel):
    """What was published for a target. Numbers are points; the intervals stand at the candidate."""

    target: Annotated[str, Field(max_length=63, description="Name of the target.")]
    candidate: Annotated[str, Field(max_length=128, description="Candidate that was published.")]
    runtime: Annotated[RuntimeName, Field(description="Runtime that serves the artifact.")]
    uri: Annotated[str, Field(max_length=1024, description="URI of the artifact.")]
    secret_name: Annotated[
        str | None, Field(max_length=253, description="Name of the Secret with the credentials for the store.")
    ] = None
    sha256: Annotated[Sha256, Field(description="sha256 of the manifest.")]
    registry_uri: Annotated[
        str | None,
        Field(max_length=1024, description="Address of the artifact in the registry of spec.publish, by digest."),
    ] = None
    bytes: Annotated[int, Field(description="Total size of its files, in bytes.")]
    threads: Annotated[int, Field(description="Total number of compute threads, as measured.")] = 1
    speedup: Annotated[
        float | None,
        Field(description="Speed-up over the baseline; the lower end of its interval if the measurement was unsteady."),
    ] = None
    accuracy_drop: Annotated[float | None, Field(description="Accuracy drop compared with the original.")] = None
    placement: Annotated[
        Placement, Field(description="Nodes on which the artifact was measured.", exclude_if=nothing)
    ] = Placement()
    generation: Annotated[
        int | None, Field(description="Generation of the spec whose run first published the artifact.")
    ] = None
    incumbent: Annotated[
        Sha256 | None,
        Field(
            description="sha256 of the artifact that was published when the last run began, and was measured in that run too. It is the same as "
            "sha256 if that artifact was kept."
        ),
    ] = None


class ReportStatus(ApiModel):
    """The HTML report."""

    uri: Annotated[str, Field(max_length=1024, description="URI of a self-contained HTML file.")]


class DeviceStatus(ApiModel):
    """The GPUs that were found for a target when its run began. The run keeps to them."""

    target: Annotated[str, Field(max_length=63, description="Name of the target.")]
    architecture: Annotated[
        Architecture | None,
        Field(description="Compute capability, as the spec says or as the labels of all suitable nodes say."),
    ] = None
    node_selector: Annotated[
        dict[str, str] | None,
        Field(max_length=8, description="Node labels that select nodes with that GPU, if the nodes have them."),
    ] = None
    nodes: Annotated[
        int | None, Field(description="Number of suitable nodes. Absent if the operator may not read nodes.")
    ] = None


class OptimizedModelStatus(ApiModel):
    """The observed state of the OptimizedModel."""

    observed_generation: ObservedGeneration = None
    started_at: Annotated[
        str | None,
        Field(max_length=32, description="When this run started (RFC 3339, UTC). Its deadline counts from here."),
    ] = None
    retries: Annotated[
        int | None,
        Field(
            description="Number of retries of failed tasks, by command or because of a changed spec. Attempt numbers continue from there."
        ),
    ] = None
    last_handled_retry: Annotated[
        str | None,
        Field(max_length=256, description="Last value of the annotation fettle.dev/retry that was handled."),
    ] = None
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=8,
            description="Conditions: Ready, SourceResolved, Converted, Measured, Reconciling, Stalled.",
            json_schema_extra={"x-map-keys": ["type"]},
        ),
    ] = ()
    constraints: Annotated[
        Constraints | None, Field(description="Constraints in force, with defaults for those that the spec leaves out.")
    ] = None
    source: Annotated[SourceStatus | None, Field(description="The source model.")] = None
    devices: Annotated[
        tuple[DeviceStatus, ...] | None,
        Field(
            max_length=8,
            description="GPUs of the targets that have a GPU.",
            json_schema_extra={"x-map-keys": ["target"]},
        ),
    ] = None
    baselines: Annotated[
        tuple[BaselineStatus, ...],
        Field(
            max_length=8,
            description="Measurements of the original, one per target.",
            json_schema_extra={"x-map-keys": ["target"]},
        ),
    ] = ()
    candidates: Annotated[tuple[CandidateStatus, ...], Field(max_length=128, description="All candidates.")] = ()
    artifacts: Annotated[
        tuple[ArtifactStatus, ...],
        Field(
            max_length=8,
            description="Published artifacts, one per target.",
            json_schema_extra={"x-map-keys": ["target"]},
        ),
    ] = ()
    report: Annotated[ReportStatus | None, Field(description="The HTML report.")] = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def summary(self) -> Summary | None:
        """Summary of the published artifacts for `kubectl get`. Absent if nothing is published."""
        if not self.artifacts:
            return None
        return Summary(
            targets=",".join(artifact.target for artifact in self.artifacts),
            speedup=",".join(word(artifact.speedup, "{:.2f}x") for artifact in self.artifacts),
            drop=",".join(word(artifact.accuracy_drop, "{:.4g}") for artifact in self.artifacts),
            size=",".join(size(artifact.bytes) for artifact in self.artifacts),
        )
