"""OpenVINO on CPU.

Facts that this file rests on (2026.4), each held by a test:
- The default precision hint is bf16 where the CPU has it, the default dynamic quantization group 32: both change answers unasked, so every
  hint is pinned and read back. A number of threads above what the process may use is lowered silently: `load` refuses.
- CPU pinning is off: two pods that pin would sit on the same first cores of the node.
- `share_outputs=True` answers are overwritten by the next call: outputs are copied. On one InferRequest a shared input followed by a larger
  one that is not shared raises: inputs are always shared.
- `cancel` ends a request that was begun by `start_async` before its next node, and leaves alone one begun by `infer`.
- With a dynamic shape, the scales of an int8 product that several operations read are applied twice for some of them, which then read numbers
  near zero: a clamp that changes nothing makes them one (`_read_once`).
- String tensors corrupt the heap (glibc aborts when the process ends): models with text inputs or outputs are refused.
"""

from __future__ import annotations

import itertools
import queue
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import BY_OPENVINO, Signature, Tensor
from fettle.api.text import clip
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import (
    Array,
    Arrays,
    Interrupt,
    Interrupted,
    Session,
    checked_inputs,
    numpy_dtype,
    require_file,
    require_settings,
)

_PRECISIONS = {Precision.FLOAT32: "f32", Precision.BFLOAT16: "bf16", Precision.FLOAT16: "f16"}
_CAPABILITIES = {"FP32": Precision.FLOAT32, "BF16": Precision.BFLOAT16, "FP16": Precision.FLOAT16}
_COMPUTE = {
    "Convolution",
    "GroupConvolution",
    "Deconvolution",
    "FullyConnected",
    "MatMul",
    "LSTMCell",
    "LSTMSeq",
    "GRUCell",
}
_COMPUTE |= {
    "GRUSeq",
    "RNNCell",
    "RNNSeq",
    "AUGRUCell",
    "AUGRUSeq",
    "MHA",
    "ScaledDotProductAttention",
    "QKVProjection",
}
PRODUCTS = frozenset(  # operations that multiply with weights
    ["Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"]
)
_LARGEST = float(np.finfo(np.float32).max)
_CLASSES = {"i8": "int8", "u8": "int8", "bf16": "bf16", "f16": "f16", "f32": "f32"}


@lru_cache
def _core() -> ov.Core:
    return ov.Core()


class OpenVinoSession:
    """A model that is compiled once for each stream, and the requests that run it: one for each concurrent call, created when first needed.

    The streams of one compiled model are not sufficient: the stream of a call depends on its thread, and calls that get the same stream wait for
    each other (with two callers and two streams, this happened in 17 of 20 processes, compared with 2 of 20 this way).
    """

    def __init__(self, compiled: Sequence[ov.CompiledModel], settings: RuntimeSettings, signature: Signature) -> None:
        self._compiled = tuple(compiled)
        self._turn = itertools.cycle(self._compiled)
        self._settings = settings
        self._signature = signature
        self._inputs = _order([tensor.name for tensor in signature.inputs], compiled[0].inputs)
        self._outputs = _order([tensor.name for tensor in signature.outputs], compiled[0].outputs)
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """See `base.Session.infer`."""
        if not self._compiled:
            raise RuntimeFailure("the session is closed")
        feed = checked_inputs(self._signature, inputs)
        by_index = {self._inputs[name]: array for name, array in feed.items()}
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = next(self._turn).create_infer_request()
        try:
            if interrupt is None:
                request.infer(by_index, share_inputs=True, share_outputs=True)
            else:
                with interrupt.ending(request.cancel):
                    request.start_async(by_index, share_inputs=True)
                    if interrupt.is_set:
                        request.cancel()  # what came before the start was lost
                    request.wait()
            answers = {
                tensor.name: _owned(request.get_output_tensor(self._outputs[tensor.name]), tensor)
                for tensor in self._signature.outputs
            }
        except Interrupted:
            self._idle.put(request)
            raise
        except Exception as error:  # the library raises RuntimeError, TypeError and others alike
            if interrupt is not None and interrupt.is_set:
                self._idle.put(request)
                raise Interrupted from error
            raise RuntimeFailure(f"running the model failed: {_text(error)}") from error
        # Only a request that ended well, or was cancelled, is used again: what a failed one still holds is unknown.
        self._idle.put(request)
        return answers

    def effective_settings(self) -> RuntimeSettings:
        """See `base.Session.effective_settings`."""
        if not self._compiled:
            raise RuntimeFailure("the session is closed")
        streams = sum(int(one.get_property("NUM_STREAMS")) for one in self._compiled)
        threads = int(self._compiled[0].get_property("INFERENCE_NUM_THREADS"))
        hint = self._compiled[0].get_property("INFERENCE_PRECISION_HINT").to_string()
        precision = next((name for name, text in _PRECISIONS.items() if text == hint), self._settings.precision)
        return self._settings.model_copy(update={"streams": streams, "threads": threads, "precision": precision})

    def close(self) -> None:
        """See `base.Session.close`."""
        self._compiled = ()
        self._turn = itertools.cycle(())
        self._idle = queue.SimpleQueue()


