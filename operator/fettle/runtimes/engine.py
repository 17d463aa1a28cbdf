"""TensorRT's engines: what its two libraries, TensorRT and TensorRT RTX, share. Each has a file that gives its module to what stands here.

Facts that this file rests on (TensorRT RTX 1.7, whose builder needs no GPU; TensorRT 11 has the same API but for `ComputeCapability`):
- A network is strongly typed: the precision of each layer is the one that the ONNX file asks for; there are no flags for it. TF32 is a flag,
  on by default, and taken off: float32 means float32.
- An engine belongs to one release of one library, and to the architectures that it was built for. Nothing in the file says so before it is
  loaded on a GPU: `engine.json` beside it does.
- Two builds of one model need not have the same bytes: what identifies an engine is what it was built from, never its digest.
- A logger is the only one who says why a build failed; parsing says it by node.
"""

from __future__ import annotations

import contextlib
import math
import queue
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.base import ApiModel
from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.text import clip, quoted
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array, Arrays, Interrupt, Interrupted, Session, checked_inputs, numpy_dtype
from fettle.runtimes.cuda import ContextLost, Cuda, connect

NOTE = "engine.json"
# TensorRT's names of data types -> V2's.
_V2 = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "INT8", "INT32": "INT32", "INT64": "INT64"}
_V2 |= {"BOOL": "BOOL", "UINT8": "UINT8"}
# Types that a signature has and an engine has not -> what stands in for them; others are refused.
_STANDS_FOR = {"FP64": "FP32", "INT16": "INT32", "UINT16": "INT32"}
_COMPUTE = {"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION"}
_CLASSES = {"FLOAT": "f32", "HALF": "f16", "BF16": "bf16", "INT8": "int8", "FP8": "int8"}


@dataclass(frozen=True)
class ShapeRange:
    """Shapes that an input may have: each size lies between those of `least` and `most`; the engine is fastest at `usual`."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]


class EngineNote(ApiModel):
    """What an engine's file does not say: which release of which library made it, for which GPU, and what it computes in.

    `executed` are the layers of the network as it was built: it is strongly typed, so they run in no other precision.
    """

    library: str
    version: str
    architecture: str
    executed: Executed


@dataclass(frozen=True)
class Library:
    """One of TensorRT's libraries. `ahead_of_time`: it builds for an architecture that is named, with or without a GPU."""

    name: RuntimeName
    module: Any
    distribution: str
    ahead_of_time: bool

    @property
    def version(self) -> str:
        """Its release: engines do not move between two of them."""
        return str(self.module.__version__)

    def architectures(self) -> tuple[str, ...]:
        """Those that it can be asked to build for; none where it builds for the GPU at hand."""
        if not self.ahead_of_time:
            return ()
        names = self.module.ComputeCapability.__members__
        return tuple(name.lower() for name in names if name.startswith("SM"))


def build(
    library: Library, entry: Path, target: Path, architecture: str, shapes: Mapping[str, ShapeRange]
) -> EngineNote:
    """Build the ONNX file at `entry` for `architecture` and write the engine to `target`, its note beside it.

    `shapes`: what inputs with sizes that vary may have. Raises RuntimeFailure: UnsupportedOperator naming nodes, UnsupportedModel for inputs
    of an unknown shape, NodeIncompatible where this library does not build for that architecture here.
    """
    trt = library.module
    log = _log(trt)
    with _reported(library, log):
        builder = trt.Builder(log)
        network = _parsed(library, builder, entry, log)
        executed = precisions(network)
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        _aim(library, config, architecture)
        if (profile := _profile(builder, network, shapes)) is not None:
            config.add_optimization_profile(profile)
        content = builder.build_serialized_network(network, config)
        if content is None:
            raise RuntimeFailure(_said(library, "built no engine", log.errors), reason=Reason.UNSUPPORTED_MODEL)
    target.write_bytes(content)
    note = EngineNote(
        library=library.distribution, version=library.version, architecture=architecture, executed=executed
    )
    target.with_name(NOTE).write_bytes(note.canonical())
    return note


def _log(trt: Any) -> Any:
    """A logger that keeps errors."""

    class Log(trt.ILogger):  # type: ignore[misc]  # its base is known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message)

    return Log()


