"""PyTorch's side of a GPU for tests, on the CPU: what `runtimes/torchscript_cuda.py` asks of it, each call written down.

Copies back happen when their stream is waited for, as on a GPU: what reads too early reads old bytes.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

GARBAGE = 0xAB  # what pinned memory holds before anybody writes to it


@dataclass
class FakeStream:
    """What waits on a stream."""

    waiting: list[Callable[[], object]] = field(default_factory=list)


@dataclass
class FakeTorchGpu:
    """`fails`: by a call's name, the error that it raises, once."""

    device: str = "cpu"
    there: bool = True
    calls: list[str] = field(default_factory=list)
    fails: dict[str, Exception] = field(default_factory=dict)
    host: set[int] = field(default_factory=set)  # addresses of pinned memory
    current: threading.local = field(default_factory=threading.local)
    streams: list[FakeStream] = field(default_factory=list)
    times: Iterator[int] = field(default_factory=lambda: itertools.count())

    def call(self, name: str) -> None:
        """Write a call down. Raises what it is told to."""
        self.calls.append(name)
        if name in self.fails:
            raise self.fails.pop(name)

    def is_there(self) -> bool:
        return self.there

    def create_stream(self) -> FakeStream:
        self.call("create_stream")
        self.streams.append(FakeStream())
        return self.streams[-1]

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        self.current.stream = stream
        try:
            yield
        finally:
            del self.current.stream

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        self.call("pinned")
        memory = torch.empty(tuple(shape), dtype=dtype)
        memory.reshape(-1).view(torch.uint8).fill_(GARBAGE)
        self.host.add(memory.data_ptr())
        return memory

    def copy_in(self, host: torch.Tensor) -> torch.Tensor:
        self.call("copy_in")
        assert host.data_ptr() in self.host, "memory that is not pinned makes the copy wait"
        assert hasattr(self.current, "stream"), "it would go to the stream for which everything waits"
        return host.clone()

    def copy_out(self, host: torch.Tensor, tensor: torch.Tensor) -> None:
        self.call("copy_out")
        assert host.data_ptr() in self.host, "memory that is not pinned makes the copy wait"
        self.current.stream.waiting.append(lambda: host.copy_(tensor))

    def synchronize(self, stream: FakeStream | None = None) -> None:
        self.call("synchronize" if stream is not None else "synchronize all")
        for each in self.streams if stream is None else [stream]:
            for action in each.waiting:
                action()
            each.waiting.clear()

    def mark(self) -> list[int]:
        self.call("mark")
        event: list[int] = []
        self.current.stream.waiting.append(lambda: event.append(next(self.times)))
        return event

    def milliseconds(self, begin: list[int], end: list[int]) -> float:
        return float(end[0] - begin[0])  # an event that nobody waited for has no time
