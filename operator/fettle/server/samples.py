"""Samples: a bounded ring of recent items and their answers, in memory only. Canaries fetch them from here.

A sample is one item, even if its request had several: this limits its size, and items of one request are not independent evidence. Each sample
is handed out once, so that two canary pods never count the same answer twice.

Wire format (docs/design/contracts.md): one line of JSON that names every tensor, followed by the tensors' bytes in that order, little endian.
Strings are in the JSON. Nothing in it is executed, and no size in it is trusted.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import orjson
from pydantic import Field, ValidationError

from fettle.api.base import ApiModel
from fettle.api.signature import BY_V2, Signature, Tensor
from fettle.runtimes.base import Array, numpy_dtype, v2_dtype
from fettle.store.comparison import Comparison

PER_SECOND = 32  # most samples taken in a second: a ring of 256 then spans at least 8 s, however busy the pod is
MOST_BYTES_SENT = 4 << 20  # of one answer
MOST_AT_ONCE = 32  # samples of one answer: what waits with a canary stays young
Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Sample:
    """One item and its answer, without the batch axis if the model has one."""

    inputs: Tensors
    outputs: Tensors
    bytes: int


class Samples:
    """The ring of samples. It is thread-safe. With `most` = 0, it keeps nothing."""

    def __init__(
        self,
        signature: Signature,
        most: int,
        most_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        per_second: float = PER_SECOND,
    ) -> None:
        self._signature, self._most, self._most_bytes = signature, most, most_bytes
        self._pause = 1 / per_second
        self._clock, self._random = clock, rng or random.Random()
        self._lock = threading.Lock()
        self._ring: deque[Sample] = deque()
        self._bytes = 0
        self._next = -math.inf

    def __len__(self) -> int:
        return len(self._ring)

    def offer(self, inputs: Tensors, rows: int, outputs: Tensors) -> Sample | None:
        """Keep one item of an answered request, if the next sample is due; returns the item if it was kept."""
        now = self._clock()
        if now < self._next or not self._most:
            return None
        self._next = now + self._pause
        limit = min(self._most_bytes, MOST_BYTES_SENT)
        items = rows if self._signature.batchable else 1
        if sum(array.nbytes for array in (*inputs.values(), *outputs.values())) > limit * items:
            return None  # before anything is copied
        row = self._random.randrange(rows) if rows > 1 else 0
        sample = of_row(self._signature, inputs, outputs, row)
        if sample.bytes > limit:
            return None
        with self._lock:
            self._ring.append(sample)
            self._bytes += sample.bytes
            while len(self._ring) > self._most or self._bytes > self._most_bytes:
                self._bytes -= self._ring.popleft().bytes
        return sample

    def take(self, most: int) -> list[Sample]:
        """Remove and return the newest samples, as many as fit into one response."""
        taken: list[Sample] = []
        size = 0
        with self._lock:
            while self._ring and len(taken) < most and size + self._ring[-1].bytes <= MOST_BYTES_SENT:
                taken.append(self._ring.pop())
                size += taken[-1].bytes
            self._bytes -= size
        return taken


def of_row(signature: Signature, inputs: Tensors, outputs: Tensors, row: int) -> Sample:
    """The sample for one item of a request, or for the whole request if the model has no batch axis."""

    def side(tensors: tuple[Tensor, ...], arrays: Tensors) -> dict[str, Array]:
        # Both copy, so that the batch can be freed, and with it the request's body, of which its inputs are views.
        if not signature.batchable:
            return {tensor.name: arrays[tensor.name].copy() for tensor in tensors}
        return {tensor.name: np.asarray(arrays[tensor.name].take(row, axis=tensor.batch_axis)) for tensor in tensors}

    kept, answered = side(signature.inputs, inputs), side(signature.outputs, outputs)
    return Sample(kept, answered, sum(map(byte_size, (*kept.values(), *answered.values()))))


def as_batch(signature: Signature, inputs: Tensors) -> dict[str, Array]:
    """A sample's inputs in the form that the model takes."""
    if not signature.batchable:
        return dict(inputs)
    return {tensor.name: np.expand_dims(inputs[tensor.name], tensor.batch_axis or 0) for tensor in signature.inputs}


def byte_size(array: Array) -> int:
    """The size of an array in the wire format; strings count as their JSON."""
    return len(orjson.dumps(_texts(array))) if array.dtype.kind in "OSU" else array.nbytes


def _texts(array: Array) -> list[str]:
    return [text.decode() if isinstance(text, bytes) else str(text) for text in array.reshape(-1).tolist()]


# ------------------------------------------------------------------------------------------------------------- wire form


class WireTensor(ApiModel):
    """A tensor in the JSON line. `texts` holds the values of a BYTES tensor; the bytes of others follow the line."""

    name: str = Field(max_length=1024)
    dtype: str
    shape: tuple[int, ...] = Field(max_length=16)
    texts: tuple[str, ...] | None = None


