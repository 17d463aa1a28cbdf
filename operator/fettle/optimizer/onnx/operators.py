"""Why ONNX Runtime does not have an operator of a graph: nobody has it, or not for such numbers, or not as old as this."""

from __future__ import annotations

import logging
import re

import onnx

from fettle.api.reasons import Reason
from fettle.errors import SourceError
from fettle.optimizer.onnx import model as onnx_model

OLDEST_OPSET = 7  # of the standard operators that ONNX Runtime still has: 1 to 6 were other operators by the same names
_KNOWN_DOMAINS = onnx_model.STANDARD_DOMAINS | {"ai.onnx.ml", "com.microsoft"}
_NOT_THERE = re.compile(r"implementation for (\w+)\(\d+\)")
log = logging.getLogger(__name__)


def refusal(model: onnx.ModelProto, fault: SourceError) -> SourceError:
    """`fault`, which the runtime gave when it was to load `model`, with what to do about it where an operator is at fault."""
    nobodys = unknown(model)
    if nobodys:
        message = f"the model uses {', '.join(nobodys)}, which no runtime supports: export it with standard operators; {fault.message}"
        return SourceError(message, reason=Reason.UNSUPPORTED_OPERATOR)
    if fault.reason != Reason.UNSUPPORTED_OPERATOR:
        return fault
    operator = _NOT_THERE.search(fault.message)
    types = _types(model, operator[1]) if operator is not None else []
    if onnx_model.opset(model) < OLDEST_OPSET:
        message = f"{fault.message}; export the model with opset {OLDEST_OPSET} or newer, found opset {onnx_model.opset(model)}"
    elif operator is not None and types:
        message = (
            f"the model computes {operator[1]} in {', '.join(types)}, which onnxruntime does not support on a CPU: export the model in float32 "
            f"(weights may stay stored as they are, with a Cast to float32 behind them); {fault.message}"
        )
    else:
        message = f"{fault.message}; export the model with other operators, or with another opset"
    return SourceError(message, reason=fault.reason)


def unknown(model: onnx.ModelProto) -> list[str]:
    """Operators that are neither standard, nor ONNX Runtime's own, nor the model's functions: 'Name (domain)'."""
    own = {(function.domain, function.name) for function in model.functions}
    foreign = {
        f"{node.op_type} (domain {node.domain or 'ai.onnx'})"
        for node in onnx_model.nodes(model)
        if (node.domain, node.op_type) not in own and not _known(node)
    }
    return sorted(foreign)


def _known(node: onnx.NodeProto) -> bool:
    if node.domain in onnx_model.STANDARD_DOMAINS:
        return bool(onnx.defs.has(node.op_type, ""))
    return node.domain in _KNOWN_DOMAINS


def _types(model: onnx.ModelProto, kind: str) -> list[str]:
    """Data types other than float32 that nodes of that kind take, as far as they can be told."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # what does not hold together cannot be inferred; the runtime has said more of it
        log.info("types could not be inferred", exc_info=True)
        return []
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    types |= {value.name: value.type.tensor_type.elem_type for value in values}
    taken = {types.get(name, 0) for node in graph.node if node.op_type == kind for name in node.input}
    known = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED, onnx.TensorProto.FLOAT}
    return sorted(onnx.TensorProto.DataType.Name(one).lower() for one in taken & known)
