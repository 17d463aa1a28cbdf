"""TensorFlow 1: graphs with their weights frozen into them (.pb), of which some tensors are the inputs and outputs.

Converted by tf2onnx, judged by TensorFlow in a session, as such graphs were run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx

from fettle.api.reasons import Reason
from fettle.api.source import InputSpec
from fettle.api.text import joined, quoted
from fettle.api.vocabulary import FormatName
from fettle.errors import SourceError
from fettle.optimizer.sources import tensorflow
from fettle.optimizer.sources.base import Inputs
from fettle.optimizer.sources.framework import FrameworkFormat, LoadedModel
from fettle.runtimes.base import Arrays

# The first field of a GraphDef is a node, whose first fields are its name and its operator.
_FIRST_NODE = re.compile(rb"\n[\x80-\xff]{0,4}[\x00-\x7f]\n[\x80-\xff]?[\x01-\x7f][A-Za-z0-9.][\w./>\\-]*(?:\x12|\Z)")
_VARIABLES = ("Variable", "VariableV2", "VarHandleOp")
_PLACEHOLDER, _OPTIONAL = "Placeholder", "PlaceholderWithDefault"
_NO_OUTPUTS = (_PLACEHOLDER, _OPTIONAL, "Const", "Assert", "Print")
_MOST_NAMED = 8


class FrozenGraph(FrameworkFormat):
    """One file with a graph and its weights."""

    name = FormatName.FROZEN_GRAPH
    title = "TensorFlow frozen graphs"
    framework = "TensorFlow"
    modules = ("tensorflow", "tf2onnx")
    extra = "tensorflow"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By its first node."""
        return _FIRST_NODE.match(head) is not None

    def load(self, path: Path, inputs: Inputs) -> LoadedModel:
        """See `FrameworkFormat.load`."""
        graph = _imported(path)
        outputs = _outputs(graph, inputs.outputs)
        return _Loaded(path, graph, _inputs(graph, outputs, inputs.by_name), outputs, inputs.by_name)


FORMATS = (FrozenGraph(),)


def _imported(path: Path) -> Any:
    """The graph. Raises SourceError: UnsupportedModel for one with variables, UnsupportedOperator; DecodeError for a damaged file."""
    tensorflow.quiet()
    import tensorflow as tf

    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(path.read_bytes())
    variables = [node.name for node in definition.node if node.op in _VARIABLES]
    if variables:
        message = (
            f"{path.name} is not frozen: the values of its {len(variables)} variables, such as {variables[0]}, are in a checkpoint; freeze it "
            "with tf.compat.v1.graph_util.convert_variables_to_constants"
        )
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.import_graph_def(definition, name="")
    except Exception as error:  # NotFoundError, ValueError: by the version of the graph
        known = tensorflow.unknown_operator(path, error)
        if known is None:
            raise
        raise known from error
    return graph


# --------------------------------------------------------------------------------------------------------------- its boundary


def _outputs(graph: Any, wanted: Sequence[str]) -> dict[str, Any]:
    """The tensors of the outputs by name: those that are wanted, else the only one that nothing takes. Raises SourceError (InvalidSpec)."""
    last = [
        tensor
        for operation in graph.get_operations()
        if operation.type not in _NO_OUTPUTS and not any(tensor.consumers() for tensor in operation.outputs)
        for tensor in operation.outputs
    ]
    found = {name: _tensor(graph, name) for name in wanted or map(_name, last)}
    unknown = [name for name, tensor in found.items() if tensor is None]
    if unknown or (len(found) != 1 and not wanted):
        fault = f"the graph has no tensor {joined(unknown)}" if unknown else "a frozen graph does not tell its outputs"
        message = f"{fault}: set source.outputs to those of the model; it ends in {_listed(map(_name, last))}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    return found


