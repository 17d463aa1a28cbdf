"""The little of CUDA that running an engine takes: memory on both sides, streams, copies. NVIDIA's cuda-bindings, and nothing else.

Facts that this file rests on: calls return their error instead of raising it; an error that a kernel left behind (an illegal address, a
launch that failed) is sticky: each later call of the process answers it again, and only a new process helps; memory of the host is copied
beside kernels only if it is pinned.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from fettle.api import architectures, catalog
from fettle.api.reasons import Reason
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array


class ContextLost(RuntimeFailure):
    """A kernel left the GPU's context unusable: nothing in this process can use the GPU any more, a new process can."""


class Cuda(Protocol):
    """One GPU. Pointers and streams are the numbers that CUDA gives them. Each method raises RuntimeFailure: OutOfMemory where the GPU or
    the host has no room, ContextLost where no later call can succeed."""

    def architecture(self) -> str:
        """Compute capability: `sm89` is 8.9."""
        ...

    def name(self) -> str:
        """The product: `NVIDIA L4`."""
        ...

    def uuid(self) -> str:
        """What identifies the GPU on any node, as NVIDIA's tools write it: `GPU-5d1f...`."""
        ...

    def driver(self) -> str:
        """The newest CUDA that the driver runs: `13.0`."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and all."""
        ...

    def create_stream(self) -> int:
        """A stream that waits for no other."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back; what it still runs goes on to its end."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait until all is done that was put on the stream."""
        ...

    def allocate(self, size: int) -> int:
        """Memory of the GPU, in bytes."""
        ...

    def free(self, pointer: int) -> None:
        """Give memory of the GPU back."""
        ...

    def allocate_host(self, size: int) -> Array:
        """Pinned memory of the host, as bytes."""
        ...

    def free_host(self, memory: Array) -> None:
        """Give pinned memory back: the array must not be used any more."""
        ...

    def copy_in(self, pointer: int, memory: Array, stream: int) -> None:
        """Put a copy from pinned memory to the GPU on the stream."""
        ...

    def copy_out(self, memory: Array, pointer: int, stream: int) -> None:
        """Put a copy from the GPU to pinned memory on the stream."""
        ...

    def begin_capture(self, stream: int) -> None:
        """From here on, what is put on the stream is recorded and not run."""
        ...

    def end_capture(self, stream: int) -> int:
        """A graph of what was recorded. The stream runs again what is put on it, also where this fails."""
        ...

    def instantiate(self, graph: int) -> int:
        """What can be launched of a graph, which is not needed any more then."""
        ...

    def launch(self, executable: int, stream: int) -> None:
        """Put all that was recorded on the stream, in one call."""
        ...

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back."""
        ...

    def destroy_executable(self, executable: int) -> None:
        """Give back what was made of a graph."""
        ...

    def create_event(self) -> int:
        """A mark with a time, for a stream."""
        ...

    def destroy_event(self, event: int) -> None:
        """Give a mark back."""
        ...

    def record(self, event: int, stream: int) -> None:
        """Put the mark on the stream: it gets the time at which all before it is done."""
        ...

    def milliseconds(self, begin: int, end: int) -> float:
        """The time between two marks, once the stream was waited for."""
        ...


@lru_cache
def connect() -> Cuda:
    """The first GPU that this process may use. Raises RuntimeFailure (NodeIncompatible) where there is none, or no driver."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        message = f"cuda-bindings is not installed here ({error}); use an image for GPUs"
        raise RuntimeFailure(message) from error
    return _CudaBindings(runtime)


def offered(name: RuntimeName) -> frozenset[Precision]:
    """Those precisions of a runtime in which the GPU can compute. Raises RuntimeFailure as `connect`."""
    here = connect().architecture()
    return frozenset(each for each in catalog.runtime(name).precisions if architectures.offers(here, each))


@contextmanager
def telling_lost_contexts() -> Iterator[None]:
    """A run by a library that does not tell whether a kernel left the GPU's context unusable: raises ContextLost where one did."""
    try:
        yield
    except RuntimeFailure as error:
        if error.reason != Reason.DATA_INVALID:
            connect().memory()  # raises ContextLost
        raise


