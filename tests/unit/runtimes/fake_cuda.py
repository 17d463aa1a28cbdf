"""A GPU for tests: what `runtimes/cuda.py` promises, in this process's memory, each call written down; and an engine that runs on it.

The calls that change something happen when the stream is waited for, in their order, as on a GPU: what reads too early reads old bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from fettle.api.reasons import Reason
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array

GARBAGE = 0xAB  # what memory holds before anybody writes to it
USER_MANAGED = "user managed"  # memory of contexts is allocated by who makes them


@dataclass
class FakeCuda:
    """`fails`: by a call's name, the error that it raises, each once, and how many calls of it go well before."""

    sm: str = "sm89"
    cuda_version: str = "13.0"
    calls: list[str] = field(default_factory=list)
    fails: dict[str, tuple[int, RuntimeFailure]] = field(default_factory=dict)
    device: dict[int, Array] = field(default_factory=dict)
    host: dict[int, Array] = field(default_factory=dict)
    streams: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    captures: dict[int, list[Callable[[], None]]] = field(default_factory=dict)  # by stream, while it is recorded
    graphs: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    executables: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    events: dict[int, int] = field(default_factory=dict)
    _times: Any = field(default_factory=itertools.count)  # a millisecond for each mark
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1000))

    def _call(self, name: str) -> None:
        self.calls.append(name)
        before, error = self.fails.get(name, (0, None))
        if error is None:
            return
        if before:
            self.fails[name] = (before - 1, error)
            return
        del self.fails[name]
        raise error

    def architecture(self) -> str:
        return self.sm

    def name(self) -> str:
        return "NVIDIA Fake"

    def uuid(self) -> str:
        return "GPU-5d1f6b0e-3a52-4f0c-9a1e-0c8f4c2b7d11"

    def memory(self) -> tuple[int, int]:
        return 1 << 30, 2 << 30

    def driver(self) -> str:
        return self.cuda_version

    def create_stream(self) -> int:
        self._call("create_stream")
        number = next(self._numbers)
        self.streams[number] = []
        return number

    def destroy_stream(self, stream: int) -> None:
        self._call("destroy_stream")
        del self.streams[stream]

    def synchronize(self, stream: int) -> None:
        self._call("synchronize")
        assert stream not in self.captures, "nothing that is recorded has run"
        for action in self.streams[stream]:
            action()
        self.streams[stream].clear()

    def allocate(self, size: int) -> int:
        self._call("allocate")
        assert not self.captures, "what is recorded keeps the addresses that it saw"
        number = next(self._numbers)
        self.device[number] = np.full(size, GARBAGE, np.uint8)
        return number

    def free(self, pointer: int) -> None:
        self._call("free")
        del self.device[pointer]

    def allocate_host(self, size: int) -> Array:
        self._call("allocate_host")
        memory = np.full(size, GARBAGE, np.uint8)
        self.host[memory.ctypes.data] = memory
        return memory

    def free_host(self, memory: Array) -> None:
        self._call("free_host")
        del self.host[memory.ctypes.data]

    def copy_in(self, pointer: int, memory: Array, stream: int) -> None:
        self._call("copy_in")
        assert memory.nbytes <= self.device[pointer].nbytes
        self.put(stream, lambda: self.device[pointer].__setitem__(slice(memory.nbytes), memory))

    def copy_out(self, memory: Array, pointer: int, stream: int) -> None:
        self._call("copy_out")
        assert memory.nbytes <= self.device[pointer].nbytes
        self.put(stream, lambda: memory.__setitem__(slice(None), self.device[pointer][: memory.nbytes]))

    def put(self, stream: int, action: Callable[[], None]) -> None:
        """What happens when the stream is waited for, or is recorded."""
        self.captures.get(stream, self.streams[stream]).append(action)

    def begin_capture(self, stream: int) -> None:
        self._call("begin_capture")
        self.captures[stream] = []

    def end_capture(self, stream: int) -> int:
        recorded = self.captures.pop(stream)
        self._call("end_capture")
        number = next(self._numbers)
        self.graphs[number] = recorded
        return number

    def instantiate(self, graph: int) -> int:
        self._call("instantiate")
        number = next(self._numbers)
        self.executables[number] = list(self.graphs[graph])
        return number

    def launch(self, executable: int, stream: int) -> None:
        self._call("launch")
        self.streams[stream].extend(self.executables[executable])

    def destroy_graph(self, graph: int) -> None:
        self._call("destroy_graph")
        del self.graphs[graph]

    def destroy_executable(self, executable: int) -> None:
        self._call("destroy_executable")
        del self.executables[executable]

    def create_event(self) -> int:
        self._call("create_event")
        number = next(self._numbers)
        self.events[number] = -1
        return number

    def destroy_event(self, event: int) -> None:
        self._call("destroy_event")
        del self.events[event]

    def record(self, event: int, stream: int) -> None:
        self._call("record")
        self.put(stream, lambda: self.events.__setitem__(event, next(self._times)))

    def milliseconds(self, begin: int, end: int) -> float:
        assert -1 < self.events[begin] < self.events[end], "both are over, in that order"
        return float(self.events[end] - self.events[begin])

    @property
    def recorded(self) -> tuple[int, int]:
        """Graphs, and what was made of graphs, that nobody gave back."""
        return len(self.graphs), len(self.executables)

    @property
    def left(self) -> tuple[int, int, int]:
        """Pieces of the GPU's memory, of pinned memory, and streams that nobody gave back, or marks."""
        return len(self.device), len(self.host), len(self.streams) + len(self.events)


