"""ONNX Runtime on CPU.

Facts that this file rests on (1.31): `intra_op_num_threads` counts the calling thread, so 1 makes no pool; given explicitly, it
pins no thread. Threads of the pool spin while they wait, which is the default and what both measuring and serving use.
`InferenceSession.run` is thread-safe and its outputs own their memory; `RunOptions.terminate`, set from another thread, ends a
run before its next node. Offline graphs (FusedConv, NCHWc) belong to one machine:
they are made at load, never saved.
"""

from __future__ import annotations

import ctypes
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import BY_V2, DATA_TYPES, Signature, Tensor
from fettle.api.text import quoted
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
    texts,
)

_DTYPES = {
    "float": "FP32",
    "float16": "FP16",
    "double": "FP64",
    "bfloat16": "BF16",
    "string": "BYTES",
    "bool": "BOOL",
} | {row.numpy: row.v2 for row in DATA_TYPES if row.numpy.startswith(("int", "uint"))}

# Nodes that compute. Float kernels are classed by the type of their first input, the others by what their name says.
_FLOAT = {"Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "FusedMatMulActivation", "Gemm", "FusedGemm"}
_FLOAT |= {"Einsum", "LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention", "GroupQueryAttention"}
_INT8 = {"QLinearConv", "NhwcQLinearConv", "QLinearConvTranspose", "QLinearMatMul", "QGemm", "QAttention"}
_INT8 |= {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
_WEIGHT_ONLY = {"MatMulNBits", "MatMulBnb4"}
# Where in the library's sources something was found: of no use to who reads it, and often longer than what was found.
_PLACE = re.compile(
    r"/onnxruntime_src/\S+:\d+ (?:[^()]*\([^()]*(?:\([^()]*\)[^()]*)*\)(?: \[with [^]]*\])?(?: const)? )?"
)
_BY_INPUT = {"float16": "f16", "bfloat16": "bf16"}


class OnnxRuntimeSession:
    """An InferenceSession and its requested settings."""

    def __init__(self, session: ort.InferenceSession, settings: RuntimeSettings, signature: Signature | None) -> None:
        self._session: ort.InferenceSession | None = session
        self._settings = settings
        self._signature = signature or _signature(session)
        self._outputs = [tensor.name for tensor in self._signature.outputs]
        self._text_inputs = [tensor.name for tensor in self._signature.inputs if tensor.dtype == "BYTES"]
        self._run = _way_of_running(self._signature)

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """See `base.Session.infer`."""
        if self._session is None:
            raise RuntimeFailure("the session is closed")
        feed = checked_inputs(self._signature, inputs)
        for name in self._text_inputs:
            feed[name] = texts(feed[name])
        run = self._run
        try:
            if interrupt is None:
                values = run(self._session, self._outputs, feed, None)
            else:
                options = ort.RunOptions()
                with interrupt.ending(lambda: setattr(options, "terminate", True)):
                    values = run(self._session, self._outputs, feed, options)
        except Interrupted:
            raise
        except Exception as error:  # the library's own errors have no common base but Exception
            if interrupt is not None and interrupt.is_set:
                raise Interrupted from error
            raise _failure("running the model failed", error) from error
        return dict(zip(self._outputs, map(np.asarray, values), strict=True))

    def effective_settings(self) -> RuntimeSettings:
        """See `base.Session.effective_settings`."""
        if self._session is None:
            raise RuntimeFailure("the session is closed")
        options = self._session.get_session_options()
        return self._settings.model_copy(
            update={"threads": options.intra_op_num_threads, "streams": options.inter_op_num_threads}
        )

    def close(self) -> None:
        """See `base.Session.close`."""
        self._session = None


def _run(
    session: ort.InferenceSession, outputs: list[str], feed: dict[str, Array], options: ort.RunOptions | None
) -> list[Array]:
    values: list[Array] = session.run(outputs, feed, options)
    return values


def _run_beside_texts(
    session: ort.InferenceSession, outputs: list[str], feed: dict[str, Array], options: ort.RunOptions | None
) -> list[Array]:
    """Like `_run_bfloat16`, with strings among the inputs, which OrtValues do not support; no output may be bfloat16."""
    values: list[Array] = session.run(outputs, _with_bits(feed), options)
    return values


def _run_bfloat16(
    session: ort.InferenceSession, outputs: list[str], feed: dict[str, Array], options: ort.RunOptions | None
) -> list[Array]:
    """Like `session.run`, with support for bfloat16, which numpy only has through ml_dtypes: the bits are passed in OrtValues."""
    values = {
        name: ort.OrtValue.ortvalue_from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in _with_bits(feed).items()
    }
    answers = []
    for answer in session.run_with_ort_values(outputs, values, options):
        if answer.data_type() != "tensor(bfloat16)":
            answers.append(answer.numpy())
            continue
        size = 2 * math.prod(answer.shape())
        bits = np.frombuffer(ctypes.string_at(answer.data_ptr(), size), dtype=np.uint16)
        answers.append(bits.reshape(answer.shape()).view(numpy_dtype("BF16")).copy())
    return answers


def _with_bits(feed: dict[str, Array]) -> dict[str, Any]:
    """The inputs, with OrtValues for those that are bfloat16."""
    bfloat16 = numpy_dtype("BF16")
    return {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), BY_V2["BF16"].onnx)
        if array.dtype == bfloat16
        else array
        for name, array in feed.items()
    }


def _way_of_running(signature: Signature) -> Callable[..., list[Array]]:
    """The function that calls the library. Raises RuntimeFailure (UnsupportedModel) if the library does not support this combination of tensors."""
    taken, given = ({tensor.dtype for tensor in side} for side in (signature.inputs, signature.outputs))
    if "BF16" not in taken | given:
        return _run
    if "BYTES" not in taken:
        return _run_bfloat16
    if "BF16" in given:
        message = "onnxruntime's Python library cannot run a model with string inputs and bfloat16 outputs: end it with a Cast to float"
        raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
    return _run_beside_texts