def _inputs(graph: Any, outputs: Mapping[str, Any], given: Mapping[str, InputSpec]) -> dict[str, Any]:
    """The tensors of the inputs by name, in the graph's order: those that are given, and the placeholders that the outputs need besides.

    Raises SourceError (InvalidSpec).
    """
    cut = {name: _tensor(graph, name) for name in given}
    unknown = [name for name, tensor in cut.items() if tensor is None]
    placeholders = [operation for operation in graph.get_operations() if operation.type in (_PLACEHOLDER, _OPTIONAL)]
    told = f"its placeholders are {_listed(map(_described, placeholders))}"
    if unknown:
        message = f"source.inputs names {joined(unknown)}, which the graph does not have; {told}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    reached = _reached(outputs.values(), {tensor.name for tensor in cut.values()})
    unused = [name for name, tensor in cut.items() if tensor.name not in reached]
    if unused:
        message = f"source.inputs names {joined(unused)}, on which the outputs {joined(outputs)} do not depend; {told}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    names = {tensor.name: name for name, tensor in cut.items()}
    needed = [operation for operation in placeholders if operation.type == _PLACEHOLDER]
    names |= {
        f"{one.name}:0": one.name for one in needed if f"{one.name}:0" in reached and f"{one.name}:0" not in names
    }
    if not names:
        message = f"the outputs {joined(outputs)} do not depend on any placeholder; {told}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    tensors = (tensor for operation in graph.get_operations() for tensor in operation.outputs)
    return {names[tensor.name]: tensor for tensor in tensors if tensor.name in names}


def _reached(outputs: Iterable[Any], cut: set[str]) -> set[str]:
    """Names of the tensors that the outputs are computed from; nothing behind a `cut` one."""
    waiting, reached = list(outputs), set()
    while waiting:
        tensor = waiting.pop()
        if tensor.name not in reached:
            reached.add(tensor.name)
            waiting += () if tensor.name in cut else tensor.op.inputs
    return reached


def _tensor(graph: Any, name: str) -> Any:
    """The tensor that a person calls so: by its own name, or by that of its node. None where there is none."""
    try:
        return graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
    except (KeyError, ValueError, TypeError):
        return None


def _name(tensor: Any) -> str:
    return str(tensor.name).removesuffix(":0")


def _described(placeholder: Any) -> str:
    """'image float32 [N, 224, 224, 3]'."""
    shape = placeholder.outputs[0].shape
    sizes = (
        "of any shape" if shape.rank is None else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
    )
    return f"{placeholder.name} ({placeholder.outputs[0].dtype.name} {sizes})"


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    more = [f"{len(known) - _MOST_NAMED} more"] if len(known) > _MOST_NAMED else []
    return quoted(joined([*known[:_MOST_NAMED], *more] or ["none"]), 350)


# ---------------------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class _Loaded:
    """`inputs` and `outputs`: tensors of `graph`, by the names that they have at the boundary."""

    path: Path
    graph: Any
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    specs: Mapping[str, InputSpec]

    @cached_property
    def _session(self) -> Any:
        import tensorflow as tf

        return tf.compat.v1.Session(graph=self.graph)

    def to_onnx(self) -> onnx.ModelProto:
        """See `LoadedModel.to_onnx`. Raises SourceError, ConversionError."""
        words = ["--graphdef", str(self.path)]
        words += ["--inputs", ",".join(f"{tensor.name}{self._shape(name)}" for name, tensor in self.inputs.items())]
        words += ["--outputs", ",".join(tensor.name for tensor in self.outputs.values())]
        words += ["--rename-inputs", ",".join(self.inputs), "--rename-outputs", ",".join(self.outputs)]
        given = {tensor.op.name for tensor in self.inputs.values()}
        optional = [one.name for one in self.graph.get_operations() if one.type == _OPTIONAL]
        for option, names in (("--ignore_default", given), ("--use_default", set(optional) - given)):
            chosen = [name for name in optional if name in names]
            words += [option, ",".join(chosen)] if chosen else []
        return tensorflow.read_by_tf2onnx(*words)

    def _shape(self, name: str) -> str:
        """What tf2onnx is told of a shape that the graph does not tell. Raises SourceError (InvalidSpec)."""
        if self.inputs[name].shape.rank is not None:
            return ""
        spec = self.specs.get(name)
        if spec is None or spec.shape is None:
            message = f'the graph does not tell the shape of its input {name}: set source.inputs[].shape, with "N" for the batch'
            raise SourceError(message, reason=Reason.INVALID_SPEC)
        return f"[{','.join(str(size) if isinstance(size, int) and size > 0 else '-1' for size in spec.shape)}]"

    def run(self, inputs: Arrays) -> Arrays:
        """See `LoadedModel.run`."""
        fetches = {name: tensor.name for name, tensor in self.outputs.items()}
        answers: Arrays = self._session.run(fetches, {self.inputs[name].name: array for name, array in inputs.items()})
        return answers