@dataclass
class FakeEngine:
    """An engine that computes `function` of its inputs by name, all float32 unless `types` says otherwise.

    `ranges`: of batches, one for each profile; `scratch`: bytes that a context needs in each.
    """

    cuda: FakeCuda
    function: Callable[[Mapping[str, Array]], dict[str, Array]]
    inputs: tuple[str, ...]
    outputs: Mapping[str, tuple[int, ...]]  # shapes behind the batch
    types: Mapping[str, str] = field(default_factory=dict)
    ranges: tuple[tuple[int, int], ...] = ((1, 8),)
    scratch: tuple[int, ...] = (0,)
    static: int | None = None  # the one batch that it takes
    no_context: bool = False
    starts: bool = True
    selects: bool = True  # profiles

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.types.get(name, "FLOAT"))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.static or -1,)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.ranges)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        least, most = self.ranges[profile]
        return [(least,), (most,), (most,)]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return self.scratch[profile]

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, config: FakeRuntimeConfig | str) -> FakeContext | None:
        self.cuda._call("create_execution_context")
        if isinstance(config, FakeRuntimeConfig) and config.cache is not None:
            config.cache.content = b"kernels of " + self.cuda.sm.encode()
        kept = config if isinstance(config, FakeRuntimeConfig) else None
        assert (kept.allocation if kept is not None else config) == USER_MANAGED
        return None if self.no_context else FakeContext(self, kept)


@dataclass
class FakeRuntimeConfig:
    """What contexts share, as TensorRT RTX has it."""

    cache: FakeKernels | None = None
    allocation: str = "static"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> FakeKernels:
        return FakeKernels()

    def set_runtime_cache(self, cache: FakeKernels) -> bool:
        self.cache = cache
        return True


@dataclass
class FakeKernels:
    """Compiled kernels."""

    content: bytes = b""
    found: bytes = b""

    def serialize(self) -> bytes:
        return self.content

    def deserialize(self, blob: bytes) -> bool:
        self.found = blob
        return blob.startswith(b"kernels")


NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64}


class FakeContext:
    """What a run has of its own: shapes and addresses. It runs in the profile that was selected, with the memory that it was given."""

    def __init__(self, engine: FakeEngine, config: FakeRuntimeConfig | None) -> None:
        self._engine, self._config = engine, config
        self._profile: int | None = None
        self._memory: tuple[int, int] | None = None
        self._runs = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._engine.cuda._call("set_input_shape")
        assert self._profile is not None
        least, most = self._engine.ranges[self._profile] if self._engine.static is None else (self._engine.static,) * 2
        if shape and not least <= shape[0] <= most:
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = self._shapes[self._engine.inputs[0]][0]
        return (batch, *self._engine.outputs[name])

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._engine.cuda._call(f"profile {profile}")
        assert stream in self._engine.cuda.streams
        self._profile = profile
        return self._engine.selects

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = (memory, size)

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self._engine.cuda._call("execute")
        if not self._engine.starts:
            return False
        self._engine.cuda.put(stream, self._run)
        return True

    def _run(self) -> None:
        memory, types = self._engine.cuda.device, self._engine.types
        assert self._memory is not None
        assert self._profile is not None
        place, size = self._memory
        if needed := self._engine.scratch[self._profile]:
            assert needed <= size == memory[place].nbytes
            memory[place][:needed] = self._profile
        if self._config is not None and self._config.cache is not None:
            self._config.cache.content += f" in profile {self._profile}".encode() * (self._runs == 0)
        self._runs += 1
        feed = {}
        for name in self._engine.inputs:
            dtype = np.dtype(NUMPY[types.get(name, "FLOAT")])
            size = int(np.prod(self._shapes[name])) * dtype.itemsize
            feed[name] = memory[self._addresses[name]][:size].view(dtype).reshape(self._shapes[name])
        for name, answer in self._engine.function(feed).items():
            content = np.ascontiguousarray(answer, NUMPY[types.get(name, "FLOAT")]).reshape(-1).view(np.uint8)
            memory[self._addresses[name]][: content.nbytes] = content


OUT_OF_MEMORY = RuntimeFailure("the GPU, or this pod, is out of memory", reason=Reason.OUT_OF_MEMORY)
