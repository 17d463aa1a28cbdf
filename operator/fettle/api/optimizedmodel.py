"""The kind OptimizedModel: what to optimize, what may be lost, and where it will serve."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from fettle.api import catalog
from fettle.api.base import ApiModel, PrinterColumn, Rule, rules
from fettle.api.constraints import Constraints
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.pods import EnvVar, LocalReference, ResourceSpec, Toleration
from fettle.api.recipe import RecipeSpec
from fettle.api.vocabulary import (
    AgreementMode,
    Average,
    Color,
    Layout,
    Metric,
    Name,
    Objective,
    RuntimeName,
    SeveralLabels,
    Sha256,
    SourceFormat,
    Uri,
)


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


class PreprocessSpec(ApiModel):
    """How the pictures of an image folder become items: scaled to width x height, then (pixel / 255 - mean) / std."""

    width: Annotated[int | None, Field(ge=1, le=8192, description="Pixels. Default: what the model's input says.")] = (
        None
    )
    height: Annotated[int | None, Field(ge=1, le=8192, description="Pixels. Default: what the model's input says.")] = (
        None
    )
    crop: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="The shorter side becomes width (height) / crop, the middle is cut out: 0.875 = 224 of 256. "
            "Without it a picture is stretched.",
        ),
    ] = None
    mean: Annotated[
        tuple[float, ...],
        Field(max_length=3, description="One number, or one for each channel, on a scale of 0 to 1. Default: 0."),
    ] = ()
    std: Annotated[
        tuple[float, ...],
        Field(max_length=3, description="One number, or one for each channel, on a scale of 0 to 1. Default: 1."),
    ] = ()
    layout: Annotated[Layout, Field(description="Order of the input's dimensions.")] = Layout.CHANNELS_FIRST
    color: Annotated[Color, Field(description="Channels of the input, in their order.")] = Color.RGB


@rules(
    Rule(
        "self.uri.matches('^pvc://[a-z0-9][a-z0-9.-]*(/.*)?$')",
        "data.calibration.uri must be pvc://CLAIM/PATH, a file or folder in a claim of this namespace; file:// works in `fettle optimize` only",
    )
)
class CalibrationSpec(ApiModel):
    """Items from which static quantization learns its ranges; they never certify."""

    uri: Annotated[
        Uri,
        Field(
            description="An .npz, .parquet or .jsonl file: one column per input under its name, a row per item; "
            "or a folder of pictures, a sub-folder per class."
        ),
    ]
    max_samples: Annotated[int, Field(ge=1, le=100_000, description="Use at most this many items.")] = 256
    preprocess: Annotated[
        PreprocessSpec | None, Field(description="For a folder of pictures: how they become items.")
    ] = None


class AgreementSpec(ApiModel):
    """When a candidate's answer counts as the same as the original's."""

    mode: Annotated[
        AgreementMode,
        Field(
            description="Auto: ints, bools and strings Exact; classifiers TopOne; "
            "else Elementwise within 1 % of the output's range, or of each channel's where channels differ in scale."
        ),
    ] = AgreementMode.AUTO
    axis: Annotated[
        int, Field(ge=-16, le=16, description="Axis of the classes (TopOne) or of the vector (Cosine).")
    ] = -1
    min_cosine: Annotated[float, Field(ge=-1, le=1, description="Cosine: smallest similarity that agrees.")] = 0.99
    rtol: Annotated[float | None, Field(ge=0, description="Elementwise: relative tolerance, of whole outputs.")] = None
    atol: Annotated[float | None, Field(ge=0, description="Elementwise: absolute tolerance, of whole outputs.")] = None
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
            description="An .npz, .parquet or .jsonl file: one column per input under its name, labels under labelKey, a row per item; "
            "or a folder of pictures, a sub-folder per class."
        ),
    ]
    max_samples: Annotated[int | None, Field(ge=1, description="Use at most this many items.")] = None
    preprocess: Annotated[
        PreprocessSpec | None, Field(description="For a folder of pictures: how they become items.")
    ] = None
    label_key: Annotated[str, Field(min_length=1, max_length=253, description="Array that holds the labels.")] = (
        "labels"
    )
    classes: Annotated[
        tuple[Annotated[str, Field(max_length=253)], ...],
        Field(
            max_length=10_000,
            description="Names of the classes in the order of the model's scores, where labels are names.",
        ),
    ] = ()
    label_offset: Annotated[
        int,
        Field(ge=-1_000_000, le=1_000_000, description="The label of the first class: 1 where labels count from 1."),
    ] = 0
    ignore_label: Annotated[
        int | None,
        Field(description="Label of what does not count, such as padding or a border. -100 never counts as a class."),
    ] = None
    several_labels: Annotated[
        SeveralLabels | None,
        Field(
            description="Where a label names several classes. AnyOf: each of them is right; AllOf: exactly these must be found."
        ),
    ] = None
    output: Annotated[
        str | None, Field(max_length=253, description="Output that the metric looks at; the first when absent.")
    ] = None
    average: Annotated[Average, Field(description="How F1 is averaged over classes.")] = Average.MACRO
    metric: Annotated[
        Metric, Field(description="Without labels Accuracy is Agreement with the original; the others need labels.")
    ] = Metric.ACCURACY
    agreement: Annotated[AgreementSpec, Field(description="When two answers count as the same.")] = AgreementSpec()


class GeneratedSpec(ApiModel):
    """Items made up where none are given: they show that two models answer alike, not how well they answer."""

    samples: Annotated[
        int | None, Field(ge=1, le=100_000, description="Items to make; 64 when absent, fewer for a slow model.")
    ] = None
    allow_lossy: Annotated[
        bool, Field(description="Whether a candidate whose answers may differ can be published on their evidence.")
    ] = False


@rules(
    Rule(
        "!has(self.generated) || !has(self.evaluation)",
        "data.generated stands in for data.evaluation: give one of them",
    )
)
class DataSpec(ApiModel):
    """Data to calibrate with and to judge by."""

    calibration: Annotated[
        CalibrationSpec | None, Field(description="Absent: split off from evaluation, and then not used to certify.")
    ] = None
    evaluation: Annotated[EvaluationSpec | None, Field(description="Absent: only exact candidates are chosen.")] = None
    generated: Annotated[
        GeneratedSpec | None, Field(description="Items to generate where there is no evaluation data.")
    ] = None


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
        Field(min_length=1, max_length=8, description="Runtimes that may serve."),
    ] = catalog.DEFAULT_RUNTIMES
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


class SearchSpec(ApiModel):
    """How much work a run may do."""

    parallelism: Annotated[int, Field(ge=1, le=32, description="Build Jobs at once.")] = 2
    max_candidates: Annotated[int, Field(ge=1, le=64, description="Candidates planned at most, cheapest first.")] = 16
    deadline_seconds: Annotated[int, Field(ge=60, le=604_800, description="Seconds for the whole run.")] = 3600


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
        "(has(self.data) && (has(self.data.calibration) || has(self.data.evaluation) || "
        "(has(self.data.generated) && has(self.data.generated.allowLossy) && self.data.generated.allowLossy)))))",
        "static quantization needs data.calibration, data.evaluation or data.generated.allowLossy",
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
