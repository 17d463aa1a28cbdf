"""The ring of samples, and how they travel."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import AgreementMode
from fettle.server.samples import PER_SECOND, Sample, Samples, SamplesHead, as_batch, of_row, pack, unpack
from fettle.store.comparison import Comparison

SIGNATURE = Signature(
    inputs=(
        Tensor(name="x", dtype="FP32", shape=(-1, 4), batch_axis=0),
        Tensor(name="text", dtype="BYTES", shape=(-1, 1), batch_axis=0),
    ),
    outputs=(Tensor(name="y", dtype="FP32", shape=(2, -1), batch_axis=1),),
)
WHOLE = Signature(
    inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4)),), outputs=(Tensor(name="y", dtype="FP32", shape=(1,)),)
)


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def request(rows: int, first: float = 0.0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and outputs of `rows` items; item i holds first + i everywhere."""
    numbers = np.arange(rows, dtype=np.float32) + first
    texts = np.array([[f"item {number:g}"] for number in numbers], dtype=object)
    inputs = {"x": np.repeat(numbers[:, None], 4, axis=1), "text": texts}
    return inputs, {"y": np.stack([numbers, -numbers])}


def ring(most: int = 4, most_bytes: int = 1 << 20) -> tuple[Samples, Clock]:
    clock = Clock()
    return Samples(SIGNATURE, most, most_bytes, clock, random.Random(3)), clock


def offer(samples: Samples, clock: Clock, count: int, rows: int = 1) -> None:
    for number in range(count):
        clock.now += 1 / PER_SECOND
        inputs, outputs = request(rows, first=100.0 * number)
        samples.offer(inputs, rows, outputs)


def test_the_ring_keeps_the_youngest_and_hands_each_out_once() -> None:
    samples, clock = ring(most=4)
    offer(samples, clock, 6)
    assert [sample.inputs["x"][0] for sample in samples.take(3)] == [500, 400, 300]
    assert [sample.inputs["x"][0] for sample in samples.take(3)] == [200]
    assert samples.take(3) == []


def test_a_busy_pod_takes_so_many_a_second_and_no_more() -> None:
    samples, clock = ring(most=1000)
    for _ in range(5000):
        clock.now += 0.001
        inputs, outputs = request(1)
        samples.offer(inputs, 1, outputs)
    assert 4.5 * PER_SECOND <= len(samples) <= 5 * PER_SECOND + 1


def test_memory_is_bounded_whatever_the_items_hold() -> None:
    inputs, outputs = request(1)
    one = of_row(SIGNATURE, inputs, outputs, 0).bytes
    samples, clock = ring(most=1000, most_bytes=3 * one)
    offer(samples, clock, 9)
    assert len(samples) <= 3
    samples, clock = ring(most=1000, most_bytes=one - 1)
    offer(samples, clock, 9)
    assert len(samples) == 0


def test_zero_keeps_nothing() -> None:
    samples, clock = ring(most=0)
    offer(samples, clock, 3)
    assert samples.take(3) == []


def test_of_a_batch_one_item_is_kept_on_its_own() -> None:
    samples, clock = ring()
    offer(samples, clock, 4, rows=5)
    for sample in samples.take(4):
        number = sample.inputs["x"][0]
        assert sample.inputs["x"].tolist() == [number] * 4
        assert sample.inputs["text"].tolist() == [f"item {number:g}"]
        assert sample.outputs["y"].tolist() == [number, -number]
        assert sample.inputs["x"].base is None
        batch = as_batch(SIGNATURE, sample.inputs)
        assert (batch["x"].shape, batch["text"].shape) == ((1, 4), (1, 1))


def test_where_items_cannot_be_told_apart_the_request_is_the_sample() -> None:
    inputs, outputs = {"x": np.ones((3, 4), np.float32)}, {"y": np.zeros(1, np.float32)}
    sample = of_row(WHOLE, inputs, outputs, 0)
    assert sample.inputs["x"].shape == (3, 4)
    assert as_batch(WHOLE, sample.inputs)["x"].shape == (3, 4)


def test_a_sample_does_not_keep_the_body_that_it_came_with() -> None:
    body = bytes(1 << 20)  # most of which are no tensor
    sample = of_row(WHOLE, {"x": np.frombuffer(body, np.float32, 12).reshape(3, 4)}, {"y": np.zeros(1, np.float32)}, 0)
    assert sample.inputs["x"].base is None
    assert sample.inputs["x"].shape == (3, 4)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.5, np.nan], np.float32),
        np.array([[1], [2]], np.int64),
        np.array(True),
        np.array([], np.float16),
        np.array(["ä", ""], dtype=object),
        np.zeros((0, 3), np.uint8),
        np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    ],
)
def test_every_tensor_arrives_as_it_was_sent(array: np.ndarray) -> None:
    rule = Comparison(mode=AgreementMode.TOP_ONE, margin=0.25)
    head = SamplesHead(revision="a", signature=SIGNATURE, comparisons={"y": rule})
    sent = Sample({"x": array}, {"y": array, "z": np.arange(3)}, 0)
    got, samples = unpack(pack(head, [sent, sent]))
    assert (got.revision, got.comparisons["y"], got.signature) == ("a", rule, SIGNATURE)
    assert len(samples) == 2
    for sample in samples:
        np.testing.assert_array_equal(sample.inputs["x"], array)
        assert (sample.outputs["y"].shape, sample.outputs["y"].dtype) == (array.shape, array.dtype)
        assert sample.outputs["z"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "found no line"),
        (b"{}\n", "the first line is invalid"),
        (b"<html>\n", "the first line is invalid"),
        (pack(SamplesHead(revision="a", signature=SIGNATURE, comparisons={}), [Sample({"x": np.ones(9)}, {}, 0)])[:-1],
         "expected 72 bytes, found 71"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        unpack(body)


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "x", "dtype": "OBJECT", "shape": [1]},
        {"name": "x", "dtype": "FP32", "shape": [-1]},
        {"name": "x", "dtype": "FP32", "shape": [2**40, 2**40]},
        {"name": "x", "dtype": "BYTES", "shape": [2], "texts": ["a"]},
    ],
)
def test_a_tensor_that_lies_about_itself_is_refused(tensor: dict[str, object]) -> None:
    head = SamplesHead(revision="a", signature=SIGNATURE, comparisons={})
    line = pack(head, []).removesuffix(b"\n").replace(b'"samples":[]', b'"samples":[{"inputs":[%b],"outputs":[]}]')
    import orjson

    with pytest.raises(ValueError, match="tensor x"):
        unpack(line.replace(b"%b", orjson.dumps(tensor)) + b"\n")
