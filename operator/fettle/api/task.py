"""The tasks of Jobs, each passed as JSON.

A task refers to content, never to a place on a machine, so that its hash means the same everywhere.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from fettle.api import catalog, images
from fettle.api.base import ApiModel, canonical_digest
from fettle.api.constraints import Constraints
from fettle.api.data import DataSpec, EvaluationSpec
from fettle.api.labels import LabelReading
from fettle.api.optimizedmodel import PublishSpec
from fettle.api.recipe import RecipeStep, RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.source import SourceSpec
from fettle.api.training import TrainSpec
from fettle.api.uris import Address
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
JUDGING = 7
SECONDS_PER_CANDIDATE = 20.0  # of the clock; the operator's settings may say otherwise
PLAIN_LIMIT = 64 << 10  # bytes of JSON; above, it is compressed (the kernel takes 128 KiB for one variable)
COMPRESSED = "zlib:"
ENDS_VARIABLE = "FETTLE_ENDS"  # the run's deadline, in Unix time: an exhaustive search comes to an end before
LEADER_VARIABLE = "FETTLE_LEADER"  # host:port of the first of several pods that train together


class StoredFile(ApiModel):
    """A file of a file set. `path` is relative to the set; the content is in `<store>/blobs/<sha256>`."""

    path: str
    sha256: str
    bytes: int


class StoredModel(ApiModel):
    """A model in the store: a file set, and the file that a runtime opens (`entry`)."""

    format: ModelFormat
    entry: str
    files: tuple[StoredFile, ...]

    @property
    def bytes(self) -> int:
        """Total size of all files, in bytes."""
        return sum(file.bytes for file in self.files)


class StoredTokenizer(ApiModel):
    """What makes inputs of texts: a file of the library tokenizers, which says how they are cut off and padded. `lower`: in small letters first."""

    file: StoredFile
    lower: bool = False


class StoredData(ApiModel):
    """Items in the store, split and checked: `<store>/blobs/<sha256>` is an .npz file with an array per input, and `labels`."""

    sha256: str
    items: int
    labelled: bool = False
    bytes: int = 0  # of all arrays, unpacked


class LossBound(ApiModel):
    """The bound for a step that chooses layers: the share of answers that may differ from the original's, and how answers are compared.

    The step aims below `max_loss`, and is refused above `refused`. Between the two, labels or more items may still prove the result.
    """

    max_loss: float
    refused: float
    evaluation: EvaluationSpec | None = None


class TrainingPlan(ApiModel):
    """How the steps of a build train, how answers are judged, which decides what they train for, and how training images are changed.

    `tolerated`: the share of answers that int8 may change without training; quantization-aware training is skipped then. None if a recipe asks
    for it.
    """

    spec: TrainSpec
    evaluation: EvaluationSpec | None = None
    augment: tuple[Augmentation, ...] = ()  # sorted
    tolerated: float | None = None

    def holding(self, codes: Mapping[str, str]) -> TrainingPlan:
        """The same plan with the code of a loss of one's own that was read from its address; `codes`: by address."""
        custom = self.spec.custom
        if custom is None or custom.uri is None or custom.uri not in codes:
            return self
        spec = self.spec.model_copy(update={"custom": custom.holding(codes[custom.uri])})
        return self.model_copy(update={"spec": spec})


class DeviceForm(ApiModel):
    """The form of a build's file for one kind of device. For other runtimes, these are settings; here they are part of the file.

    `architecture` is set for an engine, which also has either one `batch_size`, or takes from 1 to the largest of `batch_sizes` and is tuned for
    each of them; `threads` for machine code for a CPU.
    """

    precision: Precision = Precision.FLOAT32
    architecture: Architecture | None = None
    batch_size: int | None = None
    batch_sizes: tuple[int, ...] = (1,)
    threads: int | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The words in a build's name that distinguish builds of one recipe for several devices: ('float16', 'sm89', 'batch8')."""
        if self.threads is not None:
            return (f"threads{self.threads}",)
        if self.architecture is None:
            return (self.precision.lower(),)
        sizes = (self.batch_size,) if self.batch_size is not None else self.batch_sizes
        batch = "batch" if self.batch_size is not None else "batches"
        return self.precision.lower(), self.architecture, f"{batch}{'-'.join(map(str, sizes))}"


class BuildPlan(ApiModel):
    """A build: a recipe for a family of runtimes. Candidates that differ only in settings share it.

    `loss` is set if a step chooses layers by their loss, `training` if a step trains, and `form` if the last step makes a file for one kind of
    device.
    """

    name: str
    family: RuntimeName
    steps: tuple[RecipeStep, ...]
    loss: LossBound | None = None
    training: TrainingPlan | None = None
    form: DeviceForm | None = None

    @property
    def segments(self) -> tuple[BuildPlan, ...]:
        """The segments that carry out the build, each on the result of the previous one: only itself, if one image has everything it needs.

        A segment that trains belongs to PyTorch's family and to no device, so that all families share it. Empty if no image has what a step needs.
        """
        parts = images.segments(self.family, self.steps)
        if len(parts) == 1 and not self.trains:
            return (self,)
        trained = sum(any(map(catalog.trains, steps)) for steps in parts)
        return tuple(self._segment(steps, number, len(parts), trained) for number, steps in enumerate(parts, 1))

    @property
    def trains(self) -> bool:
        """Whether one of its steps trains."""
        return any(catalog.trains(step) for step in self.steps)

    def holding(self, codes: Mapping[str, str]) -> BuildPlan:
        """The same build with the code of a loss of one's own, as `TrainingPlan.holding`."""
        if self.training is None:
            return self
        return self.model_copy(update={"training": self.training.holding(codes)})

    def _segment(self, steps: tuple[RecipeStep, ...], number: int, count: int, trained: int) -> BuildPlan:
        """Segment `number` of `count`, of which `trained` train. The names of those must not depend on the family, since all families share them."""
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
    """A candidate: recipe, runtime and settings. `build` is the name of its BuildPlan, or None for the portable form itself."""

    name: str
    recipe: str
    runtime: RuntimeName
    settings: RuntimeSettings
    build: str | None = None
    untouched: bool = False  # the source as it came, not the portable form


