"""LiteRT (TensorFlow Lite) on CPU.

Facts that this file rests on (2.3), each held by a test in tests/toolchains/tensorflow:
- An interpreter runs one call at a time, and its inputs have one shape at a time: each concurrent call has an interpreter of its own, and a
  batch of another size resizes it. Only dimensions that the file leaves open may be resized, which `strict` holds it to.
- Tensors have names, and the file's signature may have others for them. Both are known here, because a converted model has the names of its
  source in the signature only.
- XNNPACK computes all that it knows unless it is turned off. An interpreter does not tell its number of threads, and no run can be ended.
"""

from __future__ import annotations

import queue
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import BY_NUMPY, Signature, Tensor
from fettle.api.text import quoted
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array, Arrays, Interrupt, Interrupted, Session, checked_inputs, require_file

Details = Mapping[str, Mapping[str, Any]]  # what the library says of tensors, by their names
_COMPUTE = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "FULLY_CONNECTED", "BATCH_MATMUL"}
_COMPUTE |= {"LSTM", "RNN", "SVDF"}
_COMPUTE |= {f"{way}_SEQUENCE_{cell}" for way in ("UNIDIRECTIONAL", "BIDIRECTIONAL") for cell in ("LSTM", "RNN")}
_INTEGERS = {np.dtype(name) for name in ("int8", "uint8", "int16")}
_UNSUPPORTED = ("unresolved custom op", "Select TensorFlow op", "Didn't find op")


@dataclass
class _Seat:
    """An interpreter, and the shapes that its inputs have now."""

    interpreter: Any
    shapes: dict[int, tuple[int, ...]]

    def run(self, feed: Mapping[int, Array], outputs: Iterable[int]) -> list[Array]:
        """Answers to inputs by their index. May raise whatever the library raises."""
        resized = {index: array.shape for index, array in feed.items() if self.shapes[index] != array.shape}
        for index, shape in resized.items():
            self.interpreter.resize_tensor_input(index, shape, strict=True)
        if resized:
            self.interpreter.allocate_tensors()
            self.shapes |= resized
        for index, array in feed.items():
            self.interpreter.set_tensor(index, array)
        self.interpreter.invoke()
        return [np.asarray(self.interpreter.get_tensor(index)) for index in outputs]  # a copy each


class LiteRtSession:
    """A file, and as many interpreters of it as there were concurrent calls."""

    def __init__(self, seat: Callable[[], _Seat], settings: RuntimeSettings, signature: Signature | None) -> None:
        first = seat()
        self._signature = signature or _signature(first.interpreter)
        inputs, outputs = _tables(first.interpreter)
        self._inputs = _indices(self._signature.inputs, inputs)
        self._outputs = _indices(self._signature.outputs, outputs)
        self._settings = settings
        self._seat: Callable[[], _Seat] | None = seat
        self._idle: queue.SimpleQueue[_Seat] = queue.SimpleQueue()
        self._idle.put(first)

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """See `base.Session.infer`. LiteRT cannot be stopped: an interrupted run continues to its end, and its result is dropped."""
        if self._seat is None:
            raise RuntimeFailure("the session is closed")
        feed = {self._inputs[name]: array for name, array in checked_inputs(self._signature, inputs).items()}
        try:
            seat = self._idle.get_nowait()
        except queue.Empty:
            seat = self._seat()
        try:
            with (interrupt or Interrupt()).ending(lambda: None):
                answers = seat.run(feed, self._outputs.values())
        except Interrupted:
            self._idle.put(seat)
            raise
        except Exception as error:  # the library raises ValueError and RuntimeError alike
            # The interpreter is not used again: what it still holds is unknown.
            raise _failure("running the model failed", error) from error
        self._idle.put(seat)
        if interrupt is not None and interrupt.is_set:
            raise Interrupted
        return dict(zip(self._outputs, answers, strict=True))

    def effective_settings(self) -> RuntimeSettings:
        """See `base.Session.effective_settings`. What `load` accepted is what an interpreter is made with."""
        if self._seat is None:
            raise RuntimeFailure("the session is closed")
        return self._settings

    def close(self) -> None:
        """See `base.Session.close`."""
        self._seat = None
        self._idle = queue.SimpleQueue()


class LiteRt:
    """See `base.Runtime`."""

    name = RuntimeName.LITERT

    def load(self, entry: Path, settings: RuntimeSettings, signature: Signature | None = None) -> Session:
        """See `base.Runtime.load`. `streams` are callers of one session; `graph_optimization` changes nothing, because XNNPACK is the default."""
        if settings.precision != Precision.FLOAT32 or settings.batch_size is not None:
            message = "litert computes as the file says: neither another precision nor a fixed batch size can be set"
            raise RuntimeFailure(message, reason=Reason.RECIPE_NOT_APPLICABLE)
        return LiteRtSession(partial(_opened, _content(entry), settings.threads), settings, signature)

    def executed(
        self, entry: Path, settings: RuntimeSettings, inputs: Arrays, signature: Signature | None = None
    ) -> Executed:
        """See `base.Runtime.executed`: counts the file's operators by the types that they take. Nothing is run, so `inputs` are not used.

        An operator with integer weights counts as int8: its kernel also quantizes the activations, while it runs.
        """
        kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = _opened(_content(entry), settings.threads, kernels).interpreter
        kinds = Counter(
            _class(node["operand_types"]) for node in interpreter._get_ops_details() if node["op_name"] in _COMPUTE
        )
        return Executed(**kinds, total=kinds.total())

    def capabilities(self) -> frozenset[Precision]:
        """See `base.Runtime.capabilities`."""
        return frozenset({Precision.FLOAT32})


