"""How finely a quantized graph can answer: the step between two neighbouring values of each output."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

_PASSING = frozenset(["Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten"])


def output_steps(model: onnx.ModelProto) -> Mapping[str, float]:
    """The step of each output that is quantized: 1 for integers, the scale for what is dequantized at the very end."""
    makers = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    steps = {}
    for output in model.graph.output:
        name = output.name
        while name in makers and makers[name].op_type in _PASSING:
            name = makers[name].input[0]
        node = makers.get(name)
        if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = stored.get(node.input[1])
        if node.op_type == "QuantizeLinear":
            steps[output.name] = 1.0
        elif scale is not None:
            steps[output.name] = float(np.max(numpy_helper.to_array(scale)))
    return steps