class PrepareTask(ApiModel):
    """Fetch, verify, recognize, convert, split. `builds`: all builds that the plan may need; the report says which the store already has.

    `publish`: the registry that is asked whether it takes winners, before hours are spent on them.
    """

    kind: Literal["prepare"] = "prepare"
    schema_version: int = SCHEMA_VERSION
    judging: int = JUDGING
    store: str
    source: SourceSpec
    data: DataSpec
    builds: tuple[BuildPlan, ...]
    publish: PublishSpec | None = None

    @property
    def digest(self) -> str:
        """Of everything that the report depends on: not of where the winners go."""
        return canonical_digest(self.model_copy(update={"publish": None}).to_json())

    @property
    def losses(self) -> dict[str, Address]:
        """Where the code of losses of one's own is, by the build that trains with it."""
        given = {plan.name: plan.training.spec.address for plan in self.builds if plan.training is not None}
        return {f"train.custom.uri of {name}": address for name, address in given.items() if address is not None}

    def addresses(self) -> dict[str, Address]:
        """What it reads beside the store: field of the spec -> address."""
        return {**self.source.addresses(), **self.data.addresses(), **self.losses}


class BuildTask(ApiModel):
    """Apply steps of a recipe to `portable`, in a new process, because otherwise the bytes would differ from run to run.

    `portable` is the portable form, or the result of the previous segment of this recipe, whose cache key is `follows`.
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
    native: StoredModel | None = None  # what a step that converts starts from; the key is that of `portable`

    @property
    def nodes(self) -> int:
        """How many pods train together; one where there is nothing to train on."""
        return self.plan.training.spec.nodes if self.plan.training is not None and self.training is not None else 1


class BuiltCandidate(ApiModel):
    """A candidate and its files."""

    plan: CandidatePlan
    model: StoredModel
    steps: tuple[RecipeStep, ...] = ()

    @property
    def lossy(self) -> bool:
        """Whether a step or the precision may change answers, so that the accuracy has to be proved."""
        return catalog.lossy(self.steps, self.plan.settings.precision)


class MeasureTask(ApiModel):
    """Screen candidates together with the baseline on a node of the target, and evaluate and time the best of them in full.

    `items` are the evaluation items, or generated items if `generated` is set (only exact candidates can pass then, unless `allow_lossy`).
    `screening` are the items for the screening, none of which is an evaluation item. At most `places` lossy candidates are evaluated in full;
    `alpha` is the two-sided error probability of each accuracy interval. If `exhaustive` is set, all candidates are evaluated and timed in full.
    `incumbent` is the artifact that is published now; it is measured in the same rounds.
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
    # Left out where it is False, so that tasks keep their hashes.
    exhaustive: Annotated[bool, Field(exclude_if=lambda exhaustive: not exhaustive)] = False
    # search.deadlineSeconds of an exhaustive search, which measures as many as that leaves time for: with more time it is another task.
    deadline_seconds: Annotated[int | None, Field(exclude_if=lambda seconds: seconds is None)] = None
    alpha: float
    incumbent: Sha256 | None = None
    seconds_per_candidate: float = SECONDS_PER_CANDIDATE
    calibration_sha256: str | None = None
    training_sha256: str | None = None  # of the items that a candidate was trained on
    tokenizer: StoredTokenizer | None = None  # that made `items` of texts
    basis: Basis = Basis.SOURCE_RUNTIME  # what `baseline` is, as prepare found it


class CandidateVerdict(ApiModel):
    """The verdict of `choose` on a candidate."""

    target: str
    candidate: str
    state: CandidateState
    reason: str | None = None
    message: str | None = None


class PublishTask(ApiModel):
    """Verify the files of every winner, and write the report.

    `prepare`, `builds` and `measures` are the hashes of tasks whose results are in the store.
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
    publish: PublishSpec | None = None  # where the winners go besides the store


AnyTask: TypeAlias = PrepareTask | BuildTask | MeasureTask | PublishTask
TASK: TypeAdapter[AnyTask] = TypeAdapter(Annotated[AnyTask, Field(discriminator="kind")])


def encode_task(task: AnyTask, limit: int = PLAIN_LIMIT) -> str:
    """The value of `FETTLE_TASK` for `task`: JSON, compressed and in base64 if it is longer than `limit` bytes."""
    text = task.canonical()
    return text.decode() if len(text) <= limit else COMPRESSED + base64.b64encode(zlib.compress(text, 9)).decode()


def decode_task(text: str) -> AnyTask:
    """The reverse of `encode_task`. Raises ValueError (also pydantic's) for anything else."""
    if text.startswith(COMPRESSED):
        try:
            text = zlib.decompress(base64.b64decode(text.removeprefix(COMPRESSED))).decode()
        except zlib.error as error:
            raise ValueError(str(error)) from error
    return TASK.validate_json(text)


def task_hash(task: AnyTask) -> str:
    """sha256 of the task's canonical JSON, which identifies its Job and its result in the store."""
    return task.digest
