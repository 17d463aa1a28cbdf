"""What a quantizer must be told of a graph: which nodes stay in float32, and what it would confuse: names, and biases with two axes."""

from __future__ import annotations

from collections import Counter

import onnx

from fettle.optimizer.onnx import model

RECURRENT = frozenset({"LSTM", "GRU", "RNN", "Scan", "Loop"})
CLAMPS = ("Relu", "Clip")


def before_recurrent(graph: onnx.GraphProto) -> list[str]:
    """Names of recurrent nodes and of all that feeds them: int8 there breaks whole streams though single steps look fine."""
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
    """Names of Relu and Clip nodes beside which a branch or a loop body reads.

    The tool takes such a node out where a range clamps as well, but inside a body it puts no range, so there nothing would clamp.
    """
    read = {name for body in model.graphs(graph) if body is not graph for node in body.node for name in node.input}
    clamps = (node for node in graph.node if node.op_type in CLAMPS)
    return [node.name for node in clamps if read & {*node.input, *node.output}]


def keep_apart(graph: onnx.GraphProto) -> None:
    """Rename weights of which another tensor has the name with a number behind it.

    The tool calls a second copy of the weight `w` `w2`, whoever has that name already, and writes a graph that loads nowhere.
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
    """Give biases of Gemm one axis: [1, n] adds the same as [n], and the tool takes a bias's first axis for its channels.

    Graph optimizers write such biases where they join a MatMul and an Add.
    """
    uses = Counter(name for body in model.graphs(graph) for node in body.node for name in node.input)
    uses.update(value.name for value in graph.output)
    biases = Counter(node.input[2] for node in graph.node if node.op_type == "Gemm" and len(node.input) > 2)
    for tensor in graph.initializer:
        if len(tensor.dims) == 2 and tensor.dims[0] == 1 and uses[tensor.name] == biases[tensor.name] > 0:
            del tensor.dims[0]
