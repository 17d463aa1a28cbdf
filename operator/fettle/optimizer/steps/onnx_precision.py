"""The precision of an ONNX file: on a GPU the file decides the precision of each operation, not a setting of the runtime.

float16 is cast by onnxconverter-common: weights and values between operators change, inputs and outputs do not. Operators that the tool lists
as needing float32 (`DEFAULT_OP_BLOCK_LIST`: sums over many values, resizing, control flow) keep it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from onnxconverter_common import float16

from fettle.api.recipe import OptimizeGraphStep, RuntimeSettings
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RecipeError
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx import portable
from fettle.optimizer.steps import Device, Work
from fettle.runtimes import base

LARGEST = (
    65504.0  # of float16: what is beyond, such as a mask's -1e9, is cut off there; small numbers are rounded as usual
)
SCALED_OPSET = (
    19  # from here on Q and DQ take scales of float16, and a product stays between them: that is what runs in int8
)


def cast(work: Work[OptimizeGraphStep]) -> Path:
    """The model in the precision of its device's form. Raises RecipeError."""
    return in_precision(work.entry, work.folder / "model.onnx", required(work).form.precision)


def required(work: Work[OptimizeGraphStep]) -> Device:
    """The device of a step whose file is for one device. Raises RecipeError if the build names none."""
    if work.device is None:
        raise RecipeError("this build does not name the device that its file is for")
    return work.device


def in_precision(entry: Path, target: Path, precision: Precision) -> Path:
    """Write the model at `entry` in that precision to `target`, in a folder without other files, and check that ONNX Runtime loads it on the CPU.

    Raises RecipeError for a precision without a cast, or if the cast breaks the model.
    """
    model = onnx_model.load(entry)
    if precision == Precision.FLOAT16:
        if portable.is_quantized(model) and onnx_model.opset(model) < SCALED_OPSET:
            model = portable.convert_opset(model, portable.WANTED_OPSETS[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it tells of each number that is cut off
            model = float16.convert_float_to_float16(
                model, min_positive_val=0.0, max_finite_val=LARGEST, keep_io_types=True
            )
    elif precision != Precision.FLOAT32:
        raise RecipeError(f"there is no cast of ONNX files to {precision}: use Float16")
    onnx_model.save(model, target, entry.parent, link=False)
    base.get(RuntimeName.ONNXRUNTIME).load(target, RuntimeSettings(threads=1)).close()
    return target
