"""int8 with NNCF on OpenVINO's own representation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov

from fettle.api.recipe import QuantizeStep
from fettle.api.vocabulary import QuantizePreset, RuntimeName
from fettle.errors import RecipeError
from fettle.optimizer.steps import Work
from fettle.optimizer.steps.layers import Scheme, partly
from fettle.optimizer.steps.openvino_switches import OpenVinoSwitches, products

# ONNX operators that a recipe may name -> what they become in OpenVINO.
_TYPES = {
    "Conv": ("Convolution", "GroupConvolution"),
    "ConvTranspose": ("ConvolutionBackpropData", "GroupConvolutionBackpropData"),
    "MatMul": ("MatMul",),
    "Gemm": ("MatMul",),
}
_RECURRENT = frozenset(
    ["LSTMSequence", "LSTMCell", "GRUSequence", "GRUCell", "RNNSequence", "RNNCell", "TensorIterator", "Loop"]
)


def static(work: Work[QuantizeStep]) -> Path:
    """Post-training quantization: symmetric weights per channel, ranges from the calibration items. Raises RecipeError."""
    return _saved(_quantized(work, ov.Core().read_model(work.entry), work.step.preset), work.folder)


def mixed(work: Work[QuantizeStep]) -> Path:
    """The same with asymmetric ranges of activations, where the layers that change too many answers stay in floating point.

    Where the tool's usual patterns lose too much, those for transformers are tried before any layer is ranked. Raises RecipeError.
    """
    # Read once: operations without a name of their own get another one at each reading.
    model = ov.Core().read_model(work.entry)
    presets = dict.fromkeys((work.step.preset, QuantizePreset.TRANSFORMER))
    schemes = [_scheme(work, model, preset) for preset in presets]
    return partly(work, RuntimeName.OPENVINO, lambda feed: products(model, feed), schemes).entry


def _scheme(work: Work[QuantizeStep], model: ov.Model, preset: QuantizePreset) -> Scheme:
    """The tool's quantization patterns for `preset`, with asymmetric ranges."""
    wholes: list[ov.Model] = []

    def quantize(folder: Path, kept: Sequence[str]) -> Path:
        quantized = _quantized(work, model.clone(), preset, kept)
        if not kept:
            wholes.append(quantized)
        return _saved(quantized, folder)

    def switches(_: Path) -> OpenVinoSwitches:
        return OpenVinoSwitches(wholes.pop(), model)

    words = "as a transformer" if preset != work.step.preset else ""
    return Scheme(quantize, switches, words)


def _quantized(
    work: Work[QuantizeStep],
    model: ov.Model,
    preset: QuantizePreset,
    kept: Sequence[str] | None = None,
) -> ov.Model:
    """`model` in int8. Raises RecipeError.

    `kept`: operations that stay in float32 besides recurrent ones, where layers are chosen by their loss; ranges of activations are asymmetric then.
    If they are not given, everything before recurrent operations stays.
    """
    items = work.calibrated
    if any(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops()):
        raise RecipeError("the model is already quantized")
    own = {operation.get_friendly_name() for operation in model.get_ops()}
    # Of `kept`, only what the model has: the tool adds operations of its own.
    ignored = [
        *left_alone(model, work.step.operators, before=kept is None),
        *(name for name in kept or () if name in own),
    ]
    names = _input_names(model)

    def feed(index: int) -> dict[str, np.ndarray[Any, Any]]:
        return {names[name]: array for name, array in items.feed([index]).items()}

    nncf.set_log_level(logging.WARNING)  # it would name every operation that it leaves alone
    transformer = preset == QuantizePreset.TRANSFORMER
    quantized = nncf.quantize(
        model,
        nncf.Dataset(range(len(items)), feed),
        preset=nncf.QuantizationPreset.MIXED if kept is not None else None,
        subset_size=len(items),
        target_device=nncf.TargetDevice.CPU,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        ignored_scope=nncf.IgnoredScope(names=ignored, validate=False) if ignored else None,
    )
    if not any(operation.get_type_name() == "FakeQuantize" for operation in quantized.get_ops()):
        raise RecipeError(
            "nothing in this model could be quantized: no operators of the requested types outside the parts that must stay float32"
        )
    return quantized


def _saved(model: ov.Model, folder: Path) -> Path:
    entry = folder / "model.xml"
    ov.save_model(model, entry, compress_to_fp16=False)  # its default halves every weight that is not int8
    return entry


def _input_names(model: ov.Model) -> dict[str, str]:
    """Name of the file's input -> OpenVINO's name for it."""
    return {name: port.get_any_name() for port in model.inputs for name in port.get_names()}


def left_alone(model: ov.Model, asked: Sequence[str], before: bool = True) -> list[str]:
    """Operations that stay in float32: recurrent ones, everything `before` them, and types that the recipe does not name in `asked`, if it names
    any.

    Raises RecipeError if the model has none of these.
    """
    ignored: dict[str, None] = {}
    waiting = [operation for operation in model.get_ordered_ops() if operation.get_type_name() in _RECURRENT]
    while waiting:
        operation = waiting.pop()
        name = operation.get_friendly_name()
        if name in ignored:
            continue
        ignored[name] = None
        waiting.extend(value.get_node() for value in operation.input_values() if before)
    if asked:
        wanted = {name for kind in asked for name in _TYPES.get(kind, (kind,))}
        kinds = {operation.get_type_name() for operation in model.get_ops()}
        if not kinds & wanted:
            raise RecipeError(f"the model has no {', '.join(asked)} to quantize")
        for operation in model.get_ordered_ops():
            if operation.get_type_name() not in wanted and operation.get_type_name() not in (
                "Parameter",
                "Result",
                "Constant",
            ):
                ignored[operation.get_friendly_name()] = None
    kept = {
        operation.get_friendly_name()
        for operation in model.get_ops()
        if operation.get_type_name() not in ("Parameter", "Result", "Constant")
    }
    return [name for name in ignored if name in kept]
