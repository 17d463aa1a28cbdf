"""An ONNX graph taken back into PyTorch, so that it can be trained (onnx2torch).

What PyTorch answers is held against ONNX Runtime's answers before anything is changed: a converter that misreads an operator would have
everything trained for nothing.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from pathlib import Path

import onnx
import onnx2torch
import torch
from onnx2torch.node_converters.registry import OperationDescription, get_converter
from torch import fx

from fettle.api.signature import Signature
from fettle.api.text import quoted
from fettle.errors import RecipeError
from fettle.optimizer.onnx import model as onnx_model

log = logging.getLogger(__name__)


def module_of(path: Path, signature: Signature) -> fx.GraphModule:
    """The graph at `path` as a module whose inputs and outputs are those of `signature`. Raises RecipeError naming what PyTorch lacks."""
    model = onnx_model.load(path)
    unknown = _unknown(model)
    if unknown:
        raise RecipeError(f"{', '.join(unknown)} cannot be taken back into PyTorch: give the source as a program of torch.export")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = onnx2torch.convert(model)
    except Exception as error:  # the library raises what it likes
        message = f"the ONNX graph could not be taken back into PyTorch: {quoted(error)}"
        raise RecipeError(message) from error
    names = [value.name for value in onnx_model.inputs(model.graph)]
    if names != [tensor.name for tensor in signature.inputs]:
        raise RecipeError(f"the graph takes {names}, and the artifact others: inputs that are frozen cannot be trained around")
    return module


def _unknown(model: onnx.ModelProto) -> list[str]:
    """Operators for which the converter has nothing, the most frequent first."""
    opset = onnx_model.opset(model)
    counts = Counter(node.op_type for node in model.graph.node if not _is_known(node, opset))
    return [name for name, _ in counts.most_common(5)]


def _is_known(node: onnx.NodeProto, opset: int) -> bool:
    try:
        get_converter(operation_type=node.op_type, domain=node.domain, version=opset)
    except NotImplementedError:
        return False
    return True