class _CudaBindings:
    """`Cuda` on cuda.bindings.runtime."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        try:
            error, count = runtime.cudaGetDeviceCount()
        except RuntimeError as failure:  # it finds no driver library to load
            raise no_device(str(failure)) from failure
        if error != runtime.cudaError_t.cudaSuccess or not count:
            raise no_device(self._text(error) if error != runtime.cudaError_t.cudaSuccess else "no device is visible")
        self._properties = self._ask("cudaGetDeviceProperties", 0)

    def architecture(self) -> str:
        return f"sm{self._properties.major}{self._properties.minor}"

    def name(self) -> str:
        product: str = self._properties.name.decode(errors="replace")
        return product

    def uuid(self) -> str:
        return f"GPU-{uuid.UUID(bytes=bytes(self._properties.uuid.bytes))}"

    def driver(self) -> str:
        version = int(self._ask("cudaDriverGetVersion"))
        return f"{version // 1000}.{version % 1000 // 10}"

    def memory(self) -> tuple[int, int]:
        free, total = self._ask("cudaMemGetInfo")
        return free, total

    def create_stream(self) -> int:
        return int(self._ask("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._ask("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._ask("cudaStreamSynchronize", stream)

    def allocate(self, size: int) -> int:
        return int(self._ask("cudaMalloc", size))

    def free(self, pointer: int) -> None:
        self._ask("cudaFree", pointer)

    def allocate_host(self, size: int) -> Array:
        import ctypes

        pointer = int(self._ask("cudaMallocHost", size))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    def free_host(self, memory: Array) -> None:
        self._ask("cudaFreeHost", memory.ctypes.data)

    def copy_in(self, pointer: int, memory: Array, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._ask("cudaMemcpyAsync", pointer, memory.ctypes.data, memory.nbytes, kind, stream)

    def copy_out(self, memory: Array, pointer: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._ask("cudaMemcpyAsync", memory.ctypes.data, pointer, memory.nbytes, kind, stream)

    def begin_capture(self, stream: int) -> None:
        # Relaxed: what other threads do meanwhile, such as taking memory, is no error.
        self._ask("cudaStreamBeginCapture", stream, self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed)

    def end_capture(self, stream: int) -> int:
        return int(self._ask("cudaStreamEndCapture", stream))

    def instantiate(self, graph: int) -> int:
        return int(self._ask("cudaGraphInstantiate", graph, 0))

    def launch(self, executable: int, stream: int) -> None:
        self._ask("cudaGraphLaunch", executable, stream)

    def destroy_graph(self, graph: int) -> None:
        self._ask("cudaGraphDestroy", graph)

    def destroy_executable(self, executable: int) -> None:
        self._ask("cudaGraphExecDestroy", executable)

    def create_event(self) -> int:
        return int(self._ask("cudaEventCreate"))

    def destroy_event(self, event: int) -> None:
        self._ask("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._ask("cudaEventRecord", event, stream)

    def milliseconds(self, begin: int, end: int) -> float:
        return float(self._ask("cudaEventElapsedTime", begin, end))

    def _ask(self, function: str, *arguments: Any) -> Any:
        """What a call answers: nothing, one value, or a tuple of several."""
        error, *answers = getattr(self._runtime, function)(*arguments)
        codes = self._runtime.cudaError_t
        if error == codes.cudaSuccess:
            return answers[0] if len(answers) == 1 else tuple(answers)
        text = f"{function}: {self._text(error)}"
        # What the last call left behind is taken away by asking for it, unless it is sticky: a library that looks next would take it for its own.
        self._runtime.cudaGetLastError()
        if error == codes.cudaErrorMemoryAllocation:
            raise RuntimeFailure(f"the GPU, or this pod, is out of memory ({text})", reason=Reason.OUT_OF_MEMORY)
        still, *_ = self._runtime.cudaMemGetInfo()
        if still != codes.cudaSuccess:
            raise ContextLost(f"the GPU's context is lost ({text}): only a new process can use the GPU")
        raise RuntimeFailure(f"CUDA failed ({text})")

    def _text(self, error: Any) -> str:
        _, text = self._runtime.cudaGetErrorString(error)
        return text.decode() if isinstance(text, bytes) else str(text)


def no_device(what: str) -> RuntimeFailure:
    """The error for a node without a GPU that this process may use."""
    message = (
        f"this node has no NVIDIA GPU that the pod may use ({what}); ask for one, such as nvidia.com/gpu: 1 in resources.limits, "
        "and check that the node's driver is new enough for the image"
    )
    return RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