@contextlib.contextmanager
def _reported(library: Library, log: Any) -> Iterator[None]:
    """The library's own exceptions (pybind11 makes them TypeError, RuntimeError and others) become ours."""
    try:
        yield
    except (RuntimeFailure, MemoryError, OSError):
        raise
    except Exception as error:
        raise RuntimeFailure(_said(library, f"failed: {error}", log.errors)) from error


def _said(library: Library, what: str, errors: Sequence[str]) -> str:
    details = "; ".join(dict.fromkeys(" ".join(error.split()) for error in errors))
    return f"{library.name} {what}: {quoted(clip(details or 'it gave no reason', 400))}"


def _parsed(library: Library, builder: Any, entry: Path, log: Any) -> Any:
    trt = library.module
    if not entry.is_file():
        raise RuntimeFailure(f"{entry} does not exist")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(entry)):
        return network
    refused = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = dict.fromkeys(
        f"{error.node_operator()} {error.node_name() or '(without a name)'}: {' '.join(error.desc().split())}"
        for error in refused
    )
    text = "; ".join(nodes) or "; ".join(log.errors)
    message = f"{library.name} does not take this model: {quoted(clip(text, 400))}"
    raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_OPERATOR)


def _aim(library: Library, config: Any, architecture: str) -> None:
    """Tell the builder which GPU the engine is for. Raises RuntimeFailure (NodeIncompatible)."""
    if not library.ahead_of_time:
        here = connect().architecture()
        if here != architecture:
            message = f"{library.name} builds for the GPU at hand, which is {here}; the target's is {architecture}"
            raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
        return
    known = library.architectures()
    if architecture not in known:
        message = f"{library.name} {library.version} builds for {', '.join(known)}, not for {architecture}"
        raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(library.module.ComputeCapability, architecture.upper()), 0)


