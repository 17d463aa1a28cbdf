"""Reading and writing ONNX files: their graph, the files that belong to them, and their inputs and outputs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from google.protobuf.message import Message
from onnx.external_data_helper import uses_external_data
from pydantic import ValidationError

from fettle.api.reasons import Reason
from fettle.api.signature import BY_ONNX, Signature, Tensor
from fettle.api.source import InputSpec
from fettle.api.text import clip, quoted
from fettle.errors import FettleError, SourceError
from fettle.optimizer.onnx import external

# protobuf cannot serialize above 2 GiB: larger models keep their weights outside the graph through every step.
INLINE_LIMIT = 1_500_000_000
# What ONNX Runtime reads (1.31): https://onnxruntime.ai/docs/reference/compatibility.html
READABLE_OPSET = 26
READABLE_IR = 13
FREE_INITIALIZERS_IR = 4  # before, every weight had to be listed among the inputs
STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

# IR version that came with an opset, so that a file asks for no newer reader than its operators do.
_IR_OF_OPSET = ((9, 4), (10, 5), (11, 6), (12, 7), (15, 8), (19, 9), (21, 10), (23, 11), (24, 12), (26, 13))


def read(path: Path) -> onnx.ModelProto:
    """The graph at `path`, without loading weights from other files. Raises SourceError (SourceCorrupted)."""
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no typed home
        raise SourceError(f"{path.name} is damaged: {error}", reason=Reason.SOURCE_CORRUPTED) from error
    fault = _fault(model)
    if fault is not None:
        raise SourceError(f"{path.name} is damaged or not an ONNX model: {fault}", reason=Reason.SOURCE_CORRUPTED)
    return model


def _fault(model: onnx.ModelProto) -> str | None:
    """What this model lacks that every model needs, as text; None if it is complete."""
    if not model.ByteSize():
        return "it is empty"
    if not (model.graph.node or model.graph.output):
        return "it has no graph"
    if model.ir_version < 1:
        return "it has no format version (ir_version)"
    if not model.opset_import:
        return "it has no operator version (opset_import); onnx.helper.make_model writes it"
    garbled = _garbled(model)
    return f"its {garbled} contains bytes that are not text" if garbled is not None else None


def _garbled(message: Message) -> str | None:
    """The field whose text is not UTF-8, if any. Protobuf returns such text as bytes, which code that expects a name cannot handle."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for entry in value if field.is_repeated else (value,):
            if field.type == field.TYPE_MESSAGE:
                inner = _garbled(entry)
                if inner is not None:
                    return f"{field.name}.{inner}"
            elif not isinstance(entry, str):
                return str(field.name)
    return None


def load(path: Path) -> onnx.ModelProto:
    """The graph at `path`. Weights are loaded into it if they are smaller than INLINE_LIMIT, and stay in their files otherwise.

    Raises SourceError (SourceCorrupted) if files do not contain the weights that the graph expects in them.
    """
    model = read(path)
    external_files(model)  # none leaves the folder
    outside = [tensor for tensor in _tensors(model) if uses_external_data(tensor)]
    parts = [external.part(tensor, path.parent) for tensor in outside]
    small = path.stat().st_size + sum(part.length for part in parts) < INLINE_LIMIT
    for tensor, part in zip(outside, parts, strict=True):
        if small:
            external.take_in(tensor, part, path.parent)
        else:
            external.state(tensor, part)
    return model


@contextmanager
def holding_together(model: onnx.ModelProto) -> Iterator[None]:
    """A context for reading an unchecked graph: an exception in it is the file's fault if onnx's checker also finds an error.

    Raises SourceError (SourceCorrupted) with the checker's message.
    """
    try:
        yield
    except (FettleError, OSError, MemoryError):
        raise
    except Exception as error:
        try:
            onnx.checker.check_model(model)
        except Exception as fault:  # noqa: BLE001  the checker raises what it likes
            message = f"the graph is inconsistent: {quoted(fault)}"
            raise SourceError(message, reason=Reason.SOURCE_CORRUPTED) from error
        raise


def save(model: onnx.ModelProto, path: Path, external_from: Path | None = None, *, link: bool = True) -> None:
    """Write `model` to `path`, with the same bytes for the same model. External weight files are taken from the folder `external_from`.

    They are linked, or copied if onnx itself has to read them, because it refuses hard links. Raises SourceError if such a file has the same
    name as `path`, because writing would then change the source through the link.
    """
    for name in external_files(model):
        target = path.parent / name
        if target == path:
            message = (
                f"the model's weights are in a file named {name!r}, a name that its graph must have: rename that file"
            )
            raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
        if external_from is not None and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            (os.link if link else shutil.copyfile)(external_from / name, target)
    path.write_bytes(model.SerializeToString(deterministic=True))


def external_files(model: onnx.ModelProto) -> list[str]:
    """Relative paths of the external files with the model's weights. Raises SourceError for a path outside of the model's folder."""
    names: set[str] = set()
    for tensor in _tensors(model):
        if uses_external_data(tensor):
            names.add(next((entry.value for entry in tensor.external_data if entry.key == "location"), ""))
    for name in names:
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
            message = f"external data at {name!r}: the location must be relative and inside the model's folder"
            raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    return sorted(names)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that may have external data: initializers and constants, also sparse ones, and in functions and branches."""
    for graph in graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            yield from _attribute_tensors(node)
    for function in model.functions:
        for node in function.node:
            yield from _attribute_tensors(node)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute; `default` where it has none of that name."""
    return next((onnx.helper.get_attribute_value(given) for given in node.attribute if given.name == name), default)


