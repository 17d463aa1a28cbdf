"""What a Job is told: one task as JSON.

A task names content, never a place on a machine, so that its hash means the same everywhere.
"""

from __future__ import annotations

import base64
import zlib
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from fettle.api import catalog, images
from fettle.api.base import ApiModel
from fettle.api.constraints import Constraints
from fettle.api.data import DataSpec, EvaluationSpec
from fettle.api.labels import LabelReading
from fettle.api.optimizedmodel import SourceSpec
from fettle.api.recipe import RecipeStep, RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.training import TrainSpec
from fettle.api.vocabulary import (
    Architecture,
    Augmentation,
    Basis,
    CandidateState,
    ModelFormat,
    Objective,
    Precision,
    RuntimeName,
    Sha256,
)

SCHEMA_VERSION = 1
# Raised with every change in how labels are read, answers are compared or candidates are rejected: an answer that was found by other
# rules is another answer, and is asked for again. It stands in the tasks that judge, and in no manifest (docs/design/evidence.md).
JUDGING = 5
SECONDS_PER_CANDIDATE = 20.0  # of the clock; the operator's settings may say otherwise
PLAIN_LIMIT = 64 << 10  # bytes of JSON; above, it is compressed (the kernel takes 128 KiB for one variable)
COMPRESSED = "zlib:"


class StoredFile(ApiModel):
    """One file of a set. `path` is relative to the set; its content is `<store>/blobs/<sha256>`."""

    path: str
    sha256: str
    bytes: int


class StoredModel(ApiModel):
    """A model in the store: a file set, and the file a runtime opens."""

    format: ModelFormat
    entry: str
    files: tuple[StoredFile, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)


class StoredData(ApiModel):
    """Items in the store, split and checked: `<store>/blobs/<sha256>` is an .npz, an array per input (+ `labels`)."""

    sha256: str
    items: int
    labelled: bool = False
    bytes: int = 0  # of all arrays, unpacked


class LossBound(ApiModel):
    """What a step that chooses layers may lose: the share of answers that differ from the original's, and how answers are compared.

    It aims below `max_loss`, and is refused above `refused`: between them, labels or more items may still prove it.
    """

    max_loss: float
    refused: float
    evaluation: EvaluationSpec | None = None


class TrainingPlan(ApiModel):
    """How the steps of a build train, how answers are judged, which decides what they train for, and how training images are changed."""

    spec: TrainSpec
    evaluation: EvaluationSpec | None = None
    augment: tuple[Augmentation, ...] = ()  # sorted


class DeviceForm(ApiModel):
    """The form in which a build's file is run on a GPU: what is a setting elsewhere is the file's own there.

    `architecture` is that of an engine, which also has either one `batch_size`, or takes one item to the largest of `batch_sizes`.
    """

    precision: Precision = Precision.FLOAT32
    architecture: Architecture | None = None
    batch_size: int | None = None
    batch_sizes: tuple[int, ...] = (1,)

    @property
    def words(self) -> tuple[str, ...]:
        """What tells builds of one recipe for several devices apart: ('float16', 'sm89', 'batch8')."""
        if self.architecture is None:
            return (self.precision.lower(),)
        batch = f"batch{self.batch_size}" if self.batch_size is not None else f"batch1to{max(self.batch_sizes)}"
        return self.precision.lower(), self.architecture, batch


class BuildPlan(ApiModel):
    """A build: a recipe for a family of runtimes. It serves every candidate that differs only in settings.

    `loss` is there where a step chooses by what it loses, `training` where one trains, `form` where the last step makes a file for one kind
    of device.
    """

    name: str
    family: RuntimeName
    steps: tuple[RecipeStep, ...]
    loss: LossBound | None = None
    training: TrainingPlan | None = None
    form: DeviceForm | None = None

    @property
    def segments(self) -> tuple[BuildPlan, ...]:
        """The builds that carry it out, each on what the one before it made: itself, unless no image has what all of its steps need.

        One that trains is of PyTorch's family and for no device, so that all families have it in common. Empty where no image has what a
        step needs.
        """
        parts = images.segments(self.family, self.steps)
        if len(parts) == 1 and not self.trains:
            return (self,)
        trained = sum(any(map(catalog.trains, steps)) for steps in parts)
        return tuple(self._segment(steps, number, len(parts), trained) for number, steps in enumerate(parts, 1))

    @property
    def trains(self) -> bool:
        """Whether one of its steps does."""
        return any(catalog.trains(step) for step in self.steps)

    def _segment(self, steps: tuple[RecipeStep, ...], number: int, count: int, trained: int) -> BuildPlan:
        """Part `number` of `count`, of which `trained` train: their names must not tell what a family does with them."""
        if any(map(catalog.trains, steps)):
            count = trained
            made_for = "-".join(("", self.family, *(self.form.words if self.form is not None else ())))
            name = f"{self.name.removesuffix(made_for)}-{catalog.TRAINER}"
            update = {"family": catalog.TRAINER, "loss": None, "form": None}
        else:
            name, update = self.name, {"training": None}
        suffix = f"-{number}-of-{count}" if count > 1 else ""
        return self.model_copy(update={**update, "name": f"{name}{suffix}", "steps": steps})


