"""The kind OptimizedModel: what to optimize, what may be lost, where it will serve; and what came of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, computed_field

from fettle.api.base import ApiModel, PrinterColumn, Rule, rules
from fettle.api.conditions import Condition
from fettle.api.signature import Tensor

Uri = Annotated[str, Field(min_length=1, max_length=1024)]
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# As the API server writes it for a Pod; an int is a quantity too.
Quantity = Annotated[
    int | str,
    Field(json_schema_extra={"pattern": r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"}),
]


class SourceFormat(StrEnum):
    """Format of the source model."""

    AUTO = "Auto"
    ONNX = "ONNX"


class Metric(StrEnum):
    """How good an output is. Higher is better, except MeanSquaredError."""

    ACCURACY = "Accuracy"
    F1 = "F1"
    MEAN_SQUARED_ERROR = "MeanSquaredError"
    COSINE_SIMILARITY = "CosineSimilarity"
    AGREEMENT = "Agreement"


class Average(StrEnum):
    """How F1 is averaged over classes."""

    MACRO = "Macro"
    MICRO = "Micro"
    BINARY = "Binary"


class AgreementMode(StrEnum):
    """When two answers to one item count as the same."""

    AUTO = "Auto"
    TOP_ONE = "TopOne"
    EXACT = "Exact"
    COSINE = "Cosine"
    ELEMENTWISE = "Elementwise"


class RuntimeName(StrEnum):
    """What runs an artifact."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


class Precision(StrEnum):
    """Precision in which a runtime computes what is not quantized: a setting, not a step."""

    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"


class QuantizeMode(StrEnum):
    """Dynamic: weights int8, activations measured at run time. Static: both int8, ranges from calibration data."""

    DYNAMIC = "Dynamic"
    STATIC = "Static"


class QuantizePreset(StrEnum):
    """Which layers and ranges the quantizer treats specially."""

    DEFAULT = "Default"
    TRANSFORMER = "Transformer"


class Objective(StrEnum):
    """What to prefer among the candidates that pass every constraint."""

    LATENCY = "Latency"
    SIZE = "Size"


@rules(Rule("self.min <= self.max", "range.min must not be above range.max"))
class ValueRange(ApiModel):
    """Bounds of the values an input takes."""

    min: Annotated[float, Field(description="Smallest value.")]
    max: Annotated[float, Field(description="Largest value.")]


class InputSpec(ApiModel):
    """What the format does not tell about one input."""

    name: Annotated[str, Field(max_length=253, description="Name of the input in the model.")]
    dtype: Annotated[str | None, Field(max_length=8, description="V2 data type, such as FP32 or INT64.")] = None
    shape: Annotated[
        tuple[int | str, ...] | None,
        Field(
            max_length=16,
            description="Size of each dimension; N is the dynamic batch, another word a dimension that varies.",
        ),
    ] = None
    value: Annotated[
        float | None,
        Field(description="Freezes the input at this value; it is then no input of the artifact any more."),
    ] = None
    range: Annotated[ValueRange | None, Field(description="Bounds of generated values, where no data is given.")] = None


@rules(
    Rule(
        "self.uri.matches('^pvc://[a-z0-9][a-z0-9.-]*(/.*)?$')",
        "source.uri must be pvc://CLAIM/PATH, a file or folder in a claim of this namespace; file:// works in `fettle optimize` only",
    )
)
class SourceSpec(ApiModel):
    """The trained model."""

    uri: Annotated[
        Uri,
        Field(
            description="pvc://CLAIM/PATH in this namespace; file://PATH in `fettle optimize`. "
            "A file, or a folder with external data."
        ),
    ]
    format: Annotated[SourceFormat, Field(description="Auto recognises it by content.")] = SourceFormat.AUTO
    sha256: Annotated[
        Sha256 | None,
        Field(
            description="Pin: digest of the file, or of the canonical list (path, sha256) of a folder. "
            "A mismatch ends the run."
        ),
    ] = None
    inputs: Annotated[
        tuple[InputSpec, ...],
        Field(
            max_length=64,
            description="Only where the format does not tell.",
            json_schema_extra={"x-map-keys": ["name"]},
        ),
    ] = ()