def _attribute_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph` and every branch and loop body in it."""
    yield graph
    for body in bodies(graph):
        yield from graphs(body)


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The branches and loop bodies of the graph's own nodes."""
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, including those in branches, loop bodies and functions."""
    for graph in graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def passed(graph: onnx.GraphProto) -> set[str]:
    """The outputs that are unchanged inputs."""
    origin = {value.name: value.name for value in inputs(graph)}
    for node in graph.node:  # in order: what a node reads was made before it
        if node.op_type == "Identity" and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
    return {value.name for value in graph.output if value.name in origin}


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators that the model uses."""
    return max((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), default=1)


def ir_version_for(opset_version: int) -> int:
    """The oldest IR version with that opset, but not newer than the runtime can read."""
    return next((ir for last, ir in _IR_OF_OPSET if opset_version <= last), READABLE_IR)


def inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must provide."""
    defaults = set(optional_inputs(graph))
    return [value for value in graph.input if value.name not in defaults]


def optional_inputs(graph: onnx.GraphProto) -> list[str]:
    """The optional inputs: an initializer of the same name is their default. Older files list every weight as such an input."""
    stored = {tensor.name for tensor in graph.initializer} | {tensor.values.name for tensor in graph.sparse_initializer}
    return [value.name for value in graph.input if value.name in stored]


def signature(model: onnx.ModelProto) -> Signature:
    """The inputs and outputs of a model with plain tensors, without a batch axis yet. Raises SourceError (UnsupportedModel) for other tensors."""
    return Signature(
        inputs=tuple(tensor(value) for value in inputs(model.graph)),
        outputs=tuple(tensor(value) for value in model.graph.output),
    )


def tensor(value: onnx.ValueInfoProto) -> Tensor:
    """An input or output. Raises SourceError (UnsupportedModel)."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        kind_name = f"of type {kind.removesuffix('_type')}" if kind is not None else "of no type"
        message = f"{value.name!r} is {kind_name}; inputs and outputs must be plain tensors"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    row = BY_ONNX.get(value.type.tensor_type.elem_type)
    if row is None:
        kind_name = external.type_name(value.type.tensor_type.elem_type)
        message = f"{value.name!r} is a tensor of {kind_name}, which the serving protocol does not support"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    if "\0" in value.name:  # no archive of arrays can hold it
        message = f"the tensor {clip(value.name, 80)!r} cannot be served: its name contains a NUL"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    try:
        return Tensor(name=value.name, dtype=row.v2, shape=tuple(size for size, _ in dimensions(value)))
    except ValidationError as error:
        fault = error.errors()[0]
        message = f"the tensor {clip(value.name, 80)!r} cannot be served: {fault['loc'][0]}: {fault['msg']}"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL) from error


def dimensions(value: onnx.ValueInfoProto) -> list[tuple[int, str]]:
    """The size (or -1) and the name (or '') of each dimension."""
    shape = value.type.tensor_type.shape
    return [(axis.dim_value if axis.dim_value > 0 else -1, axis.dim_param) for axis in shape.dim]


def has_rank(value: onnx.ValueInfoProto) -> bool:
    """Whether the file specifies the tensor's number of dimensions."""
    has: bool = value.type.tensor_type.HasField("shape")
    return has


def apply_input_specs(model: onnx.ModelProto, specs: Iterable[InputSpec]) -> bool:
    """Apply the shapes in `source.inputs` to the graph; returns whether anything changed.

    Raises SourceError (InvalidSpec) if the two contradict each other, or if the rank of an input is unknown and not given.
    """
    changed = False
    known = {value.name: value for value in inputs(model.graph)}
    for spec in specs:
        value = known.get(spec.name)
        if value is None:
            message = f"source.inputs names {spec.name!r}; the model has the inputs {sorted(known)}"
            raise SourceError(message, reason=Reason.INVALID_SPEC)
        if spec.dtype is not None and spec.dtype != tensor(value).dtype:
            message = (
                f"source.inputs gives {spec.name!r} the type {spec.dtype}; in the model it is {tensor(value).dtype}"
            )
            raise SourceError(message, reason=Reason.INVALID_SPEC)
        if spec.shape is not None:
            changed |= _apply_shape(value, spec.shape)
    for value in known.values():
        if value.type.HasField("tensor_type") and not has_rank(value):
            message = f"the model does not define the number of dimensions of {value.name!r}: set source.inputs[].shape"
            raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    return changed


def _apply_shape(value: onnx.ValueInfoProto, wanted: tuple[int | str, ...]) -> bool:
    declared = dimensions(value)
    fits = len(declared) == len(wanted) and all(
        size == -1 or (isinstance(want, int) and want == size) or want == size
        for (size, _), want in zip(declared, wanted, strict=True)
    )
    if has_rank(value) and not fits:
        message = f"source.inputs gives {value.name!r} the shape {list(wanted)}; in the model it is {[size for size, _ in declared]}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    before = value.type.tensor_type.shape.SerializeToString(deterministic=True) if has_rank(value) else None
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for want in wanted:
        axis = shape.dim.add()
        if isinstance(want, int) and want > 0:
            axis.dim_value = want
        else:
            axis.dim_param = str(want)
    after: bytes = shape.SerializeToString(deterministic=True)
    return before != after
