"""The precision of an ONNX file: on a GPU the file decides the precision of each operation, not a setting of the runtime.

float16 is cast by onnxconverter-common: weights and values between operators change, inputs and outputs do not. Operators that the tool lists
as needing float32 (`DEFAULT_OP_BLOCK_LIST`: sums over many values, resizing, control flow) keep it. Of a model that the tool breaks, and in
bfloat16, only the products are cast (`onnx_autocast`).
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnxconverter_common import float16

from fettle.api.recipe import OptimizeGraphStep
from fettle.api.vocabulary import Precision
from fettle.errors import RecipeError
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx import portable
from fettle.optimizer.steps import Device, Work, onnx_autocast
from fettle.optimizer.steps.onnx_float8 import PAIR

FLOAT = onnx.TensorProto.FLOAT
# The largest number of float16: what is beyond, such as a mask's -1e9, is cut off there; small numbers are rounded as usual.
LARGEST = 65504.0
SMALLEST = np.finfo(np.float16).smallest_subnormal
# From here on Q and DQ take scales of float16, and a product stays between them: that is what runs in int8.
SCALED_OPSET = 19
BFLOAT16_OPSET = 13  # from here on Cast knows the type
log = logging.getLogger(__name__)


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
    if precision == Precision.BFLOAT16:
        if onnx_model.opset(model) < BFLOAT16_OPSET:
            model = portable.convert_opset(model, BFLOAT16_OPSET)
        _save(onnx_autocast.products(model, precision, emulated=True), target, entry)
        onnx_model.save(onnx_autocast.products(model, precision), target, entry.parent, link=False)
    elif precision == Precision.FLOAT16:
        try:
            _save(_float16(model), target, entry)
        except (MemoryError, OSError):
            raise
        except Exception:  # the tool raises what it likes, and writes types that do not match
            log.info("only the products are cast", exc_info=True)
            _save(onnx_autocast.products(onnx_model.load(entry), precision), target, entry)
    elif precision in (Precision.FLOAT32, Precision.TF32):
        _save(model, target, entry)
    else:
        raise RecipeError(f"there is no cast of ONNX files to {precision}: use Float16 or BFloat16")
    return target


def _float16(model: onnx.ModelProto) -> onnx.ModelProto:
    if portable.is_quantized(model) and onnx_model.opset(model) < SCALED_OPSET:
        model = portable.convert_opset(model, portable.WANTED_OPSETS[0])
    # The tool takes what a Cast to float32 gives for float16, and leaves the node as it is.
    casts = [node.name for node in onnx_model.nodes(model) if node.op_type == "Cast" and node.attribute[0].i == FLOAT]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it tells of each number that is cut off
        changed: onnx.ModelProto = float16.convert_float_to_float16(
            model, min_positive_val=0.0, max_finite_val=LARGEST, keep_io_types=True, node_block_list=casts
        )
    _keep_scales(changed)
    return changed


def _keep_scales(model: onnx.ModelProto) -> None:
    """Give scales of Q and DQ that float16 rounds to 0, as of channels that do nothing, its smallest number: TensorRT takes no scale of 0."""
    scales = {node.input[1] for node in onnx_model.nodes(model) if node.op_type in PAIR}
    for graph in onnx_model.graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.name in scales and tensor.data_type == onnx.TensorProto.FLOAT16:
                array = np.maximum(numpy_helper.to_array(tensor), SMALLEST)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def on_cpu(path: Path) -> ort.InferenceSession:
    """A session of ONNX Runtime on the CPU that computes what the file says. Above this level it makes integer kernels of pairs of Q and DQ, also
    of those in float8: it refuses the file then, or answers something else (1.31)."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4  # what matters is raised as well
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _save(model: onnx.ModelProto, target: Path, entry: Path) -> None:
    """Write a model that was made of the one at `entry`. Raises an error of ONNX Runtime where that does not load it on the CPU."""
    onnx_model.save(model, target, entry.parent, link=False)
    on_cpu(target)