class OpenVino:
    """See `base.Runtime`."""

    name = RuntimeName.OPENVINO

    def load(self, entry: Path, settings: RuntimeSettings, signature: Signature | None = None) -> Session:
        """See `base.Runtime.load`."""
        compiled, signature = self._compile(entry, settings, signature)
        session = OpenVinoSession(compiled, settings, signature)
        require_settings(session, settings, "OpenVINO", "; give the pod at least as many CPUs as threads")
        return session

    def executed(
        self, entry: Path, settings: RuntimeSettings, inputs: Arrays, signature: Signature | None = None
    ) -> Executed:
        """See `base.Runtime.executed`: taken from the compiled graph. Nothing is run, so `inputs` are not used."""
        (compiled, *_), _ = self._compile(entry, settings, signature)
        classes: Counter[str] = Counter()
        for operation in compiled.get_runtime_model().get_ops():
            information = operation.get_rt_info()
            if information["layerType"].astype(str) in _COMPUTE:
                classes[_class(operation, information["runtimePrecision"].astype(str))] += 1
        return Executed(**classes, total=classes.total())

    def capabilities(self) -> frozenset[Precision]:
        """See `base.Runtime.capabilities`: other precisions are emulated, and slower than float32."""
        listed = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return frozenset(precision for word, precision in _CAPABILITIES.items() if word in listed)

    def _compile(
        self, entry: Path, settings: RuntimeSettings, signature: Signature | None
    ) -> tuple[list[ov.CompiledModel], Signature]:
        if settings.precision not in self.capabilities():
            message = f"this node's CPU does not compute {settings.precision} in hardware; OpenVINO would emulate it"
            raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
        require_file(entry)
        try:
            model = _core().read_model(entry)
            signature = signature or _signature(model)
            _refuse_texts(signature)
            if settings.batch_size is not None:
                _fix_batch(model, signature, settings.batch_size)
            if model.is_dynamic():
                _read_once(model)
            properties = _properties(settings)
            return [_core().compile_model(model, "CPU", properties) for _ in range(settings.streams)], signature
        except RuntimeFailure:
            raise
        except Exception as error:  # the library raises RuntimeError, TypeError and others alike
            raise _failure(error) from error


def _properties(settings: RuntimeSettings) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "EXECUTION_MODE_HINT": "PERFORMANCE",
        "INFERENCE_PRECISION_HINT": _PRECISIONS[settings.precision],
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": settings.threads,
        "ENABLE_CPU_PINNING": False,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "KV_CACHE_PRECISION": _PRECISIONS[settings.precision],
    }


def _fix_batch(model: ov.Model, signature: Signature, batch_size: int) -> None:
    """Give every input with a batch axis a fixed size along it: with static shapes, OpenVINO plans its memory only once."""
    if not signature.batchable and batch_size != 1:
        message = f"a fixed batch of {batch_size} needs a batch axis, but none was verified for this model"
        raise RuntimeFailure(message, reason=Reason.RECIPE_NOT_APPLICABLE)
    places = _order([tensor.name for tensor in signature.inputs], model.inputs)
    shapes: dict[int, ov.PartialShape] = {}
    for tensor in signature.inputs:
        shape = model.inputs[places[tensor.name]].get_partial_shape()
        if tensor.batch_axis is not None and shape.rank.is_static:
            shape[tensor.batch_axis] = batch_size
            shapes[places[tensor.name]] = shape
    if shapes:
        model.reshape(shapes)


