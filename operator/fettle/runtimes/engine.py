"""Running TensorRT engines. Both TensorRT libraries share this code; each has a file that passes its module to it.

An engine's file does not say for which GPU and by which release it was built. The note beside it does (`engine_build`), and is checked first.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api import catalog
from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.text import quoted
from fettle.api.vocabulary import Precision
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array, Arrays, Interrupt, Interrupted, Session, checked_inputs, numpy_dtype
from fettle.runtimes.compiled_kernels import KERNELS, CompiledKernels
from fettle.runtimes.cuda import ContextLost, Cuda, connect, offered
from fettle.runtimes.engine_build import (
    AS_IT_IS,
    EngineNote,
    EngineOptions,
    Library,
    ShapeRange,
    build,
    error_log,
    read_note,
    reported,
    said,
)

log = logging.getLogger(__name__)

# TensorRT's names of data types -> V2's.
_V2 = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "INT8", "INT32": "INT32", "INT64": "INT64"}
_V2 |= {"BOOL": "BOOL", "UINT8": "UINT8"}
# Types that a signature has and an engine has not -> what stands in for them; others are refused.
_STANDS_FOR = {"FP64": "FP32", "INT16": "INT32", "UINT16": "INT32"}


class _Lane:
    """An execution context with its own stream and memory, so that runs of two lanes overlap: copies of one with kernels of the other.

    Where shapes are `static`, its second run is recorded as a CUDA graph, which is launched in one call from then on. The first is not: libraries
    prepare themselves in it.
    """

    def __init__(self, contexts: Callable[[], Any], cuda: Cuda, static: bool) -> None:
        self._cuda = cuda
        self._marks: tuple[int, ...] = ()  # in front of a run, and behind it
        self.milliseconds = 0.0  # of the last run with marks, on the GPU
        self._device: dict[str, tuple[int, int]] = {}  # pointer, bytes
        self._host: dict[str, Array] = {}
        self._recorded: int | None = None
        self._records, self._ran = static, False
        self._stream = cuda.create_stream()
        self._context: Any = None
        try:
            self._context = contexts()
        except Exception as error:  # pybind11 raises what it likes
            self.close()
            raise RuntimeFailure(f"the library made no execution context: {quoted(error)}") from error
        if self._context is None:
            self.close()
            message = "the GPU has too little memory for an execution context: use fewer streams, or a smaller batch"
            raise RuntimeFailure(message, reason=Reason.OUT_OF_MEMORY)

    def run(
        self, feed: Mapping[str, Array], outputs: Mapping[str, np.dtype[Any]], marked: bool = False
    ) -> dict[str, Array]:
        """Answers with memory of their own. `outputs`: data types as the engine has them. `marked`: tell the time on the GPU as well.

        Raises RuntimeFailure; DataInvalid before anything is begun.
        """
        for name, array in feed.items():
            if not self._context.set_input_shape(name, array.shape):
                message = f"input {name}: the engine was built for other shapes than {list(array.shape)}"
                raise RuntimeFailure(message, reason=Reason.DATA_INVALID)
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in outputs}
        given = {name: self._room(name, array.nbytes) for name, array in feed.items()}
        for name, array in feed.items():
            given[name].view(array.dtype)[:] = array.reshape(-1)
        places = {name: self._output(name, shapes[name], dtype) for name, dtype in outputs.items()}
        if self._records and self._ran:
            self._record(given, places)
        if marked:
            while len(self._marks) < 2:
                self._marks += (self._cuda.create_event(),)
            self._cuda.record(self._marks[0], self._stream)
        if self._recorded is not None:
            self._cuda.launch(self._recorded, self._stream)
        else:
            self._put(given, places)
        if marked:
            self._cuda.record(self._marks[1], self._stream)
        self._cuda.synchronize(self._stream)
        if marked:
            self.milliseconds = self._cuda.milliseconds(*self._marks)
        self._ran = True
        return {name: places[name].view(dtype).reshape(shapes[name]).copy() for name, dtype in outputs.items()}

    def _put(self, given: Mapping[str, Array], places: Mapping[str, Array]) -> None:
        """Put a run on the stream: copies there, kernels, copies back."""
        for name, memory in given.items():
            self._cuda.copy_in(self._device[name][0], memory, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise RuntimeFailure("the engine did not start")
        for name, memory in places.items():
            self._cuda.copy_out(memory, self._device[name][0], self._stream)

    def _record(self, given: Mapping[str, Array], places: Mapping[str, Array]) -> None:
        """Record a run, once. One that cannot be recorded is put on the stream call by call, as before."""
        self._records = False
        graph = 0
        try:
            self._cuda.begin_capture(self._stream)
            try:
                self._put(given, places)
            finally:
                graph = self._cuda.end_capture(self._stream)
            self._recorded = self._cuda.instantiate(graph)
        except ContextLost:
            raise
        except RuntimeFailure as error:
            log.info("runs are not recorded as a CUDA graph: %s", error.message)
        finally:
            if graph:
                self._cuda.destroy_graph(graph)

    def _output(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if -1 in shape:
            message = f"the output {name!r} has a shape that depends on its values: engines with such outputs are not supported"
            raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
        return self._room(name, math.prod(shape) * dtype.itemsize)

    def _room(self, name: str, size: int) -> Array:
        """`size` bytes of pinned memory for a tensor, and as many on the GPU, whose address is passed to the context."""
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
        if self._recorded is not None:
            self._cuda.destroy_executable(self._recorded)
            self._recorded = None
        for name in [*self._device, *self._host]:
            self._give_back(name)
        for mark in self._marks:
            self._cuda.destroy_event(mark)
        self._marks = ()
        self._cuda.destroy_stream(self._stream)


class EngineSession:
    """A deserialized engine, and as many lanes as it has streams."""

    def __init__(
        self,
        engine: Any,
        cuda: Cuda,
        settings: RuntimeSettings,
        signature: Signature,
        kernels: CompiledKernels | None = None,
    ) -> None:
        self._engine, self._cuda, self._settings, self._signature = engine, cuda, settings, signature
        self._contexts = engine.create_execution_context if kernels is None else kernels.context
        self._kernels = kernels  # until they are kept
        self._marked, self._milliseconds = False, 0.0
        self._types = {tensor.name: _engine_type(engine, tensor) for tensor in (*signature.inputs, *signature.outputs)}
        self._static = all(-1 not in tuple(engine.get_tensor_shape(tensor.name)) for tensor in signature.inputs)
        # A place without a lane gets one when it is needed: what was in it failed.
        self._idle: queue.SimpleQueue[_Lane | None] = queue.SimpleQueue()
        self._places = 0
        try:
            for _ in range(settings.streams):
                self._idle.put(_Lane(self._contexts, cuda, self._static))
                self._places += 1
        except BaseException:
            self.close()
            raise

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """See `base.Session.infer`. Kernels cannot be stopped: an interrupted run continues to its end, and its result is dropped."""
        checked = checked_inputs(self._signature, inputs)
        feed = {name: array.astype(self._types[name], copy=False) for name, array in checked.items()}
        outputs = {tensor.name: self._types[tensor.name] for tensor in self._signature.outputs}
        with (interrupt or Interrupt()).ending(lambda: None):
            answers = self._run(feed, outputs)
        kernels, self._kernels = self._kernels, None
        if kernels is not None:  # a run has compiled what was still missing
            kernels.keep()
        if interrupt is not None and interrupt.is_set:
            raise Interrupted
        return {
            tensor.name: answers[tensor.name].astype(numpy_dtype(tensor.dtype), copy=False)
            for tensor in self._signature.outputs
        }

    def _run(self, feed: Mapping[str, Array], outputs: Mapping[str, np.dtype[Any]]) -> dict[str, Array]:
        lane, kept = self._idle.get(), None
        try:
            if self._engine is None:
                raise RuntimeFailure("the session is closed")
            lane = lane or _Lane(self._contexts, self._cuda, self._static)
            answers = lane.run(feed, outputs, self._marked)
            self._milliseconds = lane.milliseconds
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
        self._contexts = self._engine = self._kernels = None
        self._idle.put(None)  # for runs that still wait for a lane

    def time_on_gpu(self) -> None:
        """See `base.TimedOnGpu`."""
        self._marked = True

    def gpu_milliseconds(self) -> float:
        """See `base.TimedOnGpu`."""
        return self._milliseconds


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

    def build(
        self,
        entry: Path,
        target: Path,
        architecture: str,
        shapes: Mapping[str, ShapeRange],
        options: EngineOptions = AS_IT_IS,
    ) -> EngineNote:
        """See `build`."""
        return build(self.library, entry, target, architecture, shapes, options)

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
        log = error_log(trt)
        with reported(self.library, log):
            engine = trt.Runtime(log).deserialize_cuda_engine(entry.read_bytes())
        if engine is None:
            raise RuntimeFailure(said(self.library, "could not load the engine", log.errors))
        kernels = None
        if self.library.compiles_on_load:
            kernels = CompiledKernels(engine, entry.with_name(KERNELS), self.library.made_for(note.architecture))
        return EngineSession(engine, cuda, settings, signature, kernels)

    def executed(
        self, entry: Path, settings: RuntimeSettings, inputs: Arrays, signature: Signature | None = None
    ) -> Executed:
        """See `base.Runtime.executed`: the layers of the strongly typed network that the engine was built from; nothing is run."""
        return read_note(entry).executed

    def capabilities(self) -> frozenset[Precision]:
        """See `base.Runtime.capabilities`."""
        return offered(catalog.runtime(self.name).precisions)

    def _require_release(self, note: EngineNote) -> None:
        if (note.library, note.version) == (self.library.distribution, self.library.version):
            return
        message = (
            f"the engine was built by {note.library} {note.version}, but this image has {self.library.distribution} {self.library.version}: "
            "an engine only runs with the release that built it; use images of one version of Fettle, and optimize the model again"
        )
        raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
