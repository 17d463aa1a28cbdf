"""Running TensorRT engines. Both TensorRT libraries share this code; each has a file that passes its module to it.

An engine's file does not say for which GPU and by which release it was built. The note beside it does (`engine_build`), and is checked first.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
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
    Profile,
    build,
    error_log,
    read_note,
    reported,
    said,
)
from fettle.runtimes.engine_lane import Lane, built_profiles

# TensorRT's names of data types -> V2's.
_V2 = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "INT8", "INT32": "INT32", "INT64": "INT64"}
_V2 |= {"BOOL": "BOOL", "UINT8": "UINT8"}
# Types that a signature has and an engine has not -> what stands in for them; others are refused.
_STANDS_FOR = {"FP64": "FP32", "INT16": "INT32", "UINT16": "INT32"}


class EngineSession:
    """A deserialized engine, and as many lanes as it has streams. `contexts` makes an execution context to which memory is given."""

    def __init__(
        self,
        engine: Any,
        cuda: Cuda,
        settings: RuntimeSettings,
        signature: Signature,
        contexts: Callable[[], Any],
        kernels: CompiledKernels | None = None,
    ) -> None:
        self._cuda, self._settings, self._signature, self._kernels = cuda, settings, signature, kernels
        self._contexts: Callable[[], Any] | None = contexts
        self._marked, self._milliseconds = False, 0.0
        self._types = {tensor.name: _engine_type(engine, tensor) for tensor in (*signature.inputs, *signature.outputs)}
        self._profiles = built_profiles(engine, (tensor.name for tensor in signature.inputs), kernels is not None)
        # A place without a lane gets one when it is needed: what was in it failed.
        self._idle: queue.SimpleQueue[Lane | None] = queue.SimpleQueue()
        self._places = 0
        try:
            for _ in range(settings.streams):
                self._idle.put(Lane(contexts, cuda, self._profiles))
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
        if interrupt is not None and interrupt.is_set:
            raise Interrupted
        return {
            tensor.name: answers[tensor.name].astype(numpy_dtype(tensor.dtype), copy=False)
            for tensor in self._signature.outputs
        }

    def _run(self, feed: Mapping[str, Array], outputs: Mapping[str, np.dtype[Any]]) -> dict[str, Array]:
        lane, kept = self._idle.get(), None
        try:
            if self._contexts is None:
                raise RuntimeFailure("the session is closed")
            lane = lane or Lane(self._contexts, self._cuda, self._profiles)
            answers = lane.run(feed, outputs, self._marked)
            self._milliseconds = lane.milliseconds
            if lane.first and self._kernels is not None:  # it has compiled what was still missing
                self._kernels.keep()
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
        self._contexts = self._kernels = None
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
        profiles: Sequence[Profile],
        options: EngineOptions = AS_IT_IS,
    ) -> EngineNote:
        """See `build`."""
        return build(self.library, entry, target, architecture, profiles, options)

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
        given = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.library.compiles_on_load:
            contexts = partial(engine.create_execution_context, given)
            return EngineSession(engine, cuda, settings, signature, contexts)
        kernels = CompiledKernels(engine, entry.with_name(KERNELS), self.library.made_for(note.architecture), given)
        return EngineSession(engine, cuda, settings, signature, kernels.context, kernels)

    def executed(
        self, entry: Path, settings: RuntimeSettings, inputs: Arrays, signature: Signature | None = None
    ) -> Executed:
        """See `base.Runtime.executed`: the layers of the strongly typed network that the engine was built from; nothing is run."""
        return read_note(entry).executed

    def capabilities(self) -> frozenset[Precision]:
        """See `base.Runtime.capabilities`."""
        return offered(self.name)

    def _require_release(self, note: EngineNote) -> None:
        if (note.library, note.version) == (self.library.distribution, self.library.version):
            return
        message = (
            f"the engine was built by {note.library} {note.version}, but this image has {self.library.distribution} {self.library.version}: "
            "an engine only runs with the release that built it; use images of one version of Fettle, and optimize the model again"
        )
        raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
