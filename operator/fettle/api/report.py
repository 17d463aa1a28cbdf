"""The results of Jobs: a report as the last line of the log, and a termination message with the report's digest."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from fettle.api.base import ApiModel
from fettle.api.labels import LabelReading
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus, SourceStatus
from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.api.task import SCHEMA_VERSION, StoredData, StoredModel, StoredTokenizer
from fettle.api.vocabulary import Basis, Metric, RuntimeName

FRAME = "FETTLE-RESULT "
_LINE_END = re.compile(r"[\r\n]")  # str.splitlines() would cut at U+2028 and its like too, which JSON has as they are


class Traits(ApiModel):
    """What the default plan needs to know about a model."""

    opset: int
    quantized: bool = False
    recurrent: bool = False
    transformer: bool = False  # attention or LayerNorm was found
    convolutions: int = 0
    matmul_time_share: float = 0.0  # share of MatMul/Gemm in the profiled time of the portable form
    lstm_time_share: float = 0.0  # likewise of LSTM; 0 where none of these layers has an input with bounds
    p50_milliseconds: float = 0.0  # of the portable form in onnxruntime, one thread, one item; a rough clock


class BuildEntry(ApiModel):
    """A segment of a build that the plan may need: its cache key, and its files if the store has them."""

    name: str
    cache_key: str
    built: StoredModel | None = None


class ConversionFault(ApiModel):
    """Why a source that can be run has no portable form."""

    reason: Reason
    message: str


class PrepareReport(ApiModel):
    """The result of prepare. `items` are the evaluation items, or generated items if `generated`."""

    kind: Literal["prepare"] = "prepare"
    schema_version: int = SCHEMA_VERSION
    source: SourceStatus
    original: StoredModel
    portable: StoredModel
    # None where it was converted; else `portable` is the source as it came, which only its own runtime loads.
    conversion_fault: ConversionFault | None = None
    # The source as its own framework saves it, where a build of the plan starts from that.
    native: StoredModel | None = None
    # A program of torch.export that trainings start from, where the source is another form of PyTorch's and a build of the plan trains.
    program: StoredModel | None = None
    # Which of these two were asked for: one that is missing nevertheless cannot be made, and is not tried again.
    tried: tuple[Literal["native", "program"], ...] = ()
    portable_runtimes: tuple[RuntimeName, ...]  # which could load the portable form, or what is made of `native`
    signature: Signature
    traits: Traits
    calibration: StoredData | None = None
    training: StoredData | None = None
    screening: StoredData | None = None  # at most 32 of the calibration items, with labels where there are any
    items: StoredData
    tokenizer: StoredTokenizer | None = None  # that made `items` of texts, where it can be served
    labels: LabelReading | None = None  # of `items` and `screening`; None where they have none
    # The metric that judges the items: what was asked for, or what Auto recognized; None where nothing was asked.
    metric: Metric | None = None
    # How many of `items` at most have something to find by that metric, where it is a task's; None: all of them count.
    informative: int | None = None
    custom_code: str | None = None  # what spec.data.evaluation.custom.uri held
    loss_code: dict[str, str] = {}  # what each train.custom.uri held, by address
    generated: bool = False
    # PortableForm: the source as it came cannot be timed (`notes` say why); `original` is then the portable form.
    basis: Basis = Basis.SOURCE_RUNTIME
    # Digest of what prepared it (revision, library versions): an answer of another one is not reused.
    preparation: str = ""
    builds: tuple[BuildEntry, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def teacher(self) -> StoredModel | None:
        """What PyTorch trains: the source itself or its program; None if the portable form must be taken back to PyTorch."""
        return self.original if self.original.format == "TorchExport" else self.program


class TrainingEpoch(ApiModel):
    """An epoch: the mean loss on the training items, and the loss and the score on the validation set.

    The score is the share of right answers, or the share of the variance that the answers explain, of which 1 is best; for a loss of the user's own
    it is the loss, negated.
    """

    epoch: int  # 0: before any training
    loss: float | None = None
    held_out_loss: float
    score: float
    learning_rate: float | None = None  # at its start


class TrainingFigures(ApiModel):
    """The course of a training. `best` is the epoch whose weights are used; `ended` says why the training ended."""

    items: int
    held_out: int
    epochs: int
    best: int
    score: float
    original_score: float
    judged: str  # what the score is, for a person
    loss: str = ""  # on the labels; empty where training follows the original's answers only
    parameters_before: int
    parameters_after: int
    seconds: float
    ended: str
    curve: tuple[TrainingEpoch, ...] = ()


class LayerError(ApiModel):
    """How far a group of layers moves the answers if it alone is in int8, or in bfloat16. A group is a product, such as a convolution, and the
    layers behind it."""

    name: str  # of its first layer
    layers: int
    error: float  # root mean square of the differences, in tolerances of the outputs
    kept: bool  # in floating point, or in float32, in what was built


class BuiltModel(StoredModel):
    """What a build wrote, and the errors of the layers that it ranked: runs that take it as it is show them too."""

    layers: tuple[LayerError, ...] = ()  # of mixed precision, the most sensitive first


class TrainedModel(StoredModel):
    """What a build trained, in the form that can be trained further, and how that went: runs that take it as it is show it too."""

    training: TrainingFigures | None = None


class BuildReport(ApiModel):
    """A build's files, or why its recipe does not apply (`built` is None then, and the run continues). `message`: the cause, or a description.

    `cache_key` is that of the machine that built, which differs from the requested key if its class of CPU is different.
    """

    kind: Literal["build"] = "build"
    schema_version: int = SCHEMA_VERSION
    name: str
    cache_key: str
    built: StoredModel | None = None
    reason: Reason | None = None
    message: str = ""
    seconds: float = 0.0
    libraries: dict[str, str] = {}
    training: TrainingFigures | None = None
    layers: tuple[LayerError, ...] = ()  # of mixed precision, where layers were ranked: the most sensitive first


class CpuClass(ApiModel):
    """A class of CPU: measured figures apply to nodes of the same class only."""

    vendor: str
    architecture: str = "x86_64"
    avx2: bool = False
    avx512: bool = False
    vnni: bool = False
    bf16: bool = False
    amx: bool = False
    gpu: str | None = None  # product and architecture, where a runtime uses one: 'NVIDIA L4 sm89'
    driver: str | None = None  # of that GPU, with the newest CUDA that it runs: '580.95.05 (CUDA 13.0)'

    @property
    def label(self) -> str:
        """The class as text: 'GenuineIntel x86_64 avx512+vnni+amx, NVIDIA L4 sm89, driver 580.95.05 (CUDA 13.0)'."""
        names = [name for name in ("avx2", "avx512", "vnni", "bf16", "amx") if getattr(self, name)]
        of_cpu = f"{self.vendor} {self.architecture} {'+'.join(names) or 'baseline'}"
        on_gpu = [self.gpu] if self.gpu is not None else []
        on_gpu += [f"driver {self.driver}"] if self.driver is not None else []
        return ", ".join((of_cpu, *on_gpu))


class Distribution(ApiModel):
    """The distribution of a candidate's run times, with the compared batch size.

    `milliseconds` are the quantiles at 0, 1, … 100 %: enough for a plot, and of constant size for any number of runs.
    """

    candidate: str  # "" = the baseline
    batch_size: int
    runs: int
    milliseconds: tuple[float, ...]


class MeasureReport(ApiModel):
    """The rows for the status. Only `choose` decides about Selected, NotPreferred and rejections because of a constraint.

    A row named `published` is the incumbent, if no candidate is the same. `libraries`: versions of the runtimes that were used.
    """

    kind: Literal["measure"] = "measure"
    schema_version: int = SCHEMA_VERSION
    measured_on: CpuClass
    libraries: dict[str, str] = {}
    baseline: BaselineStatus
    candidates: tuple[CandidateStatus, ...]
    distributions: tuple[Distribution, ...] = ()
    throttled: bool = False
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class PublishReport(ApiModel):
    """The address of the report, and the verified artifacts."""

    kind: Literal["publish"] = "publish"
    schema_version: int = SCHEMA_VERSION
    report_uri: str
    artifacts: dict[str, str] = {}  # target -> digest
    registry: dict[str, str] | None = None  # target -> address in the registry, by digest


Report = Annotated[PrepareReport | BuildReport | MeasureReport | PublishReport, Field(discriminator="kind")]
REPORT: TypeAdapter[PrepareReport | BuildReport | MeasureReport | PublishReport] = TypeAdapter(Report)


class Termination(ApiModel):
    """The termination message of a Job's container, at most 4,096 bytes."""

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["Succeeded", "Failed"]
    reason: Reason | None = None
    message: str = ""
    retryable: bool = False
    result_sha256: str | None = None


def frame(report: PrepareReport | BuildReport | MeasureReport | PublishReport) -> tuple[str, str]:
    """The log line with `report`, and its digest."""
    payload = report.canonical()
    return FRAME + payload.decode(), hashlib.sha256(payload).hexdigest()


def unframe(log: str, sha256: str) -> PrepareReport | BuildReport | MeasureReport | PublishReport | None:
    """The report in a log; None if it is not complete (the Job is run again then, and takes its result from the store)."""
    for line in reversed(_LINE_END.split(log)):
        if line.startswith(FRAME):
            payload = line.removeprefix(FRAME)
            if hashlib.sha256(payload.encode()).hexdigest() != sha256:
                continue
            try:
                return REPORT.validate_json(payload)
            except ValidationError:
                return None
    return None
