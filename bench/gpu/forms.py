"""Number formats in which `bench/gpu/check.py` runs its models, and their files, made as a build Job makes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fettle.api import architectures, catalog
from fettle.api.recipe import OptimizeGraphStep, QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.task import DeviceForm
from fettle.api.vocabulary import Precision, QuantizeMode, RuntimeName
from fettle.errors import RecipeError, RuntimeFailure
from fettle.optimizer import steps
from fettle.optimizer.measure import items
from fettle.optimizer.steps import BuildContext, Device, Work, onnx_precision, tensorrt_engine
from fettle.runtimes import base, cuda
from fettle.runtimes.base import Array


@dataclass(frozen=True)
class Form:
    """A number format. `tolerance`: of the largest answer, what rounding in every layer may come to; in float32 only another order of sums.

    `batches`: for each of them, an engine has an optimization profile; if empty, it has one, for the batch of the subject.
    """

    name: str
    precision: Precision
    tolerance: float
    mode: QuantizeMode | None = None
    batches: tuple[int, ...] = ()

    def lacking(self, runtime: RuntimeName, architecture: str) -> str | None:
        """Why this form is not built for a runtime on a GPU."""
        if self.batches and not catalog.runs_engines(runtime):
            return f"{runtime} has no optimization profiles"
        kind = QuantizeStep(mode=self.mode).kind if self.mode is not None else None
        if self.precision not in catalog.runtime(runtime).precisions:
            return f"{runtime} does not compute in {self.precision}"
        if self.mode is not None and catalog.step(RecipeStep(quantize=QuantizeStep(mode=self.mode)), runtime) is None:
            return f"{runtime} does not compute in {self.name}"
        if not architectures.offers(architecture, self.precision) or (
            kind is not None and not architectures.offers(architecture, kind)
        ):
            return f"{architecture} does not compute in {self.name}"
        return None


FLOAT16 = Form("float16", Precision.FLOAT16, 3e-2)
FORMS = (
    Form("float32", Precision.FLOAT32, 1e-3),
    Form("tf32", Precision.TF32, 1e-2),
    FLOAT16,
    Form("bfloat16", Precision.BFLOAT16, 0.1),
    Form("int8", Precision.FLOAT16, 0.3, QuantizeMode.STATIC),
    Form("float8", Precision.FLOAT16, 0.3, QuantizeMode.FLOAT8),
)
IN_PROFILES = Form("float16 in 3 profiles", Precision.FLOAT16, 3e-2, batches=(1, 8, 32))
CALIBRATION = 16  # items, at most


@dataclass(frozen=True)
class Subject:
    """A model with what it is fed."""

    name: str
    entry: Path
    signature: Signature
    feed: dict[str, Array]
    forms: tuple[Form, ...] = FORMS

    @property
    def batch(self) -> int:
        """Items of a run."""
        return len(next(iter(self.feed.values())))

    @property
    def in_all_forms(self) -> bool:
        """Whether nothing is left out."""
        return set(FORMS) <= set(self.forms)

    def first(self, items: int) -> dict[str, Array]:
        """What so many of its items are fed as."""
        return {name: array[:items] for name, array in self.feed.items()}


def build(subject: Subject, runtime: RuntimeName, form: Form, folder: Path) -> tuple[Path, RuntimeSettings]:
    """The file of a subject in the form that `runtime` takes, made as a build Job makes it. Raises FettleError."""
    folder.mkdir(parents=True)
    architecture = cuda.connect().architecture()
    if (lacking := form.lacking(runtime, architecture)) is not None:
        raise RecipeError(lacking)
    try:
        base.get(runtime)
    except RuntimeFailure as error:  # it is not installed
        raise RecipeError(error.message) from error
    entry = quantized(subject, form, folder / "quantized")
    batch = None if form.batches else subject.batch
    sizes = form.batches or (subject.batch,)
    made = DeviceForm(precision=form.precision, architecture=architecture, batch_size=batch, batch_sizes=sizes)
    work = Work(entry, folder, OptimizeGraphStep(), device=Device(runtime, made, subject.signature))
    if runtime == RuntimeName.ONNXRUNTIME_CUDA:
        return onnx_precision.cast(work), RuntimeSettings(precision=form.precision)
    return tensorrt_engine.compile_engine(work), RuntimeSettings(precision=form.precision, batch_size=batch)


def quantized(subject: Subject, form: Form, folder: Path) -> Path:
    """The model as the quantize step of a form leaves it, with what it is fed as calibration items. Raises FettleError."""
    if form.mode is None:
        return subject.entry
    folder.mkdir()
    step = RecipeStep(quantize=QuantizeStep(mode=form.mode))
    calibration = items.of(subject.first(CALIBRATION), subject.signature)
    return steps.apply(step, RuntimeName.TENSORRT_RTX, subject.entry, folder, BuildContext(calibration=calibration))
