"""Which nodes must stay in float32."""

from __future__ import annotations

import onnx

RECURRENT = frozenset({"LSTM", "GRU", "RNN", "Scan", "Loop"})


def before_recurrent(graph: onnx.GraphProto) -> list[str]:
    """Names of recurrent nodes and of all that feeds them: int8 there breaks whole streams though single steps look fine."""
    made = {output: node for node in graph.node for output in node.output}
    waiting = [node for node in graph.node if node.op_type in RECURRENT]
    found: dict[str, None] = {}
    while waiting:
        node = waiting.pop()
        if node.name in found:
            continue
        found[node.name] = None
        waiting.extend(made[name] for name in node.input if name in made)
    return list(found)
