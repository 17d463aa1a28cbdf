"""What a quantizer must know about a graph: the nodes that stay in float32. Also mends what it cannot handle: names, and biases with two axes."""

from __future__ import annotations

from collections import Counter

import onnx

from fettle.optimizer.onnx import model

RECURRENT = frozenset({"LSTM", "GRU", "RNN", "Scan", "Loop"})
CLAMPS = ("Relu", "Clip")


def recurrent(graph: onnx.GraphProto) -> list[str]:
    """Names of recurrent nodes."""
    return [node.name for node in graph.node if node.op_type in RECURRENT]


def before_recurrent(graph: onnx.GraphProto) -> list[str]:
    """Names of recurrent nodes and all nodes before them: int8 there breaks whole streams although single steps look fine."""
    made = {output: node for node in graph.node for output in node.output}
    waiting = [node for node in graph.node if node.op_type in RECURRENT]
    names: dict[str, None] = {}
    while waiting:
        node = waiting.pop()
        if node.name in names:
            continue
        names[node.name] = None
        waiting.extend(made[name] for name in node.input if name in made)
    return list(names)


def clamps_before_bodies(graph: onnx.GraphProto) -> list[str]:
    """Names of Relu and Clip nodes whose input or output a branch or a loop body reads.

    The tool removes such a node if a quantization range clamps as well. But it puts no range inside a body, so nothing would clamp there.
    """
    read = {name for body in model.graphs(graph) if body is not graph for node in body.node for name in node.input}
    clamps = (node for node in graph.node if node.op_type in CLAMPS)
    return [node.name for node in clamps if read & {*node.input, *node.output}]


def keep_apart(graph: onnx.GraphProto) -> None:
    """Rename a weight if another tensor has its name with a number appended.

    The tool calls a second copy of the weight `w` `w2` even if another tensor has that name, and writes a graph that no runtime can load.
    """
    names = {output for body in model.graphs(graph) for node in body.node for output in node.output}
    names |= {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    stems = {name[:end] for name in names for end in range(len(name.rstrip("0123456789")), len(name))}
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.name in stems:
            fresh = f"{tensor.name}_weight"
            while fresh in names:
                fresh += "_"
            renamed[tensor.name] = tensor.name = fresh
            names.add(fresh)
    for body in model.graphs(graph):
        for node in body.node:
            for index, name in enumerate(node.input):
                if name in renamed:
                    node.input[index] = renamed[name]


def flatten_biases(graph: onnx.GraphProto) -> None:
    """Give biases of Gemm one axis: [1, n] adds the same as [n], but the tool expects the channels on the bias's first axis.

    Graph optimizers write such biases when they fuse a MatMul and an Add.
    """
    uses = Counter(name for body in model.graphs(graph) for node in body.node for name in node.input)
    uses.update(value.name for value in graph.output)
    biases = Counter(node.input[2] for node in graph.node if node.op_type == "Gemm" and len(node.input) > 2)
    for tensor in graph.initializer:
        if len(tensor.dims) == 2 and tensor.dims[0] == 1 and uses[tensor.name] == biases[tensor.name] > 0:
            del tensor.dims[0]
