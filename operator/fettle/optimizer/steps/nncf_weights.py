"""Weights of matrix products and embeddings in 8 or 4 bits, with NNCF on OpenVINO's own representation; activations are not in the file.

OpenVINO widens the weights while it multiplies. It would widen those of convolutions when it loads the model, so they stay as they are.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nncf
import openvino as ov

from fettle.api.recipe import QuantizeStep
from fettle.errors import RecipeError
from fettle.optimizer.steps import Work
from fettle.optimizer.steps.nncf_quantize import left_alone

_IN_GROUPS = {
    "group_size": 64,  # weights that share a scale; fewer where a layer's cannot be divided so
    "advanced_parameters": nncf.AdvancedCompressionParameters(
        group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
    ),
}
_CONVOLUTIONS = ["Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"]
_INTEGERS = frozenset({"i8", "u8", "i4", "u4"})


def int8(work: Work[QuantizeStep]) -> Path:
    """Weights in 8 bits, asymmetric and per channel. Raises RecipeError."""
    return _compressed(work, nncf.CompressWeightsMode.INT8_ASYM)


def int4(work: Work[QuantizeStep]) -> Path:
    """Weights in 4 bits, asymmetric and in groups; embeddings and the last product in 8. Raises RecipeError."""
    return _compressed(work, nncf.CompressWeightsMode.INT4_ASYM, **_IN_GROUPS)


def _compressed(work: Work[QuantizeStep], mode: nncf.CompressWeightsMode, **options: Any) -> Path:
    model = ov.Core().read_model(work.entry)
    _one_way_each(model)
    before = _integer_weights(model)
    nncf.set_log_level(logging.WARNING)  # it would print a table of all weights
    ignored = nncf.IgnoredScope(names=left_alone(model, work.step.operators), types=_CONVOLUTIONS, validate=False)
    compressed = nncf.compress_weights(model, mode=mode, ignored_scope=ignored, **options)
    if _integer_weights(compressed) == before:
        raise RecipeError("no MatMul or Gemm in this model multiplies by stored weights, so there are none to quantize")
    entry = work.folder / "model.xml"
    ov.save_model(compressed, entry, compress_to_fp16=False)  # its default halves every weight that is not int8
    return entry


def _one_way_each(model: ov.Model) -> None:
    """Store a weight twice that some operations read by rows and others by columns: its scales can lie right for one of them only."""
    for constant in [operation for operation in model.get_ops() if operation.get_type_name() == "Constant"]:
        readers = constant.output(0).get_target_inputs()
        across = [reader for reader in readers if _by_columns(reader)]
        if across and len(across) < len(readers):
            copy = ov.opset13.constant(constant.get_data(), constant.get_element_type())
            for reader in across:
                reader.replace_source_output(copy.output(0))


def _by_columns(reader: ov.Input) -> bool:
    """Whether this is the second operand of a product that takes it as it lies."""
    node = reader.get_node()
    return node.get_type_name() == "MatMul" and reader.get_index() == 1 and not node.get_attributes()["transpose_b"]


def _integer_weights(model: ov.Model) -> int:
    """The number of constants that are stored in 8 bits or fewer."""
    constants = (operation for operation in model.get_ops() if operation.get_type_name() == "Constant")
    return sum(constant.get_element_type().to_string() in _INTEGERS for constant in constants)
