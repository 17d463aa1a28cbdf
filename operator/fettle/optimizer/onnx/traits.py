"""What the default plan wants to know of a graph."""

from __future__ import annotations

import onnx

from fettle.api.report import Traits
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx.portable import is_quantized

RECURRENT = frozenset({"LSTM", "GRU", "RNN", "Scan", "Loop"})
_ATTENTION = frozenset(
    {"Attention", "MultiHeadAttention", "GroupQueryAttention", "LayerNormalization", "SkipLayerNormalization"}
)
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"})
MATRIX = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "FusedMatMulActivation"})
_BOUNDED = frozenset({"LSTM", "GRU", "RNN", "Tanh", "Sigmoid", "HardSigmoid", "Softmax"})
_RECURRENT_BOUNDED = frozenset({b"Sigmoid", b"Tanh", b"HardSigmoid", b"Softsign"})  # activations of recurrent layers
CELL = 2  # the output of an LSTM that adds up over the steps
_PASSING = frozenset({"Squeeze", "Unsqueeze", "Reshape", "Transpose", "Identity", "Slice"})


def traits(model: onnx.ModelProto) -> Traits:
    """Traits of the graph; the clock's are left at 0."""
    kinds = [node.op_type for node in onnx_model.nodes(model)]
    return Traits(
        opset=onnx_model.opset(model),
        quantized=is_quantized(model),
        recurrent=any(kind in RECURRENT for kind in kinds),
        transformer=any(kind in _ATTENTION for kind in kinds) or _has_plain_attention(model.graph),
        convolutions=sum(kind in _CONVOLUTIONS for kind in kinds),
    )


def _has_plain_attention(graph: onnx.GraphProto) -> bool:
    """Whether a MatMul takes what a Softmax made: attention, written out."""
    made = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        before = made.get(node.input[0])
        while before is not None and before.op_type in ("Dropout", "Cast", "Identity", "Reshape"):
            before = made.get(before.input[0])
        if before is not None and before.op_type == "Softmax":
            return True
    return False


def bounded_lstm(graph: onnx.GraphProto) -> list[str]:
    """Names of LSTM nodes whose input lies within the bounds of an activation, so that 8 bits hold it whatever the model is given."""
    made = {output: node for node in graph.node for output in node.output}

    def bounded(name: str) -> bool:
        node = made.get(name)
        if node is not None and node.op_type in _PASSING:
            return bounded(node.input[0])
        return node is not None and node.op_type in _BOUNDED and name not in node.output[CELL:] and not _unbounded(node)

    return [node.name for node in graph.node if node.op_type == "LSTM" and bounded(node.input[0])]


def _unbounded(node: onnx.NodeProto) -> bool:
    """Whether a recurrent layer has an activation without bounds, such as Relu."""
    return not _RECURRENT_BOUNDED.issuperset(onnx_model.attribute(node, "activations", ()))
