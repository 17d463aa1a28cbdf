"""What a loop does anew in every iteration although it never changes.

Exporters pass weights into loops as values that are carried from one iteration to the next. A runtime copies them each time, and takes them for
no constants that it could lay out for its kernels. A body may read what is around it, so they need not be carried. And the product of one step of
a sequence with such a weight is a row of the product of the whole sequence, which reads the weight once instead of once in every iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy

import onnx
from onnx import helper, shape_inference

from fettle.optimizer.onnx import model as onnx_model

INPUTS, OUTPUTS = 2, 1  # of a body, before the values that it carries: iteration and condition, and the condition


def lighten_loops(model: onnx.ModelProto) -> onnx.ModelProto:
    """`free_loops`, and then what each step of a sequence is multiplied with is multiplied with the whole sequence before the loop."""
    freed = free_loops(model)
    sequences = _sequences(freed)
    return _changed(freed, lambda graph, node: _hoisted(graph, node, sequences))


def free_loops(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every Loop without the values that it carries unchanged. The argument comes back where there is none."""
    return _changed(model, _freed)


def _changed(model: onnx.ModelProto, change: Callable[[onnx.GraphProto, onnx.NodeProto], int]) -> onnx.ModelProto:
    """A copy in which each Loop is changed; the argument where nothing is. `change` gets the graph around the Loop, and counts its changes."""
    copy = deepcopy(model)
    loops = [(graph, node) for graph in onnx_model.graphs(copy.graph) for node in graph.node if node.op_type == "Loop"]
    return copy if sum([change(graph, node) for graph, node in loops]) else model


def _body(node: onnx.NodeProto) -> onnx.GraphProto:
    body: onnx.GraphProto = onnx_model.attribute(node, "body")
    return body


def _freed(graph: onnx.GraphProto, node: onnx.NodeProto) -> int:
    """Take the values that never change out of a Loop."""
    body = _body(node)
    own, given = set(_defined(body)), {value.name for value in graph.output}
    # Bodies may use the names of what comes after them.
    taken = {name for inner in list(onnx_model.graphs(graph))[1:] for name in _named(inner) if name}
    outputs = [value.name for value in body.output]
    places = []
    for place, outer in enumerate(node.input[INPUTS : INPUTS + len(node.output)]):
        inner, left = body.input[INPUTS + place].name, node.output[place]
        same = _origin(body, outputs[OUTPUTS + place]) == inner
        elsewhere = inner in (*outputs[: OUTPUTS + place], *outputs[OUTPUTS + place + 1 :])
        if same and outer and outer not in own and left not in given and left not in taken and not elsewhere:
            places.append(place)
    if len(places) == len(node.output):
        places.pop()  # a Loop has at least one output
    _rename(body, {body.input[INPUTS + place].name: node.input[INPUTS + place] for place in places})
    _rename(graph, {node.output[place]: node.input[INPUTS + place] for place in places if node.output[place]})
    for place in reversed(places):
        del body.input[INPUTS + place], body.output[OUTPUTS + place], node.input[INPUTS + place], node.output[place]
    _drop_unused(body)
    return len(places)


def _hoisted(graph: onnx.GraphProto, node: onnx.NodeProto, sequences: Collection[str]) -> int:
    """Multiply sequences around the Loop with stored weights once, instead of each of their steps in its body."""
    body = _body(node)
    own = set(_defined(body))
    stored = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    steps = {
        one.output[0]: one
        for one in body.node
        if one.op_type == "Gather"
        and one.input[0] in sequences
        and one.input[0] not in own
        and not any(a.i for a in one.attribute if a.name == "axis")
    }
    products = [
        one
        for one in body.node
        if one.op_type == "MatMul"
        and one.input[0] in steps
        and one.input[1] not in own
        and stored.get(one.input[1]) == 2
    ]
    for product in products:
        step = steps[product.input[0]]
        whole = f"{node.output[-1]}_{product.output[0]}"  # bodies use one another's names
        outside = helper.make_node("MatMul", [step.input[0], product.input[1]], [whole], name=whole)
        graph.node.insert(list(graph.node).index(node), outside)
        row = helper.make_node("Gather", [whole, step.input[1]], list(product.output), name=product.name, axis=0)
        product.CopyFrom(row)
    _drop_unused(body)
    return len(products)


def _sequences(model: onnx.ModelProto) -> set[str]:
    """Values of two axes or more, of which a step is a row, that follow from the model's inputs: of a constant table few rows may be read."""
    varying: set[str] = set()
    rows: set[str] = set()
    for graph in onnx_model.graphs(shape_inference.infer_shapes(model).graph):
        varying.update(value.name for value in graph.input)
        for node in graph.node:
            if not varying.isdisjoint(_read(node)):
                varying.update(node.output)
        known = (*graph.input, *graph.value_info)
        rows.update(value.name for value in known if len(value.type.tensor_type.shape.dim) > 1)
    return varying & rows


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Names that the node, or a node of a body in it, reads."""
    yield from node.input
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in body.node:
                yield from _read(inner)


def _origin(body: onnx.GraphProto, name: str) -> str:
    """The value that `name` is a copy of."""
    made = {output: node for node in body.node for output in node.output}
    while (node := made.get(name)) is not None and node.op_type == "Identity":
        name = node.input[0]
    return name


def _defined(body: onnx.GraphProto) -> Iterator[str]:
    """Names that the body, or a body in it, gives to values of its own."""
    for graph in onnx_model.graphs(body):
        yield from _named(graph)


def _named(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that the graph itself gives."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (output for node in graph.node for output in node.output)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Read other values, in `graph` and the bodies in it."""
    for inner in onnx_model.graphs(graph):
        for node in inner.node:
            for place, name in enumerate(node.input):
                if name in names:
                    node.input[place] = names[name]


def _drop_unused(body: onnx.GraphProto) -> None:
    """Remove nodes of the body that nothing reads any more."""
    while True:
        read = {name for graph in onnx_model.graphs(body) for node in graph.node for name in node.input}
        read |= {value.name for graph in onnx_model.graphs(body) for value in graph.output}
        dead = [node for node in body.node if not read & set(node.output)]
        if not dead:
            return
        for node in dead:
            body.node.remove(node)