class OnnxRuntime:
    """See `base.Runtime`. `precisions`: supported precisions of a file."""

    name = RuntimeName.ONNXRUNTIME
    session = OnnxRuntimeSession
    precisions = frozenset({Precision.FLOAT32})

    def load(self, entry: Path, settings: RuntimeSettings, signature: Signature | None = None) -> Session:
        """See `base.Runtime.load`. A fixed `batch_size` is refused, because it has no meaning here; `streams` are callers of one session."""
        if settings.precision not in self.precisions:
            message = f"onnxruntime computes in float32 on CPU; {settings.precision} is not supported"
            raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
        if settings.batch_size is not None:
            message = "onnxruntime has no fixed batch size; leave it at its default"
            raise RuntimeFailure(message, reason=Reason.RECIPE_NOT_APPLICABLE)
        session = self.session(self.open(entry, _options(settings), settings), settings, signature)
        require_settings(session, settings, "onnxruntime")
        return session

    def executed(
        self, entry: Path, settings: RuntimeSettings, inputs: Arrays, signature: Signature | None = None
    ) -> Executed:
        """See `base.Runtime.executed`: counts the kernels that the profiler saw in one run."""
        return _executed(self._kernels(entry, settings, inputs, 1, signature))

    def profile(self, entry: Path, settings: RuntimeSettings, inputs: Arrays) -> dict[str, float]:
        """Microseconds per operator type in two runs: a rough estimate, not a measurement."""
        times: Counter[str] = Counter()
        for kernel in self._kernels(entry, settings, inputs, 2):
            times[kernel["args"]["op_name"]] += kernel.get("dur", 0)
        return dict(times)

    def _kernels(
        self, entry: Path, settings: RuntimeSettings, inputs: Arrays, runs: int, signature: Signature | None = None
    ) -> list[dict[str, Any]]:
        """The profiler's record of each kernel, from a separate session."""
        with tempfile.TemporaryDirectory(prefix="fettle-profile-") as folder:
            options = _options(settings)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            raw = self.open(entry, options, settings)
            session = OnnxRuntimeSession(raw, settings, signature)
            for _ in range(runs):
                session.infer(inputs)
            events = json.loads(Path(raw.end_profiling()).read_text())
        return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]

    def capabilities(self) -> frozenset[Precision]:
        """See `base.Runtime.capabilities`."""
        return self.precisions

    def open(self, entry: Path, options: ort.SessionOptions, settings: RuntimeSettings) -> ort.InferenceSession:
        """The library's own session. Raises RuntimeFailure."""
        require_file(entry)
        try:
            return ort.InferenceSession(str(entry), options, providers=list(self.providers(settings)))
        except Exception as error:  # the library's own errors have no common base but Exception
            raise _failure("onnxruntime could not load the model", error, entry) from error

    def providers(self, settings: RuntimeSettings) -> tuple[Any, ...]:
        """Execution providers in order of preference."""
        return ("CPUExecutionProvider",)


def _options(settings: RuntimeSettings) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = settings.streams
    options.log_severity_level = 4  # what matters is raised as well
    if settings.graph_optimization:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return options


def _failure(what: str, error: Exception, entry: Path | None = None) -> RuntimeFailure:
    """The error with the library's message, without the path of the file's folder."""
    text = str(error) if entry is None else str(error).replace(f"{entry.parent}/", "")
    text = _PLACE.sub("", " ".join(text.split()))
    reason = Reason.MODEL_LOAD_FAILED
    if "is not a registered function/op" in text or "NOT_IMPLEMENTED" in text or "No opset import" in text:
        reason = Reason.UNSUPPORTED_OPERATOR
    elif "is under development" in text or "Unsupported model IR version" in text:
        reason = Reason.UNSUPPORTED_OPSET
    elif "Failed to allocate memory" in text or "out of memory" in text:
        reason = Reason.OUT_OF_MEMORY
    return RuntimeFailure(f"{what}: {quoted(text, 400)}", reason=reason)


def _signature(session: ort.InferenceSession) -> Signature:
    return Signature(
        inputs=tuple(_tensor(value) for value in session.get_inputs()),
        outputs=tuple(_tensor(value) for value in session.get_outputs()),
    )


def _tensor(value: Any) -> Tensor:
    """A NodeArg, whose type reads `tensor(float)`, `seq(…)`, `map(…)`."""
    inner = value.type.removeprefix("tensor(").removesuffix(")")
    if not value.type.startswith("tensor(") or inner not in _DTYPES:
        message = f"the tensor {value.name!r} is a {value.type}; only plain tensors can be served"
        raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in value.shape)
    return Tensor(name=value.name, dtype=_DTYPES[inner], shape=shape)


def _executed(kernels: list[dict[str, Any]]) -> Executed:
    classes: dict[str, str] = {}  # by node: a node inside a loop runs, and is seen, more than once
    for kernel in kernels:
        types = kernel["args"].get("input_type_shape") or [{}]
        kernel_class = _class(kernel["args"]["op_name"], next(iter(types[0]), "float"))
        if kernel_class is not None:
            classes[kernel["name"]] = kernel_class
    return Executed(**Counter(classes.values()), total=len(classes))


def _class(operator: str, input_type: str) -> str | None:
    """The class of a kernel; None for one that does not count as a compute node."""
    if operator in _INT8:
        return "int8"
    if operator in _WEIGHT_ONLY:
        return "weight_only"
    return _BY_INPUT.get(input_type, "f32") if operator in _FLOAT else None


RUNTIME = OnnxRuntime()
