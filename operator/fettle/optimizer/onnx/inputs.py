"""What a graph tells about the values its inputs take: rows of the tables they index, words its encoders know, masks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from fettle.optimizer.onnx import model as onnx_model

# Operators that pass values on unchanged, so that what is behind them still speaks of the input.
_PASSING = frozenset(
    [
        "Cast",
        "Identity",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Flatten",
        "Transpose",
        "Slice",
        "Concat",
        "Expand",
        "Split",
    ]
)
# Operators that know what to do with a value that is missing (NaN), and those that keep it one.
_FOR_MISSING = frozenset(["Imputer", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"])
_KEEP_MISSING = _PASSING | {"Add", "ArrayFeatureExtractor", "Div", "FeatureVectorizer", "Mul", "Scaler", "Sub"}
_TABLES = {"Gather": (0, 1), "GatherND": (0, 1), "GatherElements": (0, 1), "Embedding": (0, 1)}


@dataclass(frozen=True)
class Hint:
    """What is known of one input: values below `rows`, one of `words`, how often a loop runs, the names of its dimensions.

    `missing`: values may be missing (NaN), as trees know branches for them.
    """

    rows: int | None = None
    trip_count: bool = False
    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    dimensions: tuple[str, ...] = ()
    missing: bool = False


def hints(model: onnx.ModelProto) -> dict[str, Hint]:
    """A hint for each input of the graph."""
    graph = model.graph
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    lengths = _first_lengths(graph)
    return {
        value.name: _hint(value, consumers, lengths)
        for value in onnx_model.inputs(graph)
        if value.type.HasField("tensor_type")
    }


def _first_lengths(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Shape of every stored tensor."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if value is not None:
                shapes[node.output[0]] = tuple(value.dims)
    return shapes


def _hint(
    value: onnx.ValueInfoProto, consumers: dict[str, list[onnx.NodeProto]], shapes: dict[str, tuple[int, ...]]
) -> Hint:
    rows: list[int] = []
    words: list[str] = []
    numbers: list[int] = []
    trip_count = False
    seen: set[str] = set()
    waiting = [value.name]
    while waiting:
        name = waiting.pop()
        for node in consumers[name]:
            rows.extend(_rows(node, name, shapes))
            words.extend(_words(node))
            numbers.extend(_numbers(node))
            trip_count = trip_count or (node.op_type == "Loop" and node.input[0] == name)
            if node.op_type in _PASSING:
                fresh = [output for output in node.output if output not in seen]
                seen.update(fresh)
                waiting.extend(fresh)
    dimensions = tuple(name for _, name in onnx_model.dimensions(value))
    return Hint(
        rows=min(rows, default=None),
        trip_count=trip_count,
        words=tuple(dict.fromkeys(words)),
        numbers=tuple(dict.fromkeys(numbers)),
        dimensions=dimensions,
        missing=_may_miss(value.name, consumers),
    )


def _may_miss(name: str, consumers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether an operator that `name` leads to takes missing values."""
    seen = {name}
    waiting = [name]
    while waiting:
        for node in consumers[waiting.pop()]:
            if node.op_type in _FOR_MISSING:
                return True
            if node.op_type in _KEEP_MISSING:
                fresh = [output for output in node.output if output not in seen]
                seen.update(fresh)
                waiting.extend(fresh)
    return False


def _rows(node: onnx.NodeProto, name: str, shapes: dict[str, tuple[int, ...]]) -> list[int]:
    """Rows of the table that `name` indexes in `node`."""
    if node.op_type in _TABLES:
        table, indices = _TABLES[node.op_type]
        if len(node.input) > indices and node.input[indices] == name and node.input[table] in shapes:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            shape = shapes[node.input[table]]
            return [shape[axis]] if -len(shape) <= axis < len(shape) else []
    return []


def _words(node: onnx.NodeProto) -> list[str]:
    known = (
        "keys_strings",
        "cats_strings",
        "classlabels_strings",
        "classes_strings",
        "pool_strings",
        "string_vocabulary",
    )
    words = [word for a in node.attribute if a.name in known for word in a.strings]
    stored = [a.t for a in node.attribute if a.name == "keys_tensor" and a.t.data_type == onnx.TensorProto.STRING]
    words.extend(word for tensor in stored for word in tensor.string_data)
    return [word.decode(errors="replace") for word in words]


def _numbers(node: onnx.NodeProto) -> list[int]:
    stored = [a.t for a in node.attribute if a.name == "keys_tensor" and a.t.data_type == onnx.TensorProto.INT64]
    listed = [int(one) for a in node.attribute if a.name in ("keys_int64s", "cats_int64s") for one in a.ints]
    return [*listed, *(int(one) for tensor in stored for one in numpy_helper.to_array(tensor).reshape(-1))]
