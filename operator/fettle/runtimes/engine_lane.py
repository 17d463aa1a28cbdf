"""A lane of an engine: what one run at a time needs of the GPU. See `engine`.

An engine has an optimization profile for each range of batch sizes. Each lane has an execution context for each profile, because changing the
profile of a context takes time. All contexts share the engine's weights. Those of a lane share memory for activations: one of them runs at a time.

Facts that this file rests on (TensorRT 11, TensorRT RTX 1.7): an engine has at least one profile, also if its shapes are fixed; a context with
memory of its caller's uses only that for activations; selecting a profile may put copies on the stream, which the first run there follows.
For shapes that may vary, TensorRT RTX runs kernels for any shape at first, and compiles faster ones in the background, which take their place: a
recorded run would keep the first ones.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fettle.api.reasons import Reason
from fettle.api.text import quoted
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array
from fettle.runtimes.cuda import ContextLost, Cuda

log = logging.getLogger(__name__)
Shape = tuple[int, ...]
Marks = tuple[int, int]  # events in front of a run, and behind it


@dataclass(frozen=True)
class BuiltProfile:
    """An optimization profile of an engine. `memory`: bytes that a context needs for activations. `recorded`: its runs may be a CUDA graph."""

    index: int
    least: Mapping[str, Shape]
    most: Mapping[str, Shape]
    memory: int
    recorded: bool

    def has_room(self, feed: Mapping[str, Array]) -> bool:
        """Whether no input is larger than it takes."""
        return all(
            size <= most
            for name, array in feed.items()
            for size, most in zip(array.shape, self.most[name], strict=False)
        )


def built_profiles(engine: Any, inputs: Iterable[str], replaces_kernels: bool) -> tuple[BuiltProfile, ...]:
    """The profiles of an engine, from the smallest to the largest. `replaces_kernels`: the library does so between runs where shapes may vary."""
    names = tuple(inputs)
    stays = not replaces_kernels or all(-1 not in tuple(engine.get_tensor_shape(name)) for name in names)
    found = []
    for index in range(engine.num_optimization_profiles):
        least, most = ({name: _bounds(engine, name, index)[end] for name in names} for end in (0, -1))
        memory = int(engine.get_device_memory_size_for_profile_v2(index))
        found.append(BuiltProfile(index, least, most, memory, recorded=stays and least == most))
    return tuple(sorted(found, key=lambda profile: list(profile.most.values())))


def _bounds(engine: Any, name: str, profile: int) -> tuple[Shape, ...]:
    """The least, usual and largest shape of an input in a profile."""
    shape = tuple(engine.get_tensor_shape(name))
    return tuple(map(tuple, engine.get_tensor_profile_shape(name, profile))) if -1 in shape else (shape,)


class Lane:
    """A stream, and the execution contexts whose runs are put on it. Runs of two lanes overlap: copies of one with kernels of the other."""

    def __init__(self, contexts: Callable[[], Any], cuda: Cuda, profiles: Sequence[BuiltProfile]) -> None:
        self._cuda = cuda
        self._marks: tuple[int, ...] = ()
        self.milliseconds = 0.0  # of the last run with marks, on the GPU
        self.first = False  # whether the last run was the first one of its profile
        self._memory = 0  # for activations, of whichever context runs
        self._contexts: list[_ProfileContext] = []
        self._stream = cuda.create_stream()
        try:
            if size := max(profile.memory for profile in profiles):
                self._memory = cuda.allocate(size)
            for profile in profiles:
                context = _ProfileContext(contexts, cuda, self._stream, profile)
                self._contexts.append(context)
                context.use(self._memory, size)
        except BaseException:
            self.close()
            raise

    def run(
        self, feed: Mapping[str, Array], outputs: Mapping[str, np.dtype[Any]], marked: bool = False
    ) -> dict[str, Array]:
        """Answers with memory of their own, from the smallest profile that has room for the inputs. `outputs`: data types as the engine has them.
        `marked`: tell the time on the GPU as well.

        Raises RuntimeFailure; DataInvalid before anything is begun.
        """
        context = next((each for each in self._contexts if each.profile.has_room(feed)), self._contexts[-1])
        self.first = not context.ran
        if not marked:
            return context.run(feed, outputs)
        while len(self._marks) < 2:
            self._marks += (self._cuda.create_event(),)
        begin, end = self._marks
        answers = context.run(feed, outputs, (begin, end))
        self.milliseconds = self._cuda.milliseconds(begin, end)
        return answers

    def close(self) -> None:
        """Free what it holds; the contexts first, which may still use the rest."""
        for context in self._contexts:
            context.close()
        self._contexts = []
        for mark in self._marks:
            self._cuda.destroy_event(mark)
        self._marks = ()
        if self._memory:
            self._cuda.free(self._memory)
            self._memory = 0
        self._cuda.destroy_stream(self._stream)


class _ProfileContext:
    """An execution context for one profile, with memory for inputs and outputs.

    If its runs may be recorded, the second one is, as a CUDA graph, which is launched in one call from then on. The first is not: libraries
    prepare themselves in it.
    """

    def __init__(self, contexts: Callable[[], Any], cuda: Cuda, stream: int, profile: BuiltProfile) -> None:
        self._cuda, self._stream, self.profile = cuda, stream, profile
        self._device: dict[str, tuple[int, int]] = {}  # pointer, bytes
        self._host: dict[str, Array] = {}
        self._recorded: int | None = None
        self._records, self.ran = profile.recorded, False
        try:
            self._context = contexts()
        except Exception as error:  # pybind11 raises what it likes
            raise RuntimeFailure(f"the library made no execution context: {quoted(error)}") from error
        if self._context is None:
            message = "the GPU has too little memory for an execution context: use fewer streams, or a smaller batch"
            raise RuntimeFailure(message, reason=Reason.OUT_OF_MEMORY)

    def use(self, memory: int, size: int) -> None:
        """Give the context its profile, and the memory that it shares, of so many bytes. Raises RuntimeFailure."""
        if not self._context.set_optimization_profile_async(self.profile.index, self._stream):
            raise RuntimeFailure(f"the library did not select the optimization profile {self.profile.index}")
        self._context.set_device_memory(memory, size)

    def run(
        self, feed: Mapping[str, Array], outputs: Mapping[str, np.dtype[Any]], marks: Marks | None = None
    ) -> dict[str, Array]:
        """See `Lane.run`. `marks` are recorded around the run."""
        for name, array in feed.items():
            if not self._context.set_input_shape(name, array.shape):
                message = f"input {name}: the engine was built for other shapes than {list(array.shape)}"
                raise RuntimeFailure(message, reason=Reason.DATA_INVALID)
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in outputs}
        given = {name: self._room(name, array.nbytes) for name, array in feed.items()}
        for name, array in feed.items():
            given[name].view(array.dtype)[:] = array.reshape(-1)
        places = {name: self._output(name, shapes[name], dtype) for name, dtype in outputs.items()}
        if self._records and self.ran:
            self._record(given, places)
        if marks is not None:
            self._cuda.record(marks[0], self._stream)
        if self._recorded is not None:
            self._cuda.launch(self._recorded, self._stream)
        else:
            self._put(given, places)
        if marks is not None:
            self._cuda.record(marks[1], self._stream)
        self._cuda.synchronize(self._stream)
        self.ran = True
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

    def _output(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
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