def _profile(builder: Any, network: Any, shapes: Mapping[str, ShapeRange]) -> Any | None:
    """The optimization profile; None where every input has one shape, which the network is told then."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    profile = None
    for tensor in inputs:
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        sizes = shapes.get(tensor.name)
        if sizes is None or len(sizes.most) != len(shape):
            message = f"the input {tensor.name!r} has the shape {list(shape)}: an engine needs the range of each size that varies"
            raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
        if sizes.least == sizes.most:
            tensor.shape = sizes.most
            continue
        profile = profile or builder.create_optimization_profile()
        profile.set_shape(tensor.name, sizes.least, sizes.usual, sizes.most)
    return profile


def precisions(network: Any) -> Executed:
    """The layers that compute, by the precision that the network asks for: a product of dequantized values runs in integers."""
    makers = {}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    for layer in layers:
        for index in range(layer.num_outputs):
            output = layer.get_output(index)
            if output is not None:
                makers[output.name] = layer
    classes = [_precision(layer, makers) for layer in layers if layer.type.name in _COMPUTE]
    return Executed(**Counter(classes), total=len(classes))


def _precision(layer: Any, makers: Mapping[str, Any]) -> str:
    first = layer.get_input(0)
    maker = makers.get(first.name)
    if maker is not None and maker.type.name == "DEQUANTIZE":
        return "int8"
    return _CLASSES.get(first.dtype.name, "f32")


def shapes_of(signature: Signature, batch_size: int | None, batch_sizes: Sequence[int]) -> dict[str, ShapeRange]:
    """Shapes of the inputs: `batch_size` items where it is set, else from one item to the largest of `batch_sizes`, the first of which is
    the usual one. Raises RuntimeFailure (UnsupportedModel) for a size that varies beside the batch: nothing says between what."""
    sizes = (batch_size, batch_size, batch_size) if batch_size else (1, batch_sizes[0], max(batch_sizes))
    return {tensor.name: ShapeRange(*(_shape(tensor, size) for size in sizes)) for tensor in signature.inputs}


def _shape(tensor: Tensor, batch: int) -> tuple[int, ...]:
    shape = tuple(batch if axis == tensor.batch_axis else size for axis, size in enumerate(tensor.shape))
    if -1 in shape:
        message = f"the input {tensor.name!r} has the shape {list(tensor.shape)}, and nothing says how far its sizes vary: give them in source.inputs"
        raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
    return shape


class _Lane:
    """An execution context with a stream and memory of its own: runs of two lanes overlap, copies of one with kernels of the other."""

    def __init__(self, engine: Any, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device: dict[str, tuple[int, int]] = {}  # pointer, bytes
        self._host: dict[str, Array] = {}
        self._stream = cuda.create_stream()
        self._context = engine.create_execution_context()
        if self._context is None:
            self.close()
            message = "the GPU has no room for an execution context: use fewer streams, or a smaller batch"
            raise RuntimeFailure(message, reason=Reason.OUT_OF_MEMORY)

    def run(self, feed: Mapping[str, Array], outputs: Mapping[str, np.dtype[Any]]) -> dict[str, Array]:
        """Answers with memory of their own. `outputs`: data types as the engine has them.

        Raises RuntimeFailure; DataInvalid before anything is begun.
        """
        for name, array in feed.items():
            if not self._context.set_input_shape(name, array.shape):
                message = f"input {name}: the engine was built for other shapes than {list(array.shape)}"
                raise RuntimeFailure(message, reason=Reason.DATA_INVALID)
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in outputs}
        for name, array in feed.items():
            memory = self._room(name, array.nbytes)
            memory.view(array.dtype)[:] = array.reshape(-1)
            self._cuda.copy_in(self._device[name][0], memory, self._stream)
        places = {name: self._output(name, shapes[name], dtype) for name, dtype in outputs.items()}
        if not self._context.execute_async_v3(self._stream):
            raise RuntimeFailure("the engine did not start")
        for name, memory in places.items():
            self._cuda.copy_out(memory, self._device[name][0], self._stream)
        self._cuda.synchronize(self._stream)
        return {name: places[name].view(dtype).reshape(shapes[name]).copy() for name, dtype in outputs.items()}

    def _output(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if -1 in shape:
            message = (
                f"the output {name!r} has a shape that only its values tell: engines are not run with such outputs"
            )
            raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
        return self._room(name, math.prod(shape) * dtype.itemsize)

    def _room(self, name: str, size: int) -> Array:
        """`size` bytes of pinned memory for a tensor, and as many on the GPU, whose address the context is told."""
        pointer, held = self._device.get(name, (0, 0))
        if held < size or not held:
            self._give_back(name)
            wanted = max(size, 1)
            self._device[name] = (pointer := self._cuda.allocate(wanted), wanted)
            self._host[name] = self._cuda.allocate_host(wanted)
        self._context.set_tensor_address(name, pointer)
        return self._host[name][:size]

    def _give_back(self, name: str) -> None:
        if name in self._device:
            self._cuda.free(self._device.pop(name)[0])
        if name in self._host:
            self._cuda.free_host(self._host.pop(name))

    def close(self) -> None:
        """Free what it holds; the context first, which may still use the rest."""
        self._context = None
        for name in [*self._device, *self._host]:
            self._give_back(name)
        self._cuda.destroy_stream(self._stream)


class EngineSession:
    """A deserialized engine, and as many lanes as it has streams."""

    def __init__(self, engine: Any, cuda: Cuda, settings: RuntimeSettings, signature: Signature) -> None:
        self._engine, self._cuda, self._settings, self._signature = engine, cuda, settings, signature
        self._types = {tensor.name: _engine_type(engine, tensor) for tensor in (*signature.inputs, *signature.outputs)}
        # A place without a lane gets one when it is needed: what was in it failed.
        self._idle: queue.SimpleQueue[_Lane | None] = queue.SimpleQueue()
        self._places = 0
        try:
            for _ in range(settings.streams):
                self._idle.put(_Lane(engine, cuda))
                self._places += 1
        except BaseException:
            self.close()
            raise

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """See `base.Session.infer`. Kernels cannot be stopped: a run that is interrupted goes on to its end, and then has no answer."""
        if self._engine is None:
            raise RuntimeFailure("the session is closed")
        checked = checked_inputs(self._signature, inputs)
        feed = {name: np.ascontiguousarray(array, self._types[name]) for name, array in checked.items()}
        outputs = {tensor.name: self._types[tensor.name] for tensor in self._signature.outputs}
        with (interrupt or Interrupt()).ending(lambda: None):
            answers = self._run(feed, outputs)
        if interrupt is not None and interrupt.is_set:
            raise Interrupted
        return {
            tensor.name: answers[tensor.name].astype(numpy_dtype(tensor.dtype), copy=False)
            for tensor in self._signature.outputs
        }

    def _run(self, feed: Mapping[str, Array], outputs: Mapping[str, np.dtype[Any]]) -> dict[str, Array]:
        lane, kept = self._idle.get(), None
        try:
            lane = lane or _Lane(self._engine, self._cuda)
            answers = lane.run(feed, outputs)
            kept = lane
        except ContextLost:
            raise  # with the context went all that the lane held
        except BaseException as error:
            if isinstance(error, RuntimeFailure) and error.reason == Reason.DATA_INVALID:
                kept = lane
            elif lane is not None:  # what a failed run left on its stream is unknown: its lane is not used again
                lane.close()
            raise
        finally:
            self._idle.put(kept)
        return answers

    def effective_settings(self) -> RuntimeSettings:
        """See `base.Session.effective_settings`. Precision and batch are the file's; threads mean nothing to a GPU."""
        return self._settings.model_copy(update={"streams": self._places})

    def close(self) -> None:
        """See `base.Session.close`: waits for the runs that are under way."""
        while self._places:
            self._places -= 1
            lane = self._idle.get()
            if lane is not None:
                with contextlib.suppress(ContextLost):  # nothing is left to free
                    lane.close()
        self._engine = None