def _content(entry: Path) -> bytes:
    """The file. All interpreters of a session share it, so that it may go once the session is there. Raises RuntimeFailure."""
    require_file(entry)
    return entry.read_bytes()


def _opened(content: bytes, threads: int, kernels: OpResolverType = OpResolverType.AUTO) -> _Seat:
    """An interpreter of a file. Raises RuntimeFailure."""
    try:
        interpreter = Interpreter(model_content=content, num_threads=threads, experimental_op_resolver_type=kernels)
        interpreter.allocate_tensors()
    except Exception as error:  # the library raises ValueError and RuntimeError alike
        raise _failure("LiteRT could not load the model", error) from error
    shapes = {detail["index"]: tuple(map(int, detail["shape"])) for detail in interpreter.get_input_details()}
    return _Seat(interpreter, shapes)


def _failure(what: str, error: Exception) -> RuntimeFailure:
    unsupported = any(words in str(error) for words in _UNSUPPORTED)
    reason = Reason.UNSUPPORTED_OPERATOR if unsupported else Reason.MODEL_LOAD_FAILED
    return RuntimeFailure(f"{what}: {quoted(error, 400)}", reason=reason)


# -------------------------------------------------------------------------------------------------------------- its boundary


def boundary(entry: Path) -> Signature:
    """Inputs and outputs of a file, as it names its tensors. Raises RuntimeFailure."""
    return _signature(_opened(_content(entry), 1).interpreter)


def _signature(interpreter: Any) -> Signature:
    return Signature(
        inputs=tuple(map(_tensor, interpreter.get_input_details())),
        outputs=tuple(map(_tensor, interpreter.get_output_details())),
    )


def _tensor(detail: Mapping[str, Any]) -> Tensor:
    row = BY_NUMPY.get(np.dtype(detail["dtype"]).name)
    if row is None:
        message = f"the tensor {detail['name']!r} is of type {np.dtype(detail['dtype']).name}; it cannot be served"
        raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
    open_shape = detail["shape_signature"]  # empty in a file that leaves nothing open
    shape = open_shape if len(open_shape) else detail["shape"]
    return Tensor(name=detail["name"], dtype=row.v2, shape=tuple(map(int, shape)))


def _tables(interpreter: Any) -> tuple[Sequence[Details], Sequence[Details]]:
    """The tensors that go in and those that come out, by their own names, and by those that the file's signature has for them."""
    inputs = [{detail["name"]: detail for detail in interpreter.get_input_details()}]
    outputs = [{detail["name"]: detail for detail in interpreter.get_output_details()}]
    if len(interpreter.get_signature_list()) == 1:
        runner = interpreter.get_signature_runner()
        inputs.append(runner.get_input_details())
        outputs.append(runner.get_output_details())
    return inputs, outputs


def _plain(name: str) -> str:
    """A name as TensorFlow writes it into a signature: small letters, digits and '_', without the number of an operator's first tensor."""
    return re.sub("[^a-z0-9]", "_", name.removesuffix(":0").lower())


def _indices(tensors: Sequence[Tensor], tables: Sequence[Details]) -> dict[str, int]:
    """The index of each tensor in the file. Raises RuntimeFailure (UnsupportedModel) where the file has others."""
    for table in tables:
        plain = {_plain(name): detail for name, detail in table.items()}
        if len(plain) == len(table) and all(_plain(tensor.name) in plain for tensor in tensors):
            return {tensor.name: _index(tensor, plain[_plain(tensor.name)]) for tensor in tensors}
    message = f"expected the tensors {[tensor.name for tensor in tensors]}, the file has {sorted(tables[0])}"
    raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)


def _index(tensor: Tensor, detail: Mapping[str, Any]) -> int:
    found = _tensor(detail)
    if found.dtype != tensor.dtype or len(found.shape) != len(tensor.shape):
        expected, there = f"{tensor.dtype} {list(tensor.shape)}", f"{found.dtype} {list(found.shape)}"
        message = f"the tensor {tensor.name!r}: expected {expected}, the file has {there}"
        raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
    return int(detail["index"])


def _class(types: Iterable[Any]) -> str:
    """The class of a compute node from the types of its operands; biases of integers and shapes do not count."""
    taken = {np.dtype(one) for one in types}
    if taken & _INTEGERS:
        return "int8"
    return "f16" if np.dtype("float16") in taken else "f32"


RUNTIME = LiteRt()