@rules(
    Rule(
        "self.uri.matches('^pvc://[a-z0-9][a-z0-9.-]*(/.*)?$')",
        "data.calibration.uri must be pvc://CLAIM/PATH, a file or folder in a claim of this namespace; file:// works in `fettle optimize` only",
    )
)
class CalibrationSpec(ApiModel):
    """Items from which static quantization learns its ranges; they never certify."""

    uri: Annotated[Uri, Field(description="An .npz file: one array per input under its name, first axis = items.")]
    max_samples: Annotated[int, Field(ge=1, le=100_000, description="Use at most this many items.")] = 256


class AgreementSpec(ApiModel):
    """When a candidate's answer counts as the same as the original's."""

    mode: Annotated[
        AgreementMode,
        Field(
            description="Auto: ints, bools and strings Exact; classifiers TopOne; "
            "else Elementwise within 1 % of the output's range."
        ),
    ] = AgreementMode.AUTO
    axis: Annotated[
        int, Field(ge=-16, le=16, description="Axis of the classes (TopOne) or of the vector (Cosine).")
    ] = -1
    min_cosine: Annotated[float, Field(ge=-1, le=1, description="Cosine: smallest similarity that agrees.")] = 0.99
    rtol: Annotated[float | None, Field(ge=0, description="Elementwise: relative tolerance.")] = None
    atol: Annotated[float | None, Field(ge=0, description="Elementwise: absolute tolerance.")] = None
    outputs: Annotated[
        tuple[Annotated[str, Field(max_length=253)], ...],
        Field(
            max_length=64, description="Outputs that are compared; all when empty.", json_schema_extra={"x-set": True}
        ),
    ] = ()


@rules(
    Rule(
        "self.uri.matches('^pvc://[a-z0-9][a-z0-9.-]*(/.*)?$')",
        "data.evaluation.uri must be pvc://CLAIM/PATH, a file or folder in a claim of this namespace; file:// works in `fettle optimize` only",
    )
)
class EvaluationSpec(ApiModel):
    """Items that decide what may be published."""

    uri: Annotated[
        Uri,
        Field(
            description="An .npz file: one array per input under its name, first axis = items, labels under labelKey."
        ),
    ]
    max_samples: Annotated[int | None, Field(ge=1, description="Use at most this many items.")] = None
    label_key: Annotated[str, Field(min_length=1, max_length=253, description="Array that holds the labels.")] = (
        "labels"
    )
    output: Annotated[
        str | None, Field(max_length=253, description="Output that the metric looks at; the first when absent.")
    ] = None
    average: Annotated[Average, Field(description="How F1 is averaged over classes.")] = Average.MACRO
    metric: Annotated[Metric, Field(description="Without labels it is always Agreement with the original.")] = (
        Metric.ACCURACY
    )
    agreement: Annotated[AgreementSpec, Field(description="When two answers count as the same.")] = AgreementSpec()


class DataSpec(ApiModel):
    """Data to calibrate with and to judge by."""

    calibration: Annotated[
        CalibrationSpec | None, Field(description="Absent: split off from evaluation, and then not used to certify.")
    ] = None
    evaluation: Annotated[EvaluationSpec | None, Field(description="Absent: only exact candidates are chosen.")] = None


