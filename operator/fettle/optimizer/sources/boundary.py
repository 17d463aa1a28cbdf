"""The boundary of a graph made plain: tensors in, tensors out, with the shapes and values that `source.inputs` gives."""

from __future__ import annotations

import logging
from collections.abc import Collection
from copy import deepcopy

import onnx

from fettle.api.reasons import Reason
from fettle.errors import SourceError
from fettle.optimizer.data.columns import listed
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx import portable
from fettle.optimizer.sources.base import Inputs, Plain

log = logging.getLogger(__name__)


def plain(original: onnx.ModelProto, inputs: Inputs) -> Plain:
    """`original` with a boundary of plain tensors. Raises SourceError: UnsupportedModel, InvalidSpec."""
    changes: list[str] = []
    model = portable.strip_zip_map(original)
    if model is not original:
        changes.append("ZipMap was removed: probabilities are a plain tensor; the portable form is the timed baseline")
    given = _given(original, inputs)
    if given:
        changes.append(
            f"the inputs {listed(given)} have a default value in the file; they are provided, so they stay inputs"
        )
    copied = deepcopy(portable.require_inputs(model, given))
    onnx_model.apply_input_specs(copied, inputs.specs)
    whole = onnx_model.signature(_with_output_shapes(copied))
    model = portable.freeze_inputs(copied, inputs.specs)
    if model is not copied:
        changes.append("inputs with a value were frozen; the portable form is the timed baseline")
    signature = onnx_model.signature(_with_output_shapes(model))
    if not signature.inputs or not signature.outputs:
        raise SourceError("the model needs at least one input and one output", reason=Reason.UNSUPPORTED_MODEL)
    return Plain(model, whole, signature, tuple(changes), _defaults_kept(original, given))


def with_given_inputs(model: onnx.ModelProto, inputs: Inputs) -> onnx.ModelProto:
    """`model`, in which the inputs that are given have no default value any more."""
    return portable.require_inputs(model, _given(model, inputs))


def _given(model: onnx.ModelProto, inputs: Inputs) -> list[str]:
    """Inputs with a default value that the items give or `source.inputs` names."""
    optional = onnx_model.optional_inputs(model.graph)
    if not optional:
        return []
    named = set(inputs.by_name) | set(inputs.columns())
    return [name for name in optional if name in named]


def _defaults_kept(model: onnx.ModelProto, given: Collection[str]) -> tuple[str, ...]:
    """A remark on default values that stay; none where the file had to list every weight among its inputs."""
    kept = [name for name in onnx_model.optional_inputs(model.graph) if name not in given]
    if not kept or model.ir_version < onnx_model.FREE_INITIALIZERS_IR:
        return ()
    return (
        f"inputs keep their default value, because neither the items nor source.inputs provide them: {listed(kept)}",
    )


def _with_output_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, with the shapes of outputs that the file leaves out, as far as they can be inferred."""
    values = [value for value in model.graph.output if value.type.HasField("tensor_type")]
    if all(onnx_model.has_rank(value) for value in values):
        return model
    try:
        return portable.infer_shapes(model)
    except Exception:
        log.info("output shapes could not be inferred", exc_info=True)
        return model
