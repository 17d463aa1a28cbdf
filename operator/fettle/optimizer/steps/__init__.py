"""What a recipe's steps do: one row for each row of `api/catalog.py`, one function each, its toolchain imported when it is called.

The rows of `optimizeGraph` have no function: the portable form is folded and fused already, and each runtime goes on when it loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fettle import runtimes  # noqa: F401  before any toolchain: it keeps them from reporting their use
from fettle.api import catalog
from fettle.api.catalog import StepKind
from fettle.api.recipe import QuantizeStep, RecipeStep
from fettle.api.text import quoted
from fettle.api.vocabulary import RuntimeName
from fettle.errors import FettleError, RecipeError
from fettle.optimizer.measure.items import Items


@dataclass(frozen=True)
class Work:
    """What a step works on: the model at `entry`, which it must not change, and an empty `folder` for what it makes."""

    entry: Path
    folder: Path
    step: QuantizeStep
    calibration: Items | None


# The function takes Work and returns the entry of what it made. It raises RecipeError where the recipe does not fit.
FUNCTIONS: dict[tuple[StepKind, RuntimeName], str | None] = {
    (StepKind.OPTIMIZE_GRAPH, RuntimeName.ONNXRUNTIME): None,
    (StepKind.OPTIMIZE_GRAPH, RuntimeName.OPENVINO): None,
    (StepKind.QUANTIZE_STATIC, RuntimeName.ONNXRUNTIME): "onnxruntime_quantize:static",
    (StepKind.QUANTIZE_DYNAMIC, RuntimeName.ONNXRUNTIME): "onnxruntime_quantize:dynamic",
    (StepKind.QUANTIZE_STATIC, RuntimeName.OPENVINO): "nncf_quantize:static",
}


def apply(step: RecipeStep, family: RuntimeName, entry: Path, folder: Path, calibration: Items | None) -> Path:
    """Apply one step to the model at `entry`; the entry of what it made, in `folder`, or `entry` where nothing is to be done.

    Raises RecipeError (RecipeNotApplicable), also where the toolchain fails on this model; MemoryError and OSError speak of the node.
    """
    kind = catalog.kind(step)
    if kind is None or (kind, family) not in FUNCTIONS:
        raise RecipeError(f"{family} does not offer this step: {step.to_json()}")
    name = FUNCTIONS[kind, family]
    if name is None or step.quantize is None:
        return entry
    module, function = name.split(":")
    make: Callable[[Work], Path] = getattr(import_module(f"{__name__}.{module}"), function)
    try:
        return make(Work(entry, folder, step.quantize, calibration))
    except (FettleError, MemoryError, OSError):
        raise
    except Exception as error:  # toolchains raise what they like; build.run logs where
        message = f"the quantizer of {family} fails on this model: {type(error).__name__}: {quoted(error)}"
        raise RecipeError(message) from error