def _engine_type(engine: Any, tensor: Tensor) -> np.dtype[Any]:
    """The data type that the engine has for a tensor. Raises RuntimeFailure (UnsupportedModel) where it is not the signature's nor stands for it."""
    found = engine.get_tensor_dtype(tensor.name).name
    v2 = _V2.get(found)
    if v2 is None or v2 not in (tensor.dtype, _STANDS_FOR.get(tensor.dtype)):
        message = f"the tensor {tensor.name!r} is {tensor.dtype}, and the engine has {found}"
        raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
    return numpy_dtype(v2)


class EngineRuntime:
    """See `base.Runtime`: what runs engines of `library`."""

    def __init__(self, library: Library) -> None:
        self.library, self.name = library, library.name

    def build(self, entry: Path, target: Path, architecture: str, shapes: Mapping[str, ShapeRange]) -> EngineNote:
        """See `build`."""
        return build(self.library, entry, target, architecture, shapes)

    def load(self, entry: Path, settings: RuntimeSettings, signature: Signature | None = None) -> Session:
        """See `base.Runtime.load`. `signature` is needed: an engine does not say which axis is the batch's."""
        if signature is None:
            raise RuntimeFailure("an engine does not say which axis is the batch's: a signature is needed")
        note = read_note(entry)
        self._require_release(note)
        cuda = connect()
        if cuda.architecture() != note.architecture:
            message = f"the engine was built for {note.architecture}, and this node's GPU ({cuda.name()}) is {cuda.architecture()}"
            raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
        trt = self.library.module
        log = _log(trt)
        with _reported(self.library, log):
            engine = trt.Runtime(log).deserialize_cuda_engine(entry.read_bytes())
        if engine is None:
            raise RuntimeFailure(_said(self.library, "could not load the engine", log.errors))
        return EngineSession(engine, cuda, settings, signature)

    def executed(
        self, entry: Path, settings: RuntimeSettings, inputs: Arrays, signature: Signature | None = None
    ) -> Executed:
        """See `base.Runtime.executed`: the layers of the strongly typed network that the engine was built from; nothing is run."""
        return read_note(entry).executed

    def capabilities(self) -> frozenset[Precision]:
        """See `base.Runtime.capabilities`: bfloat16 from Ampere (sm80) on."""
        known = {Precision.FLOAT32, Precision.FLOAT16}
        return frozenset(known | ({Precision.BFLOAT16} if int(connect().architecture()[2:]) >= 80 else set()))

    def _require_release(self, note: EngineNote) -> None:
        if (note.library, note.version) == (self.library.distribution, self.library.version):
            return
        message = (
            f"the engine was built by {note.library} {note.version}, and here is {self.library.distribution} {self.library.version}: "
            "engines do not move between releases; optimize the model again"
        )
        raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)


def read_note(entry: Path) -> EngineNote:
    """The note beside an engine. Raises RuntimeFailure where it is missing or cannot be read."""
    path = entry.with_name(NOTE)
    try:
        return EngineNote.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"{path} cannot be read: {error}") from error
