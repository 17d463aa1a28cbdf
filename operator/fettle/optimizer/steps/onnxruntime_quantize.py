"""int8 with ONNX Runtime's own tools: QDQ files for static quantization, integer matrix products for dynamic quantization.

Activations are unsigned, weights are signed and per channel: the combination that is fast on x86 (S8S8 left 20 of 53 convolutions of a
ResNet-50 in float32). Without VNNI, products are summed in 16 bits and saturate, so weights get 7 bits there (`reduce_range`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from fettle.api.recipe import QuantizeStep
from fettle.api.vocabulary import QuantizePreset, RuntimeName
from fettle.errors import RecipeError
from fettle.optimizer.measure.items import MappedItems
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx import portable
from fettle.optimizer.onnx.traits import bounded_lstm
from fettle.optimizer.steps import Work, onnx_float8
from fettle.optimizer.steps.layers import Scheme, partly
from fettle.optimizer.steps.onnx_scope import (
    before_recurrent,
    clamps_before_bodies,
    flatten_biases,
    keep_apart,
    recurrent,
)
from fettle.optimizer.steps.onnx_switches import OnnxSwitches, products
from fettle.runtimes import cpu

PER_CHANNEL_OPSET = 13  # below, QuantizeLinear has no axis: the tool would write a file that loads nowhere
CORE = ("Conv", "MatMul", "Gemm")
DYNAMIC = ("MatMul", "Gemm")  # never Conv: ConvInteger runs wholly in int8 and 4-7 times slower
SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
LSTM = "LSTM"  # where a recipe names it
log = logging.getLogger(__name__)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives items one at a time, so that only one is in memory."""

    def __init__(self, items: MappedItems) -> None:
        self._feeds: Iterator[dict[str, np.ndarray[Any, Any]]] = (items.feed([index]) for index in range(len(items)))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next item, or None."""
        return next(self._feeds, None)


def static(work: Work[QuantizeStep]) -> Path:
    """Weights and activations in int8, ranges from the calibration items (MinMax). Raises RecipeError."""
    return _quantized(work, _prepared(work), work.folder, _asked(work.step))


def symmetric(work: Work[QuantizeStep]) -> Path:
    """The same in the form that GPUs need: symmetric int8 for activations and weights, only operators that multiply (`CORE`), biases unchanged
    (TensorRT takes no int32 bias).

    Raises RecipeError.
    """
    return _quantized(work, _prepared(work), work.folder, _asked(work.step) or CORE, gpu=SYMMETRIC)


def float8(work: Work[QuantizeStep]) -> Path:
    """The same in float8 (E4M3), which has a wider range and coarser steps than int8. Raises RecipeError."""
    folder = work.folder / "work" / "int8"
    prepared = _prepared(work)
    folder.mkdir()
    pairs = _quantized(work, prepared, folder, _asked(work.step) or CORE, gpu=SYMMETRIC | {"AddQDQPairToWeight": True})
    return onnx_float8.in_float8(pairs, work.folder / "model.onnx")


def mixed(work: Work[QuantizeStep]) -> Path:
    """The same, but layers that change too many answers stay in float32.

    If int8 for all operators loses too much, int8 only for operators that multiply (`CORE`) is tried before layers are ranked. Raises RecipeError.
    """
    prepared = _prepared(work)
    model = onnx_model.read(prepared)
    asked = _asked(work.step)
    has_products = any(node.op_type in CORE for node in model.graph.node)
    schemes = [
        _scheme(work, prepared, operators) for operators in ((asked, CORE) if not asked and has_products else (asked,))
    ]
    return partly(work, RuntimeName.ONNXRUNTIME, lambda feed: products(model, feed), schemes).entry


def _scheme(work: Work[QuantizeStep], prepared: Path, operators: tuple[str, ...]) -> Scheme:
    """Static quantization of `operators`."""

    def quantize(folder: Path, kept: Sequence[str]) -> Path:
        return _quantized(work, prepared, folder, operators, kept)

    def switches(whole: Path) -> OnnxSwitches:
        folder = whole.parent / "switches"
        folder.mkdir()
        quantized = _quantized(work, prepared, folder, operators, (), keep_activations=True)
        return OnnxSwitches(quantized, prepared, folder / "switches.onnx")

    return Scheme(quantize, switches, "products only" if operators != _asked(work.step) else "")


def _asked(step: QuantizeStep) -> tuple[str, ...]:
    """The operator types that a step requests in int8; empty for all types that the tool supports."""
    return step.operators or (CORE if step.preset == QuantizePreset.TRANSFORMER else ())


def _quantized(
    work: Work[QuantizeStep],
    prepared: Path,
    folder: Path,
    operators: tuple[str, ...],
    kept: Sequence[str] | None = None,
    keep_activations: bool = False,
    gpu: Mapping[str, Any] | None = None,
) -> Path:
    """The prepared model in int8, except for recurrent nodes and the nodes `kept`, or, if these are not given, all nodes before recurrent ones.

    Raises RecipeError. The tool removes Relu and Clip if a range does the same. With `keep_activations` it does not, so that values are right
    without their ranges. `gpu`: the tool's options for a GPU.
    """
    options: dict[str, Any] = {"QDQKeepRemovableActivations": True} if keep_activations or gpu else {}
    options |= gpu or {}
    items = work.calibrated
    model = onnx_model.read(prepared)
    kinds = _present(model, operators)
    left = before_recurrent(model.graph) if kept is None else [*recurrent(model.graph), *kept]
    target = folder / "model.onnx"
    quantize_static(
        str(prepared),
        str(target),
        _Reader(items),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=kinds or None,
        nodes_to_exclude=[*left, *clamps_before_bodies(model.graph)],
        per_channel=True,
        reduce_range=_reduce_range() and not gpu,
        activation_type=QuantType.QInt8 if gpu else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        use_external_data_format=bool(onnx_model.external_files(model)),
        extra_options=options or None,
    )
    return _checked(prepared, target)


def dynamic(work: Work[QuantizeStep]) -> Path:
    """Weights of matrix products in int8, activations quantized at run time; where the step names LSTM, also of those layers whose input has bounds.

    Raises RecipeError.
    """
    prepared = _prepared(work)
    model = onnx_model.read(prepared)
    asked = work.step.operators or DYNAMIC
    supported = (*DYNAMIC, LSTM)
    refused = sorted(set(asked) - set(supported))
    if refused and not set(asked) & set(supported):
        raise RecipeError(
            f"dynamic quantization only supports {', '.join(supported)}; {', '.join(refused)} would be slower"
        )
    _present(model, tuple(kind for kind in asked if kind in supported))
    layers = bounded_lstm(model.graph) if LSTM in asked else []
    excluded = [name for name in before_recurrent(model.graph) if name not in layers]
    excluded += [node.name for node in model.graph.node if node.op_type in DYNAMIC and node.op_type not in asked]
    target = work.folder / "model.onnx"
    quantize_dynamic(
        str(prepared),
        str(target),
        op_types_to_quantize=["MatMul", *([LSTM] if layers else [])],  # the tool has turned Gemm into MatMul by then
        nodes_to_exclude=excluded,
        per_channel=True,
        reduce_range=_reduce_range(),
        weight_type=QuantType.QInt8,
        use_external_data_format=bool(onnx_model.external_files(model)),
        extra_options={"MatMulConstBOnly": True},
    )
    return _checked(prepared, target)


def _reduce_range() -> bool:
    return not cpu.detect().vnni


def _prepared(work: Work[QuantizeStep]) -> Path:
    """The model with all shapes that the tool can infer, and a name for every node. Raises RecipeError for a quantized model."""
    model = onnx_model.load(work.entry)
    if portable.is_quantized(model):
        raise RecipeError("the model is already quantized")
    if onnx_model.opset(model) < PER_CHANNEL_OPSET:
        raise RecipeError(
            f"per-channel quantization requires opset {PER_CHANNEL_OPSET}; this model remained at {onnx_model.opset(model)}"
        )
    named = work.folder / "work" / "named" / "model.onnx"
    named.parent.mkdir(parents=True)
    portable.name_nodes(model.graph)
    keep_apart(model.graph)
    flatten_biases(model.graph)
    onnx_model.save(model, named, work.entry.parent, link=False)
    if onnx_model.external_files(model):
        return named
    for skip_symbolic in (False, True):
        inferred = work.folder / "work" / f"inferred-{skip_symbolic}.onnx"
        try:
            # The portable form is folded and fused already: only shapes are wanted.
            # What it could not infer it leaves in the working directory, which need not be writable.
            with contextlib.chdir(named.parent):
                quant_pre_process(str(named), str(inferred), skip_optimization=True, skip_symbolic_shape=skip_symbolic)
        except Exception:
            log.info("shape inference failed (symbolic: %s)", not skip_symbolic, exc_info=True)
        else:
            return inferred
    return named


def _present(model: onnx.ModelProto, operators: tuple[str, ...]) -> list[str]:
    """Those of `operators` that the model has. Raises RecipeError if it has none of them."""
    kinds = {node.op_type for node in model.graph.node}
    if operators and not kinds & set(operators):
        raise RecipeError(f"the model has no {', '.join(operators)} to quantize")
    return [kind for kind in operators if kind in kinds]


def _checked(before: Path, after: Path) -> Path:
    """`after`, if the tool quantized anything at all. Raises RecipeError."""
    kinds = {node.op_type for node in onnx_model.nodes(onnx_model.read(after))}
    if not kinds & {"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM"}:
        raise RecipeError(
            "nothing in this model could be quantized: no operators of the requested types outside the parts that must stay float32"
        )
    return after