class ResourceSpec(ApiModel):
    """Requests and limits of a container, as Kubernetes writes them."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16, description="What the scheduler reserves.")] = {}
    limits: Annotated[dict[str, Quantity], Field(max_length=16, description="What the kubelet enforces.")] = {}


class Toleration(ApiModel):
    """A taint that pods of this target tolerate."""

    key: Annotated[
        str | None, Field(max_length=317, description="Taint key; absent with operator Exists: every taint.")
    ] = None
    operator: Annotated[str | None, Field(pattern="^(Exists|Equal)$", description="Exists or Equal.")] = None
    value: Annotated[str | None, Field(max_length=63, description="Taint value.")] = None
    effect: Annotated[str | None, Field(max_length=32, description="NoSchedule, PreferNoSchedule or NoExecute.")] = None
    toleration_seconds: Annotated[int | None, Field(description="How long NoExecute is tolerated.")] = None


@rules(
    Rule(
        "!has(self.resources) || !has(self.resources.limits) || !('cpu' in self.resources.limits) || "
        "(type(self.resources.limits['cpu']) == int "
        "? self.resources.limits['cpu'] >= (has(self.threads) ? self.threads : 1) "
        ": !isQuantity(self.resources.limits['cpu']) || quantity(self.resources.limits['cpu']).asApproximateFloat() "
        ">= double(has(self.threads) ? self.threads : 1))",
        "resources.limits.cpu must be at least threads: fewer cores than threads would measure throttling, "
        "not the model",
    ),
)
class TargetSpec(ApiModel):
    """A place where the artifact will serve. Measuring happens there; one winner per target."""

    name: Annotated[Name, Field(description="Name of the target; ModelDeployments refer to it.")]
    runtimes: Annotated[
        tuple[RuntimeName, ...],
        Field(min_length=1, max_length=8, description="Runtimes that may serve, in order of preference."),
    ] = (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO)
    threads: Annotated[int, Field(ge=1, le=256, description="Most threads one inference may use.")] = 1
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...],
        Field(
            min_length=1,
            max_length=8,
            description="Batch sizes to measure; constraints and objective speak of the first.",
        ),
    ] = (1,)
    node_selector: Annotated[
        dict[str, str], Field(max_length=32, description="Labels of the nodes of this target.")
    ] = {}
    tolerations: Annotated[
        tuple[Toleration, ...], Field(max_length=32, description="Taints that pods of this target tolerate.")
    ] = ()
    runtime_class_name: Annotated[
        str | None, Field(max_length=253, description="RuntimeClass of measuring and serving pods.")
    ] = None
    resources: Annotated[ResourceSpec, Field(description="Resources of the measuring Job.")] = ResourceSpec()


class OptimizeGraphStep(ApiModel):
    """Fuse and fold the graph; outputs stay equal."""


class QuantizeStep(ApiModel):
    """Store weights, and in static mode compute activations, in int8."""

    mode: Annotated[QuantizeMode, Field(description="Static needs calibration items.")] = QuantizeMode.STATIC
    preset: Annotated[QuantizePreset, Field(description="Transformer treats attention and LayerNorm specially.")] = (
        QuantizePreset.DEFAULT
    )
    operators: Annotated[
        tuple[Annotated[str, Field(max_length=64)], ...],
        Field(
            max_length=32,
            description="Operator types to quantize; the runtime's defaults when empty.",
            json_schema_extra={"x-set": True},
        ),
    ] = ()


@rules(
    Rule(
        "[has(self.optimizeGraph), has(self.quantize)].filter(s, s).size() == 1",
        "a step has exactly one key: optimizeGraph or quantize",
    )
)
class RecipeStep(ApiModel):
    """One transformation of the model: exactly one key."""

    optimize_graph: Annotated[OptimizeGraphStep | None, Field(description="Fuse and fold; exact.")] = None
    quantize: Annotated[QuantizeStep | None, Field(description="int8; lossy, so it must be proved.")] = None


class RecipeSpec(ApiModel):
    """A named chain of steps; with a runtime and settings it becomes a candidate."""

    name: Annotated[Name, Field(description="Name of the recipe; part of its candidates' names.")]
    steps: Annotated[tuple[RecipeStep, ...], Field(max_length=8, description="Applied in order.")] = ()
    precision: Annotated[Precision, Field(description="Runtime setting for what is not quantized.")] = Precision.FLOAT32


class AccuracyConstraint(ApiModel):
    """Bound on what may be lost."""

    max_drop: Annotated[
        float,
        Field(
            ge=0,
            description="Largest loss, in the metric's unit; without labels 1 - agreement. "
            "The interval's bad end must keep it.",
        ),
    ]


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
        float, Field(gt=0, description="Times faster than the baseline. The interval's bad end must keep it.")
    ]


class Constraints(ApiModel):
    """What a published artifact must keep. ALL of it holds, or nothing is published."""

    accuracy: Annotated[AccuracyConstraint | None, Field(description="Loss against the original.")] = None
    latency: Annotated[LatencyConstraint | None, Field(description="Time of one run.")] = None
    size: Annotated[SizeConstraint | None, Field(description="Size of the artifact.")] = None
    speedup: Annotated[SpeedupConstraint | None, Field(description="Gain over the original.")] = None


class SearchSpec(ApiModel):
    """How much work a run may do."""

    parallelism: Annotated[int, Field(ge=1, le=32, description="Build Jobs at once.")] = 2
    max_candidates: Annotated[int, Field(ge=1, le=64, description="Candidates planned at most, cheapest first.")] = 16
    deadline_seconds: Annotated[int, Field(ge=60, le=604_800, description="Seconds for the whole run.")] = 3600


class LocalReference(ApiModel):
    """Name of an object in this namespace."""

    name: Annotated[str, Field(max_length=253, description="Name of the Secret.")]


class EnvVar(ApiModel):
    """A plain environment variable."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the variable.")]
    value: Annotated[str, Field(max_length=32_768, description="Its value.")] = ""


