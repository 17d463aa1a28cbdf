"""A hundred thousand requests that are nearly right, in each encoding: whatever comes of one is counted, is no failure of the model, and takes memory
in proportion to its bytes."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from tests.unit.server.serving import every_type_model
from tests.unit.server.test_binary import text_bytes
from tests.unit.server.test_messages import FIELDS
from tools.serving import CLAIM, open_store, publish, saved

from fettle.api.signature import Signature, Tensor
from fettle.runtimes.base import numpy_dtype
from fettle.server import contents, elements, envelope, inference_pb2, messages
from fettle.server.messages import Messages
from fettle.server.model import ServedModel, load
from fettle.server.protocol import HttpExchange
from fettle.server.request import Code, RequestError
from fettle.server.service import Codec, InferenceService
from fettle.server.settings import ServerSettings
from fettle.store.manifest import fetch_artifact
from fettle.store.uris import Mounts

INPUTS = 100_000
# Of these the memory is measured, which takes ten times as long.
MEASURED_EVERY = int(os.environ.get("FETTLE_TEST_FUZZ_MEASURED_EVERY", "20"))
# Bytes of memory for each byte of a request, and for any request. An empty input of gRPC is two bytes; 4,096 are looked at.
FACTOR, CONSTANT = 160, 100_000
LONGEST = 4096  # bytes that one change adds at most
DTYPES = ("FP32", "FP64", "INT64", "UINT8", "BOOL", "BYTES")
VALUES: dict[str, list[Any]] = {
    "FP32": [0.5, -1e3],
    "FP64": [1.5, 1e300],
    "INT64": [1, -(2**40)],
    "UINT8": [0, 255],
    "BOOL": [True, False],
    "BYTES": ["a", "ü"],
}
JSON_WORDS = b'[ ] { } " , : \\ \\ud800 null true false NaN 1e999 -0 1e-400 18446744073709551616 -1 4294967296 0.1 "shape" "data" "inputs"'.split()
JSON_WORDS += [
    b'"parameters":{"binary_data_size":8},',
    b'"outputs":[{"name":"y_FP32"}],',
    b"\xff",
    b"\xef\xbb\xbf",
    b"\0",
    b"[" * 200,
    b"9" * 400,
]
WIRE_WORDS = [
    b"\0",
    b"\xff",
    b"\x80" * 9 + b"\x01",
    b"\xff" * 9 + b"\x01",
    b"\x0a\0",
    b"\x2a\0",
    b"\x3a\0",
    b"\x3a\x04\0\0\0\0",
    b"\x18\x05",
]
WIRE_WORDS += [b"\x2a\x02\x2a\0", b"\x7f" * 40, b"\x0b" * 200, (1 << 31).to_bytes(4, "little"), b"x_FP32", b"BYTES"]


@dataclass(frozen=True)
class Encoding:
    """Requests as clients send them, what is put into them, and the codec of one."""

    seeds: tuple[tuple[bytes, int | None], ...]  # with the bytes of JSON before those of tensors
    words: list[bytes]
    codec: Callable[[int | None], Codec]


def _array(dtype: str) -> np.ndarray:
    return np.array(VALUES[dtype], numpy_dtype(dtype))


def _raw(dtype: str) -> bytes:
    return text_bytes(*VALUES["BYTES"]) if dtype == "BYTES" else _array(dtype).tobytes()


def _http(binary: tuple[str, ...], rows: int) -> tuple[bytes, int | None]:
    """A request with some tensors as bytes. `rows`: 1 or 2."""
    entries: list[dict[str, Any]] = []
    for dtype in DTYPES:
        entry: dict[str, Any] = {"name": f"x_{dtype}", "datatype": dtype, "shape": [rows, 2 // rows]}
        if dtype in binary:
            entry["parameters"] = {"binary_data_size": len(_raw(dtype))}
        else:
            entry["data"] = [[value] for value in VALUES[dtype]] if rows == 2 else VALUES[dtype]
        entries.append(entry)
    head = orjson.dumps({"id": "1", "inputs": entries, "parameters": {"binary_data_output": bool(binary)}})
    return head + b"".join(map(_raw, binary)), len(head) if binary else None


def _message(*, typed: bool) -> tuple[bytes, None]:
    request = inference_pb2.ModelInferRequest(model_name="echo", id="1")
    for dtype in DTYPES:
        entry = request.inputs.add(name=f"x_{dtype}", datatype=dtype, shape=[1, 2])
        if typed:
            values = [value.encode() if dtype == "BYTES" else value for value in VALUES[dtype]]
            getattr(entry.contents, FIELDS[dtype]).extend(values)
        else:
            request.raw_input_contents.append(_raw(dtype))
    return request.SerializeToString(), None


ENCODINGS = {
    "REST, JSON": Encoding((_http((), 1), _http((), 2)), JSON_WORDS, HttpExchange),
    "REST, binary": Encoding(
        (_http(DTYPES, 1), _http(("FP32", "BOOL", "BYTES"), 2)), JSON_WORDS + WIRE_WORDS, HttpExchange
    ),
    "gRPC": Encoding((_message(typed=False), _message(typed=True)), WIRE_WORDS, lambda size: Messages("echo", "r")),
}


def changed(rng: random.Random, encoding: Encoding) -> tuple[bytes, int | None]:
    """A request with a few changes, and how much of it is said to be JSON, which may be wrong as well."""
    seed, size = rng.choice(encoding.seeds)
    content = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        _change(rng, content, encoding)
    if size is not None and rng.random() < 0.7:
        size = max(1, size + len(content) - len(seed)) if rng.random() < 0.8 else rng.randrange(1, 2 * len(seed))
    return bytes(content), size


def _change(rng: random.Random, content: bytearray, encoding: Encoding) -> None:
    start = rng.randrange(len(content) + 1)
    stop = min(len(content), start + rng.choice((0, 1, 2, 8, 64)))
    kind = rng.randrange(6)
    if kind == 0 and start < len(content):
        content[start] ^= 1 << rng.randrange(8)
    elif kind == 1:
        content[start:stop] = rng.randbytes(rng.randrange(8))
    elif kind == 2:
        content[start:stop] = rng.choice(encoding.words)
    elif kind == 3:
        del content[start:stop]
    elif kind == 4:
        piece = bytes(content[start:stop]) or rng.choice(encoding.words)
        content[start:start] = piece * rng.randrange(LONGEST // len(piece))
    else:
        other = rng.choice(encoding.seeds)[0]
        content[start:] = other[rng.randrange(len(other)) :]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    """A model that answers what it is asked."""
    root: Path = tmp_path_factory.mktemp("echo")

    def side(letter: str) -> tuple[Tensor, ...]:
        return tuple(Tensor(name=f"{letter}_{dtype}", dtype=dtype, shape=(-1, -1), batch_axis=0) for dtype in DTYPES)

    signature = Signature(inputs=side("x"), outputs=side("y"))
    sha256 = publish(open_store(root / "store"), saved(every_type_model(signature), root), signature)
    mounts = Mounts({CLAIM: root / "store"})
    fetch_artifact(f"pvc://{CLAIM}/artifacts/{sha256}", sha256, root / "model", mounts)
    loaded = load(root / "model", sha256, None, 8)
    yield loaded
    loaded.close()


async def outcome(service: InferenceService, content: bytes, codec: Codec) -> Code:
    """How a request ends."""

    async def received() -> bytes:
        return service.bodies.hold(content)

    try:
        await service.infer(received(), codec)
    except RequestError as error:
        assert len(error.message) < 2000
        return error.code
    return Code.OK


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize("name", ENCODINGS)
async def test_whatever_is_sent_is_counted_once_costs_memory_in_proportion_and_is_no_failure_of_the_model(
    echo: ServedModel, name: str, pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pieces:  # as requests are read that are too large to be read at once
        for module in (elements, envelope, contents):
            monkeypatch.setattr(module, "PIECE", 64)
        monkeypatch.setattr(messages, "MOST_BESIDE", 0)
    service = InferenceService(ServerSettings(model="echo", revision="r", max_rows=64), echo)
    encoding, rng, count = ENCODINGS[name], random.Random(f"{name} {pieces}"), -(-INPUTS // (2 * len(ENCODINGS)))
    ends: Counter[Code] = Counter()
    for seed, size in encoding.seeds:
        assert await outcome(service, seed, encoding.codec(size)) is Code.OK
    for number in range(count):
        content, size = changed(rng, encoding)
        measured = number % MEASURED_EVERY == 0
        if measured:
            tracemalloc.start()
        try:
            end = await outcome(service, content, encoding.codec(size))
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert end in (Code.OK, Code.INVALID, Code.NOT_FOUND), (content, size)
        assert most <= FACTOR * len(content) + CONSTANT, (content, size, most)
        ends[end] += 1
    service.close()
    told = Counter({Code(code): number for code, number in service.metrics.requests.counts.items()})
    assert told - Counter({Code.OK: len(encoding.seeds)}) == ends and sum(ends.values()) == count
    assert min(ends[Code.OK], ends[Code.INVALID]) > count / 50, "some are still good, and some are not"
    assert (service.in_flight, service.bodies.held, service.model.waiting) == (0, 0, 0)