def _read_once(model: ov.Model) -> None:
    """Put a clamp to all of float32 behind each product with several readers, if anything in the model is quantized: OpenVINO does not move scales
    past it, and computes it within the product."""
    operations = model.get_ordered_ops()
    if not any(operation.get_type_name() == "FakeQuantize" for operation in operations):
        return
    for operation in operations:
        if operation.get_type_name() not in PRODUCTS or operation.get_output_element_type(0) != ov.Type.f32:
            continue
        readers = operation.output(0).get_target_inputs()
        if len(readers) > 1:
            clamp = ops.clamp(operation.output(0), -_LARGEST, _LARGEST)
            for reader in readers:
                reader.replace_source_output(clamp.output(0))
    model.validate_nodes_and_infer_types()


def _order(names: list[str], ports: Sequence[Any]) -> dict[str, int]:
    """The position of each name among `ports`: by name, or by order if the file has lost the names."""
    positions = {name: index for index, port in enumerate(ports) for name in port.get_names()}
    if len(names) != len(ports) and any(name not in positions for name in names):
        message = f"expected the tensors {names}, the file has {[sorted(port.get_names()) for port in ports]}"
        raise RuntimeFailure(message)
    return {name: positions.get(name, place) for place, name in enumerate(names)}


def _signature(model: ov.Model) -> Signature:
    return Signature(
        inputs=tuple(_tensor(port, f"input{index}") for index, port in enumerate(model.inputs)),
        outputs=tuple(_tensor(port, f"output{index}") for index, port in enumerate(model.outputs)),
    )


def _tensor(port: Any, fallback: str) -> Tensor:
    name = min(port.get_names(), default=fallback)
    row = BY_OPENVINO.get(port.get_element_type().to_string())
    if row is None:
        message = f"the tensor {name!r} has the element type {port.get_element_type()}; it cannot be served"
        raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise RuntimeFailure(f"the tensor {name!r} has no known rank", reason=Reason.UNSUPPORTED_MODEL)
    return Tensor(name=name, dtype=row.v2, shape=tuple(d.get_length() if d.is_static else -1 for d in shape))


def _refuse_texts(signature: Signature) -> None:
    texts = [tensor.name for tensor in (*signature.inputs, *signature.outputs) if tensor.dtype == "BYTES"]
    if texts:
        message = f"OpenVINO's string tensors are not safe to use ({', '.join(texts)}); use onnxruntime for this model"
        raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)


def _owned(tensor: ov.Tensor, expected: Tensor) -> Array:
    """A copy of an output in the signature's data type."""
    data = np.array(tensor.data)
    if expected.dtype == "BF16":
        return data.view(numpy_dtype("BF16")) if data.dtype.itemsize == 2 else data.astype(numpy_dtype("BF16"))
    return data


def _class(operation: Any, precision: str) -> str:
    """The class of a compute node; floating-point arithmetic with integer weights is weight-only."""
    by_precision = _CLASSES.get(precision, "f32")
    if by_precision != "int8" and operation.get_input_size() > 1:
        weights = operation.input_value(1).get_element_type().to_string()
        if weights in ("i8", "u8", "i4", "u4", "nf4"):
            return "weight_only"
    return by_precision


def _failure(error: Exception) -> RuntimeFailure:
    # The library puts source files and a log of many lines around the sentence that counts.
    text = _text(error, "No conversion rule found", "Failed operations detailed log:", "Unexpected:")
    unsupported = "not supported" in text or "No conversion" in text or "Unsupported" in text or "doesn't have" in text
    reason = Reason.UNSUPPORTED_OPERATOR if unsupported else Reason.MODEL_LOAD_FAILED
    return RuntimeFailure(f"OpenVINO could not load the model: {text}", reason=reason)


def _text(error: Exception, *starts: str) -> str:
    """The library's message on one line, starting at the first of `starts` that it contains, without locations in its source code."""
    text = re.sub(r"Exception from \S+:\s*", "", " ".join(str(error).split()))
    place = next((text.find(start) for start in starts if start in text), 0)
    return clip(text[place:], 400)


RUNTIME = OpenVino()