class WireSample(ApiModel):
    """A sample's tensors, in the order in which their bytes follow."""

    inputs: tuple[WireTensor, ...]
    outputs: tuple[WireTensor, ...]


class SamplesHead(ApiModel):
    """The JSON line: the revision, the form of its answers, and the rules by which they are compared."""

    revision: str
    signature: Signature
    comparisons: dict[str, Comparison]
    samples: tuple[WireSample, ...] = Field(default=(), max_length=MOST_AT_ONCE)


def pack(head: SamplesHead, samples: Iterable[Sample]) -> bytes:
    """The answer's bytes."""
    parts: list[bytes] = []

    def side(tensors: Tensors) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for name, array in tensors.items():
            row: dict[str, Any] = {"name": name, "dtype": v2_dtype(array), "shape": list(array.shape)}
            if row["dtype"] == "BYTES":
                row["texts"] = _texts(array)
            else:
                parts.append(array.tobytes())
            rows.append(row)
        return rows

    listed = [{"inputs": side(sample.inputs), "outputs": side(sample.outputs)} for sample in samples]
    return b"".join([orjson.dumps({**head.to_json(), "samples": listed}), b"\n", *parts])


def unpack(body: bytes) -> tuple[SamplesHead, list[Sample]]:
    """The reverse of `pack`. Raises ValueError for anything else."""
    line, separator, rest = body.partition(b"\n")
    if not separator:
        raise ValueError("expected a line of JSON and the tensors' bytes, found no line")
    try:
        head = SamplesHead.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(f"the first line is invalid: {error.error_count()} errors") from error
    view, place = memoryview(rest), 0

    def side(tensors: tuple[WireTensor, ...]) -> dict[str, Array]:
        nonlocal place
        arrays: dict[str, Array] = {}
        for tensor in tensors:
            arrays[tensor.name], size = _array(tensor, view[place:])
            place += size
        return arrays

    samples = []
    for sample in head.samples:
        before = place
        samples.append(Sample(side(sample.inputs), side(sample.outputs), place - before))
    return head, samples


def require(head: SamplesHead, sample: Sample) -> None:
    """Raises ValueError if the sample is not an item of the signature (as from `of_row`) with an output for each rule."""
    signature = head.signature
    if sample.inputs.keys() != {tensor.name for tensor in signature.inputs}:
        expected = [tensor.name for tensor in signature.inputs]
        raise ValueError(f"a sample has the inputs {sorted(sample.inputs)}, its signature has {expected}")
    for tensor in signature.inputs:
        array, shape = sample.inputs[tensor.name], list(tensor.shape)
        if signature.batchable:
            del shape[tensor.batch_axis or 0]
        fits = array.ndim == len(shape) and all(size in (-1, had) for size, had in zip(shape, array.shape, strict=True))
        if v2_dtype(array) != tensor.dtype or not fits:
            had = f"{v2_dtype(array)} {list(array.shape)}"
            raise ValueError(f"tensor {tensor.name}: expected {tensor.dtype} {shape} by its signature, found {had}")
    missing = sorted(head.comparisons.keys() - sample.outputs.keys())
    if missing:
        raise ValueError(f"a sample has no output {missing}, which must be compared")


def received(status: int, body: bytes) -> tuple[SamplesHead, list[Sample]]:
    """What a pod answered that was asked for samples, each of them checked. Raises ValueError for anything else."""
    if status != HTTPStatus.OK:
        raise ValueError(f"{status} {body[:200].decode(errors='replace').strip()}")
    head, samples = unpack(body)
    for sample in samples:
        require(head, sample)
    return head, samples


def _array(tensor: WireTensor, view: memoryview) -> tuple[Array, int]:
    """The tensor at the beginning of `view`, and how many bytes it takes."""
    if tensor.dtype not in BY_V2 or any(not 0 <= size < 2**31 for size in tensor.shape):
        raise ValueError(f"tensor {tensor.name}: {tensor.dtype} {list(tensor.shape)} is not a valid type and shape")
    count = math.prod(tensor.shape)
    if tensor.dtype == "BYTES":
        if tensor.texts is None or len(tensor.texts) != count:
            raise ValueError(f"tensor {tensor.name}: the number of its strings does not match {list(tensor.shape)}")
        return np.array(tensor.texts, dtype=object).reshape(tensor.shape), 0
    dtype = numpy_dtype(tensor.dtype)
    size = count * dtype.itemsize
    if size > len(view):
        raise ValueError(f"tensor {tensor.name}: expected {size} bytes, found {len(view)}")
    return np.frombuffer(view[:size], dtype=dtype).reshape(tensor.shape), size