class JobsSpec(ApiModel):
    """What every Job of this run gets besides its work."""

    service_account_name: Annotated[
        str | None, Field(max_length=253, description="ServiceAccount of the pods; no token is mounted.")
    ] = None
    image_pull_secrets: Annotated[
        tuple[LocalReference, ...],
        Field(max_length=8, description="Secrets to pull images with.", json_schema_extra={"x-map-keys": ["name"]}),
    ] = ()
    labels: Annotated[dict[str, str], Field(max_length=32, description="Labels of the pods.")] = {}
    annotations: Annotated[dict[str, str], Field(max_length=32, description="Annotations of the pods.")] = {}
    priority_class_name: Annotated[str | None, Field(max_length=253, description="PriorityClass of the pods.")] = None
    env: Annotated[
        tuple[EnvVar, ...],
        Field(max_length=64, description="Environment of the container.", json_schema_extra={"x-map-keys": ["name"]}),
    ] = ()
    resources: Annotated[ResourceSpec, Field(description="Resources of Jobs that do not measure.")] = ResourceSpec()


@rules(
    Rule(
        "self.uri.matches('^pvc://[a-z0-9][a-z0-9.-]*(/.*)?$')",
        "store.uri must be pvc://CLAIM or pvc://CLAIM/PATH, a claim of this namespace",
    )
)
class StoreSpec(ApiModel):
    """Where artifacts go."""

    uri: Annotated[Uri, Field(description="pvc://CLAIM/PATH; a folder in `fettle optimize`.")]


