"""The steps of recipes: one module for each step and family. Its entry in `api/catalog.py` names the function, which is imported when it is called.

A function takes `Work`, writes into its folder, and returns the path of the model that it made. It raises RecipeError if the recipe does not fit
the model. What the entry promises is checked here after every step, so that an error is found where it was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from fettle import runtimes  # noqa: F401  before any toolchain: it keeps them from reporting their use
from fettle.api import catalog
from fettle.api.catalog_rows import StepEntry
from fettle.api.recipe import RecipeStep, RuntimeSettings
from fettle.api.report import LayerError
from fettle.api.signature import Signature
from fettle.api.step import StepParameters
from fettle.api.task import DeviceForm
from fettle.api.text import installing, quoted
from fettle.api.vocabulary import ModelFormat, RuntimeName
from fettle.errors import FettleError, RecipeError
from fettle.optimizer.loss import Loss
from fettle.optimizer.measure.items import MappedItems
from fettle.optimizer.reference import OriginalAnswers
from fettle.runtimes import base

if TYPE_CHECKING:  # PyTorch is there only for steps that train
    from fettle.optimizer.training.session import Training

Parameters_co = TypeVar("Parameters_co", bound=StepParameters, covariant=True)
# By the end of the entry's name.
FORMATS: dict[str, ModelFormat] = {
    ".onnx": "ONNX",
    ".xml": "OpenVINO",
    ".pt2": "TorchExport",
    ".aoti": "AOTInductor",
    ".tflite": "TFLite",
    ".engine": "TensorRT",
    ".rtx": "TensorRT-RTX",
}


@dataclass(frozen=True)
class Device:
    """What the last step of a build for a GPU makes: the runtime that loads it, its form, and its inputs and outputs. `timings`: a file of what
    earlier builds for such a GPU timed, which the step replaces."""

    family: RuntimeName
    form: DeviceForm
    signature: Signature
    timings: Path | None = None


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What all steps of a build share.

    `loss`: how answers that differ from the original's are judged; None if there is no bound on the loss. `notes`: remarks of the steps for
    people. `layers`: what mixed precision found out about the error of each. `device`: set if the last step makes the file for one kind of
    device. `training`: the teacher and the items, if a step trains.
    """

    calibration: MappedItems | None = None
    loss: Loss | None = None
    notes: list[str] = field(default_factory=list)
    layers: list[LayerError] = field(default_factory=list)
    device: Device | None = None
    training: Training | None = None


@dataclass(frozen=True)
class Work(BuildContext, Generic[Parameters_co]):
    """The input of one step: the model at `entry`, which it must not change, and an empty `folder` for its result."""

    entry: Path
    folder: Path
    step: Parameters_co

    @property
    def trained(self) -> Training:
        """The teacher and the items, for a step that trains according to its entry in the catalog."""
        if self.training is None:
            raise RecipeError(f"{self.step.words} trains, but this build has no training data")
        return self.training

    @property
    def calibrated(self) -> MappedItems:
        """The calibration items, for a step that needs them according to its entry in the catalog."""
        if self.calibration is None:
            raise RecipeError("static quantization requires calibration items")
        return self.calibration


def apply(step: RecipeStep, family: RuntimeName, entry: Path, folder: Path, context: BuildContext) -> Path:
    """Apply one step to the model at `entry`; returns the path of the result in `folder`, or `entry` if there is nothing to do.

    Raises RecipeError (RecipeNotApplicable), also if the toolchain fails on this model or the result is not what the step promises. MemoryError and
    OSError are raised as they are, because they are about the node.
    """
    row, parameters = catalog.step(step, family), step.parameters
    if row is None or parameters is None:
        raise RecipeError(f"{family} does not offer this step: {step.to_json()}")
    if row.function is None:
        return entry
    module, function = row.function.split(":")
    try:
        make: Callable[[Work[StepParameters]], Path] = getattr(import_module(f"{__name__}.{module}"), function)
    except ModuleNotFoundError as error:
        raise _lacking(row, error) from error
    state = _state(entry)
    try:
        work = Work(entry, folder, parameters, **vars(context))
        made = make(work)
        broken = "it changed its input model" if _state(entry) != state else _broken(row, made, folder)
        if broken is None and not row.lossy and not row.finishes and context.calibration is not None:
            broken = _moved(row, entry, made, context.calibration)
    except (FettleError, MemoryError, OSError):
        raise
    except ModuleNotFoundError as error:
        raise _lacking(row, error) from error
    except Exception as error:  # toolchains raise what they like; build.run logs where
        what = "quantizer" if parameters.quantizes else f"step {row.kind}"
        message = f"the {what} of {family} fails on this model: {type(error).__name__}: {quoted(error)}"
        raise RecipeError(message) from error
    if broken is not None:
        message = f"the step {row.kind} of {family} (optimizer/steps/{module}.py: {function}) violated its contract: {broken}; please report it"
        raise RecipeError(message)
    return made


def _lacking(row: StepEntry, error: ModuleNotFoundError) -> RecipeError:
    """The error if a library of the step is missing. This only happens on a user's machine, because the images have what their entries need."""
    extra = "training" if row.trains else "optimizer"
    return RecipeError(f"the step {row.kind} needs {error.name}, which is not installed: {installing(extra)}")


def _state(entry: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the model's files."""
    return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in entry.parent.iterdir())


def _broken(row: StepEntry, made: Path, folder: Path) -> str | None:
    """How the file differs from what the step's entry promises; None if it does not."""
    if not made.is_relative_to(folder) or not made.is_file():
        return f"it returned {made.name}, which is not a file in its output folder"
    if FORMATS.get(made.suffix) != row.writes:
        return f"it wrote {made.name}, but its row in the catalog declares {row.writes}"
    return None


def _moved(row: StepEntry, entry: Path, made: Path, items: MappedItems) -> str | None:
    """How the outputs after an exact step differ from those before it; None if they do not."""
    runtime, settings = base.get(row.family), RuntimeSettings(threads=1)
    original = runtime.load(entry, settings)
    reference = OriginalAnswers.of(original.infer, items)
    original.close()
    after = runtime.load(made, settings)
    moved = reference.differs(after.infer)
    after.close()
    return f"its row in the catalog declares it exact, but {moved}" if moved is not None else None
