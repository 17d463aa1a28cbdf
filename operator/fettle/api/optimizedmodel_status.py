"""The status of an OptimizedModel: what came of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, computed_field

from fettle.api.base import ApiModel
from fettle.api.conditions import Condition
from fettle.api.constraints import Constraints
from fettle.api.pods import Toleration
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Tensor
from fettle.api.vocabulary import (
    AgreementMode,
    Basis,
    CandidateState,
    Evidence,
    Metric,
    RuntimeName,
    Sha256,
    SourceFormat,
)


class SourceStatus(ApiModel):
    """The model as it was found."""

    sha256: Annotated[Sha256, Field(description="Digest of the file, or of the canonical list of a folder.")]
    format: Annotated[SourceFormat, Field(description="Format that was recognised.")]
    bytes: Annotated[int, Field(description="Bytes of all files.")]
    inputs: Annotated[tuple[Tensor, ...], Field(max_length=64, description="Signature: inputs.")] = ()
    outputs: Annotated[tuple[Tensor, ...], Field(max_length=64, description="Signature: outputs.")] = ()


class MetricValue(ApiModel):
    """A metric and its value."""

    metric: Annotated[Metric, Field(description="Name of the metric.")]
    value: Annotated[float, Field(description="Its value on the evaluation items.")]


class Interval(ApiModel):
    """A point and its interval, unfavourable and favourable end included."""

    value: Annotated[float, Field(description="Point estimate.")]
    low: Annotated[float, Field(description="Lower end.")]
    high: Annotated[float, Field(description="Upper end.")]


class SpeedupStatus(Interval):
    """Times faster than the baseline, paired in the same rounds: one run, or with objective Throughput the items of a second."""

    basis: Annotated[Basis, Field(description="What was timed as the baseline.")]


class AgreementStatus(Interval):
    """Share of items on which candidate and original agree."""

    mode: Annotated[AgreementMode, Field(description="How answers were compared.")]
    variance_kept: Annotated[
        float | None,
        Field(
            description="Share of the original's variance over the items that is left in the channel of which least is: "
            "1 - var(candidate - original) / var(original), 1 = all, 0 = nothing or worse. Absent where no compared output has a channel "
            "of floating-point numbers that varies."
        ),
    ] = None
    worst_channel: Annotated[
        str | None,
        Field(
            max_length=253,
            description="That channel, as numpy would write it: boxes[:, 4, :] is index 4 of the output's axis 1.",
        ),
    ] = None


class Flips(ApiModel):
    """Items on which exactly one of original and candidate is right."""

    worse: Annotated[int, Field(description="Right before, wrong now.")]
    better: Annotated[int, Field(description="Wrong before, right now.")]


class Percentiles(ApiModel):
    """Milliseconds; a percentile for which too few runs were made is absent."""

    p50: Annotated[float | None, Field(description="Median, from 30 runs on.")] = None
    p90: Annotated[float | None, Field(description="From 36 runs on.")] = None
    p95: Annotated[float | None, Field(description="From 72 runs on.")] = None
    p99: Annotated[float | None, Field(description="From 367 runs on.")] = None


class Measurement(ApiModel):
    """One batch size, timed."""

    batch_size: Annotated[int, Field(description="Items per run.")]
    latency_milliseconds: Annotated[Percentiles, Field(description="Time of one run.")]
    items_per_second: Annotated[float, Field(description="Items answered in a second, in the median block.")]
    peak_memory_bytes: Annotated[int, Field(description="Peak resident memory of the process.")]
    runs: Annotated[int, Field(description="Timed runs.")]
    restarts: Annotated[int, Field(description="Process starts.")]


class Executed(ApiModel):
    """Compute nodes by the precision in which they really ran."""

    int8: Annotated[int, Field(description="Integer arithmetic.")] = 0
    weight_only: Annotated[int, Field(description="int8 weights, float arithmetic.")] = 0
    bf16: Annotated[int, Field(description="bfloat16.")] = 0
    f16: Annotated[int, Field(description="float16.")] = 0
    f32: Annotated[int, Field(description="float32.")] = 0
    total: Annotated[int, Field(description="All compute nodes.")] = 0


class CandidateStatus(ApiModel):
    """One row: recipe x runtime x settings."""

    name: Annotated[str, Field(max_length=128, description="Recipe, runtime and what sets it apart.")]
    target: Annotated[str, Field(max_length=63, description="Target it was measured for.")]
    runtime: Annotated[RuntimeName, Field(description="Runtime.")]
    recipe: Annotated[str, Field(max_length=63, description="Recipe.")]
    settings: Annotated[RuntimeSettings, Field(description="Settings of the runtime.")] = RuntimeSettings()
    state: Annotated[CandidateState, Field(description="Where it stands.")] = CandidateState.PENDING
    reason: Annotated[str | None, Field(max_length=64, description="Why it was rejected, failed or not preferred.")] = (
        None
    )
    message: Annotated[str | None, Field(max_length=512, description="The same for a person.")] = None
    bytes: Annotated[int | None, Field(description="Bytes of its files.")] = None
    artifact: Annotated[str | None, Field(max_length=64, description="Digest of its manifest.")] = None
    exact: Annotated[
        bool | None, Field(description="No lossy step, and outputs within fp32 tolerance on all items.")
    ] = None
    evidence: Annotated[Evidence | None, Field(description="What the claim about accuracy rests on.")] = None
    samples: Annotated[int | None, Field(description="Items it was judged on.")] = None
    accuracy: Annotated[MetricValue | None, Field(description="Metric of this candidate.")] = None
    accuracy_drop: Annotated[Interval | None, Field(description="Loss against the baseline; positive = worse.")] = None
    agreement: Annotated[AgreementStatus | None, Field(description="Share of items with the same answer.")] = None
    flips: Annotated[Flips | None, Field(description="Items that changed sides.")] = None
    changed: Annotated[
        Interval | None,
        Field(
            description="Share of decisions with labels, or of another output if more there, that are not the original's."
        ),
    ] = None
    max_absolute_difference: Annotated[float | None, Field(description="Worst difference of any output element.")] = (
        None
    )
    speedup: Annotated[SpeedupStatus | None, Field(description="Times faster than the baseline.")] = None
    executed: Annotated[Executed | None, Field(description="Precision in which its nodes really ran.")] = None
    measurements: Annotated[
        tuple[Measurement, ...], Field(max_length=8, description="Times, a row per batch size.")
    ] = ()


class BaselineStatus(ApiModel):
    """The untouched source on a target."""

    target: Annotated[str, Field(max_length=63, description="Target.")]
    runtime: Annotated[RuntimeName, Field(description="Runtime it was timed in.")]
    bytes: Annotated[int, Field(description="Bytes of its files.")]
    accuracy: Annotated[MetricValue | None, Field(description="Its metric.")] = None
    constant: Annotated[
        MetricValue | None,
        Field(description="The same metric of the best constant answer: what knowing nothing of an item is worth."),
    ] = None
    samples: Annotated[int | None, Field(description="Items it was judged on.")] = None
    labels: Annotated[str | None, Field(max_length=512, description="How the labels were read.")] = None
    answers: Annotated[
        str | None,
        Field(max_length=512, description="What its answers were taken for, where a task's metric judges them."),
    ] = None
    measurements: Annotated[
        tuple[Measurement, ...], Field(max_length=8, description="Times, a row per batch size.")
    ] = ()

    def p50(self, batch_size: int) -> float | None:
        """Milliseconds of the median run at a batch size, if that was measured."""
        found = (one.latency_milliseconds.p50 for one in self.measurements if one.batch_size == batch_size)
        return next(found, None)

    @property
    def worth(self) -> str:
        """What the original itself is worth on the items: 'Accuracy 0.963 on 600 items (the best constant answer 0.12); labels: …'."""
        return worth(self.accuracy, self.constant, self.samples, self.labels, self.answers)


def worth(
    accuracy: MetricValue | None,
    constant: MetricValue | None,
    samples: int | None,
    labels: str | None,
    answers: str | None = None,
) -> str:
    """What a model is worth on its items, for a person."""
    if accuracy is None:
        return "not judged"
    taken = f"; its answers were taken for {answers}" if answers else ""
    if accuracy.metric == Metric.AGREEMENT or labels is None:
        compared = f"its answers by {accuracy.metric}" if answers else "its answers"
        return f"{samples} items without labels, compared with {compared}{taken}"
    beside = f" (the best constant answer {constant.value:.4g})" if constant is not None else ""
    read = f"; labels: {labels}" if labels else ""
    return f"{accuracy.metric} {accuracy.value:.4g} on {samples} items{beside}{read}{taken}"


class Placement(ApiModel):
    """Where the artifact was measured, hence where it should serve."""

    node_selector: Annotated[dict[str, str], Field(max_length=32, description="Labels of the nodes.")] = {}
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32, description="Taints to tolerate.")] = ()
    runtime_class_name: Annotated[str | None, Field(max_length=253, description="RuntimeClass.")] = None


class ArtifactStatus(ApiModel):
    """What was published for a target. Numbers are points; the intervals stand at the candidate."""

    target: Annotated[str, Field(max_length=63, description="Target.")]
    candidate: Annotated[str, Field(max_length=128, description="Candidate it came from.")]
    runtime: Annotated[RuntimeName, Field(description="Runtime that serves it.")]
    uri: Annotated[str, Field(max_length=1024, description="Where it lies.")]
    sha256: Annotated[Sha256, Field(description="Digest of its manifest.")]
    bytes: Annotated[int, Field(description="Bytes of its files.")]
    threads: Annotated[int, Field(description="Threads that compute at once, as it was measured.")] = 1
    speedup: Annotated[float | None, Field(description="Times faster than the baseline.")] = None
    accuracy_drop: Annotated[float | None, Field(description="Loss against the baseline.")] = None
    placement: Annotated[Placement, Field(description="Where it was measured.")] = Placement()
    generation: Annotated[int | None, Field(description="Generation of the spec whose run published it first.")] = None
    incumbent: Annotated[
        Sha256 | None, Field(description="Digest of what was published before that run, and measured beside it.")
    ] = None


class ReportStatus(ApiModel):
    """The report for people."""

    uri: Annotated[str, Field(max_length=1024, description="One self-contained HTML file.")]


class Summary(ApiModel):
    """What is published, in words; one word per target, in the order of `targets`."""

    targets: Annotated[str, Field(description="Targets that have an artifact.")]
    speedup: Annotated[str, Field(description="Times faster than the baseline.")]
    drop: Annotated[str, Field(description="Loss against the baseline, in the metric's unit.")]
    size: Annotated[str, Field(description="Bytes of the artifact.")]


def _word(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


class OptimizedModelStatus(ApiModel):
    """What came of it."""

    observed_generation: Annotated[int | None, Field(description="Generation of the spec this status speaks of.")] = (
        None
    )
    started_at: Annotated[
        str | None,
        Field(max_length=32, description="When this run began (RFC 3339, UTC); its deadline counts from here."),
    ] = None
    retries: Annotated[
        int | None,
        Field(
            description="How often what failed was tried again, by order or with a changed spec; attempts are numbered on from there."
        ),
    ] = None
    last_handled_retry: Annotated[
        str | None,
        Field(max_length=256, description="The newest value of the annotation fettle.dev/retry that was handled."),
    ] = None
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=8,
            description="Ready, SourceResolved, Converted, Measured.",
            json_schema_extra={"x-map-keys": ["type"]},
        ),
    ] = ()
    constraints: Annotated[Constraints | None, Field(description="Constraints in force.")] = None
    source: Annotated[SourceStatus | None, Field(description="The model as it was found.")] = None
    baselines: Annotated[
        tuple[BaselineStatus, ...],
        Field(max_length=8, description="The original, measured.", json_schema_extra={"x-map-keys": ["target"]}),
    ] = ()
    candidates: Annotated[
        tuple[CandidateStatus, ...], Field(max_length=128, description="What was tried, a row each.")
    ] = ()
    artifacts: Annotated[
        tuple[ArtifactStatus, ...],
        Field(
            max_length=8, description="What is published, one per target.", json_schema_extra={"x-map-keys": ["target"]}
        ),
    ] = ()
    report: Annotated[ReportStatus | None, Field(description="The report for people.")] = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def summary(self) -> Summary | None:
        """What is published, in the words of `kubectl get`; absent while nothing is."""
        if not self.artifacts:
            return None
        return Summary(
            targets=",".join(artifact.target for artifact in self.artifacts),
            speedup=",".join(_word(artifact.speedup, "{:.2f}x") for artifact in self.artifacts),
            drop=",".join(_word(artifact.accuracy_drop, "{:.4g}") for artifact in self.artifacts),
            size=",".join(_word(artifact.bytes / 1e6, "{:.2f}MB") for artifact in self.artifacts),
        )