class CandidatePlan(ApiModel):
    """A candidate: recipe x runtime x settings. `build` names its BuildPlan; None = the portable form itself."""

    name: str
    recipe: str
    runtime: RuntimeName
    settings: RuntimeSettings
    build: str | None = None
    untouched: bool = False  # the source as it came, not the portable form


class PrepareTask(ApiModel):
    """Fetch, verify, recognise, convert, split. `builds`: all that the plan may ask for; the answer says which exist."""

    kind: Literal["prepare"] = "prepare"
    schema_version: int = SCHEMA_VERSION
    judging: int = JUDGING
    store: str
    source: SourceSpec
    data: DataSpec
    builds: tuple[BuildPlan, ...]


class BuildTask(ApiModel):
    """Apply steps of a recipe to `portable`, in a fresh process: else its bytes would differ from run to run.

    `portable` is the portable form, or what the build with the key `follows` made: the segment of this recipe in front of this one.
    """

    kind: Literal["build"] = "build"
    schema_version: int = SCHEMA_VERSION
    store: str
    plan: BuildPlan
    cache_key: str
    portable: StoredModel
    signature: Signature
    calibration: StoredData | None = None
    follows: str | None = None
    # That of plan.loss or plan.training, with the metric that Auto turned out to be.
    evaluation: EvaluationSpec | None = None
    original: StoredModel | None = None  # the source as it came, where a step trains: the teacher
    training: StoredData | None = None


class BuiltCandidate(ApiModel):
    """A candidate with its files."""

    plan: CandidatePlan
    model: StoredModel
    steps: tuple[RecipeStep, ...] = ()

    @property
    def lossy(self) -> bool:
        """Whether a step or the precision may change answers, so that they must be proved."""
        return catalog.lossy(self.steps, self.plan.settings.precision)


class MeasureTask(ApiModel):
    """Screen candidates beside the baseline on the target's own kind of node; certify and time the best of them.

    `items` is what certifies: evaluation, or generated items when `generated` is set (then only exact candidates can pass,
    unless `allow_lossy`). `screening` is what candidates are sorted out by, never an item that certifies.
    At most `places` lossy candidates are certified; `alpha` is the error that each one's accuracy interval may have (two-sided).
    `incumbent` is the artifact that is published now: it is measured in the same rounds.
    """

    kind: Literal["measure"] = "measure"
    schema_version: int = SCHEMA_VERSION
    judging: int = JUDGING
    store: str
    target: str
    threads: int
    batch_sizes: tuple[int, ...]
    source_sha256: str
    signature: Signature
    baseline: BuiltCandidate
    candidates: tuple[BuiltCandidate, ...]
    items: StoredData
    generated: bool
    allow_lossy: bool = False
    screening: StoredData | None = None
    evaluation: EvaluationSpec | None = None
    labels: LabelReading | None = None  # how those of `items` and `screening` are read
    constraints: Constraints = Constraints()
    objective: Objective = Objective.LATENCY
    places: int = 1
    alpha: float
    incumbent: Sha256 | None = None
    seconds_per_candidate: float = SECONDS_PER_CANDIDATE
    calibration_sha256: str | None = None
    training_sha256: str | None = None  # of the items that a candidate was trained on
    basis: Basis = Basis.SOURCE_RUNTIME  # what `baseline` is, as prepare found it


class CandidateVerdict(ApiModel):
    """What `choose` said of a candidate."""

    target: str
    candidate: str
    state: CandidateState
    reason: str | None = None
    message: str | None = None


class PublishTask(ApiModel):
    """Check that every winner is whole, and write the report.

    `prepare`, `builds` and `measures` are task hashes whose answers lie in the store.
    """

    kind: Literal["publish"] = "publish"
    schema_version: int = SCHEMA_VERSION
    store: str
    namespace: str
    name: str
    generation: int
    objective: Objective
    prepare: str
    builds: tuple[str, ...]
    measures: tuple[str, ...]
    verdicts: tuple[CandidateVerdict, ...]
    constraints: str = ""  # as a person reads them
    bounds: Constraints | None = None  # the same, for the plots
    held_back: dict[str, str] | None = None  # target -> what would be faster than its winner, and what keeps it out


AnyTask: TypeAlias = PrepareTask | BuildTask | MeasureTask | PublishTask
TASK: TypeAdapter[AnyTask] = TypeAdapter(Annotated[AnyTask, Field(discriminator="kind")])


def encode_task(task: AnyTask, limit: int = PLAIN_LIMIT) -> str:
    """`FETTLE_TASK` for `task`: JSON, above `limit` bytes compressed and in base64."""
    text = task.canonical()
    return text.decode() if len(text) <= limit else COMPRESSED + base64.b64encode(zlib.compress(text, 9)).decode()


def decode_task(text: str) -> AnyTask:
    """What `encode_task` made. Raises ValueError (pydantic's included) for anything else."""
    if text.startswith(COMPRESSED):
        try:
            text = zlib.decompress(base64.b64decode(text.removeprefix(COMPRESSED))).decode()
        except zlib.error as error:
            raise ValueError(str(error)) from error
    return TASK.validate_json(text)


def task_hash(task: AnyTask) -> str:
    """sha256 of the task's canonical JSON: names its Job, and its answer in the store."""
    return task.digest
