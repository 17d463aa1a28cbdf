"""What goes in and out of a file of PyTorch's: types and shapes, which its scripts do not keep and its programs hold in their graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fettle.api.reasons import Reason
from fettle.api.signature import BY_NUMPY, BY_V2, Signature, Tensor
from fettle.api.source import InputSpec
from fettle.api.text import quoted
from fettle.errors import RuntimeFailure, SourceError
from fettle.runtimes.base import zeros
from fettle.runtimes.torchscript import Program, named_outputs, to_array, to_tensor

BATCH = 2  # in examples: a size of 1 would be taken for one that is always 1
# Sizes tried for a dimension that varies, until the model runs: convolutions need a least length.
SIZES = (16, 128, 1024, 16384)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Boundary:
    """The signature, outputs of varying sizes throughout, and what the dimensions of each input are called, where they are."""

    signature: Signature
    dimensions: Mapping[str, tuple[str, ...]]


def boundary(program: Program, specs: Sequence[InputSpec]) -> Boundary:
    """What `program` takes and answers, found by running it. Raises SourceError: InvalidSpec, UnsupportedModel."""
    given = {spec.name: spec.shape for spec in specs if spec.shape is not None}
    if program.exported is None:
        inputs = script_inputs(program, specs)
        shapes = {tensor.name: given[tensor.name] for tensor in inputs.inputs}
    else:
        inputs, kept = _export_inputs(program)
        shapes = {**kept, **{name: shape for name, shape in given.items() if name in kept}}
    _, answer = first_that_runs(program, inputs, shapes)
    outputs = tuple(
        _output(name, tensor) for name, tensor in zip(names_of(answer), named_outputs(answer).values(), strict=True)
    )
    dimensions = {name: tuple(str(size) for size in shape) for name, shape in shapes.items() if name in given}
    return Boundary(Signature(inputs=inputs.inputs, outputs=outputs), dimensions)


def _output(name: str, tensor: torch.Tensor) -> Tensor:
    return Tensor(name=name, dtype=_dtype(tensor), shape=(-1,) * tensor.ndim)


def _dtype(tensor: torch.Tensor) -> str:
    return BY_NUMPY[to_array(torch.zeros(1, dtype=tensor.dtype)).dtype.name].v2


def _export_inputs(program: Program) -> tuple[Signature, dict[str, tuple[int | str, ...]]]:
    """The inputs of an exported program, as its graph holds them; in their shapes, sizes that vary by PyTorch's names for them."""
    values = {node.name: node.meta.get("val") for node in program.exported.graph.nodes}
    shapes: dict[str, tuple[int | str, ...]] = {
        name: tuple(size if isinstance(size, int) else str(size) for size in values[name].shape)
        for name in program.inputs
    }
    tensors = [
        Tensor(
            name=name, dtype=_dtype(values[name]), shape=tuple(size if isinstance(size, int) else -1 for size in shape)
        )
        for name, shape in shapes.items()
    ]
    return Signature(inputs=tuple(tensors), outputs=()), shapes


def outputs_of_export(exported: Any) -> tuple[str, ...]:
    """Names of a program's outputs, from the structure of its answer."""
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    slots = [spec.arg for spec in exported.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    leaves = [slot.value if hasattr(slot, "value") else values[slot.name] for slot in slots]
    return names_of(torch.utils._pytree.tree_unflatten(leaves, exported.call_spec.out_spec))


def names_of(answer: Any) -> tuple[str, ...]:
    """Names of the tensors of an answer. Raises SourceError (UnsupportedModel) for what is no tensor of real numbers."""
    try:
        return tuple(named_outputs(answer))
    except RuntimeFailure as error:
        raise SourceError(error.message, reason=error.reason) from error


def script_inputs(program: Program, specs: Sequence[InputSpec]) -> Signature:
    """The inputs of a script as `source.inputs` describes them: an archive keeps only their names. Raises SourceError (InvalidSpec)."""
    given = {spec.name: spec for spec in specs}
    unknown = sorted(set(given) - set(program.inputs))
    names = [name for name in program.inputs if name in given]
    needed = program.inputs[: len(program.inputs) - program.optional]
    lacking = undescribed(needed, given)
    if unknown or lacking or tuple(names) != program.inputs[: len(names)]:
        example = f'{{name: {[*lacking, *program.inputs, "x"][0]}, dtype: FP32, shape: ["N", 3, 224, 224]}}'
        message = (
            f"TorchScript does not store the types of its inputs: source.inputs must give dtype and shape of {', '.join(program.inputs)}, "
            f"such as {example}" + (f"; the model has no input {', '.join(unknown)}" if unknown else "")
        )
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    return tensors_of(names, given)


def undescribed(names: Sequence[str], given: Mapping[str, InputSpec]) -> list[str]:
    """The inputs of `names` for which `given` lacks the data type or the shape."""
    return [name for name in names if name not in given or given[name].dtype is None or given[name].shape is None]


def tensors_of(names: Sequence[str], given: Mapping[str, InputSpec]) -> Signature:
    """The inputs `names` with the types and shapes of `given`. Raises SourceError (InvalidSpec)."""
    tensors = []
    for name in names:
        spec = given[name]
        if spec.dtype is None or spec.shape is None or spec.dtype not in BY_V2 or spec.dtype == "BYTES":
            message = f"source.inputs of {name!r}: a PyTorch tensor requires dtype (FP32, INT64, …) and shape"
            raise SourceError(message, reason=Reason.INVALID_SPEC)
        sizes = tuple(size if isinstance(size, int) and size > 0 else -1 for size in spec.shape)
        tensors.append(Tensor(name=name, dtype=spec.dtype, shape=sizes))
    return Signature(inputs=tuple(tensors), outputs=())


def first_that_runs(
    program: Program,
    inputs: Signature,
    shapes: dict[str, tuple[int | str, ...]],
    frozen: Mapping[str, float] | None = None,
    sizes: Sequence[int] = SIZES,
) -> tuple[list[torch.Tensor], Any]:
    """Example inputs, all zeros but for those that are `frozen` to a value, and the answer. Raises SourceError (UnsupportedModel)."""
    varying = any(not isinstance(size, int) and size != "N" for shape in shapes.values() for size in shape)
    fault = ""
    for size in sizes if varying else sizes[:1]:
        chosen = {name: [_size(one, size) for one in shape] for name, shape in shapes.items()}
        arrays = zeros(inputs, chosen)
        for name, value in (frozen or {}).items():
            arrays[name].fill(value)
        example = [to_tensor(array) for array in arrays.values()]
        try:
            with torch.inference_mode():
                return example, program.call(example)
        except Exception as error:  # the library raises what it likes; the fault is told below
            fault = fault or quoted(str(error).rpartition("RuntimeError: ")[2])
            log.info("does not run with %s", chosen, exc_info=True)
    described = {tensor.name: list(shapes[tensor.name]) for tensor in inputs.inputs}
    message = f"the model does not run on zeros of the shapes that source.inputs gives, {described}: {fault}"
    raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)


def _size(wanted: int | str, varying: int) -> int:
    if isinstance(wanted, int):
        return wanted if wanted > 0 else varying
    return BATCH if wanted == "N" else varying