@rules(
    Rule(
        "!has(self.recipes) || self.recipes.all(r, !has(r.steps) || r.steps.all(s, !has(s.quantize) || "
        "(has(s.quantize.mode) && s.quantize.mode == 'Dynamic') || "
        "(has(self.data) && (has(self.data.calibration) || has(self.data.evaluation)))))",
        "static quantization needs data.calibration or data.evaluation",
    ),
)
class OptimizedModelSpec(ApiModel):
    """A model, what it may lose, and where it will serve."""

    source: Annotated[SourceSpec, Field(description="The trained model.")]
    data: Annotated[DataSpec, Field(description="Data to calibrate with and to judge by.")] = DataSpec()
    targets: Annotated[
        tuple[TargetSpec, ...],
        Field(
            min_length=1,
            max_length=8,
            description="Where it will serve; one winner per target.",
            json_schema_extra={"x-map-keys": ["name"]},
        ),
    ]
    recipes: Annotated[
        tuple[RecipeSpec, ...],
        Field(
            max_length=32,
            description="What to try; none = the default plan.",
            json_schema_extra={"x-map-keys": ["name"]},
        ),
    ] = ()
    constraints: Annotated[Constraints, Field(description="ALL must hold.")] = Constraints()
    objective: Annotated[Objective, Field(description="What to prefer among those that pass.")] = Objective.LATENCY
    search: Annotated[SearchSpec, Field(description="How much work a run may do.")] = SearchSpec()
    jobs: Annotated[JobsSpec, Field(description="What every Job gets.")] = JobsSpec()
    store: Annotated[StoreSpec | None, Field(description="Default: the operator's store, pvc://fettle-store.")] = None


# --------------------------------------------------------------------------------------------------------------- status


class CandidateState(StrEnum):
    """Where a candidate stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    MEASURED = "Measured"
    FAILED = "Failed"
    REJECTED = "Rejected"
    SELECTED = "Selected"


class Evidence(StrEnum):
    """What a claim about accuracy rests on."""

    LABELS = "Labels"
    AGREEMENT = "Agreement"
    GENERATED = "Generated"


class Basis(StrEnum):
    """What was timed as the baseline."""

    SOURCE_RUNTIME = "SourceRuntime"
    PORTABLE_FORM = "PortableForm"


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
    """Times faster than the baseline, paired in the same rounds."""

    basis: Annotated[Basis, Field(description="What was timed as the baseline.")]


class AgreementStatus(Interval):
    """Share of items on which candidate and original agree."""

    mode: Annotated[AgreementMode, Field(description="How answers were compared.")]


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
    items_per_second: Annotated[float, Field(description="Batch size over the median time.")]
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


class RuntimeSettings(ApiModel):
    """Settings of a runtime, pinned in the manifest and read back after loading. Absent = the runtime's own default."""

    threads: Annotated[int, Field(description="Threads of one inference.")] = 1
    streams: Annotated[int, Field(description="Inferences at once.")] = 1
    precision: Annotated[Precision, Field(description="Precision of what is not quantized.")] = Precision.FLOAT32
    graph_optimization: Annotated[
        bool,
        Field(
            description="Whether the runtime may rewrite the graph (onnxruntime: level all; off: its default level)."
        ),
    ] = True
    batch_size: Annotated[int | None, Field(description="Static batch size; absent: dynamic.")] = None


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
    measurements: Annotated[
        tuple[Measurement, ...], Field(max_length=8, description="Times, a row per batch size.")
    ] = ()


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
    threads: Annotated[int, Field(description="Threads it was measured with.")] = 1
    speedup: Annotated[float | None, Field(description="Times faster than the baseline.")] = None
    accuracy_drop: Annotated[float | None, Field(description="Loss against the baseline.")] = None
    placement: Annotated[Placement, Field(description="Where it was measured.")] = Placement()


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


COLUMNS = (
    PrinterColumn("Ready", ".status.conditions[?(@.type=='Ready')].status"),
    PrinterColumn("Targets", ".status.summary.targets"),
    PrinterColumn("Speedup", ".status.summary.speedup"),
    PrinterColumn("Drop", ".status.summary.drop"),
    PrinterColumn("Size", ".status.summary.size"),
    PrinterColumn("Reason", ".status.conditions[?(@.type=='Ready')].reason"),
    PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
)


class OptimizedModel(ApiModel):
    """A trained model that is converted, optimized and measured; the best artifact that keeps every constraint is published."""

    metadata: dict[str, Any]
    spec: OptimizedModelSpec
    status: OptimizedModelStatus = OptimizedModelStatus()
