"""Drift of inputs and outputs against the evaluation data, and its figures against scipy's."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.unit.server.in_process import BODY
from tests.unit.server.test_service import received

from fettle.api.signature import Signature, Tensor
from fettle.server import protocol
from fettle.server.drift import BLOCK_SECONDS, BLOCKS, LEAST_ITEMS, Drift
from fettle.server.samples import Samples
from fettle.server.service import InferenceService
from fettle.server.state import ProcessState
from fettle.store import profile
from fettle.store.profile import Distribution, Profile

X = Tensor(name="x", dtype="FP32", shape=(-1, 3), batch_axis=0)
PICTURE = Tensor(name="picture", dtype="FP32", shape=(-1, 3, 8, 8), batch_axis=0)
WORDS = Tensor(name="words", dtype="BYTES", shape=(-1, -1), batch_axis=0)
TOKENS = Tensor(name="tokens", dtype="INT64", shape=(-1, -1), batch_axis=0)
Y = Tensor(name="y", dtype="FP32", shape=(-1, 2), batch_axis=0)
SIGNATURE = Signature(inputs=(X, PICTURE, WORDS, TOKENS), outputs=(Y,))
COUNTS = st.lists(st.integers(0, 1000), min_size=4, max_size=12)


def drawn(rng: np.random.Generator, shift: dict[str, float] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """An item and its answer; `shift`: how far the values of a tensor lie away from where they mostly do."""
    moved = dict.fromkeys(("x", "picture", "words", "tokens", "y"), 0.0) | (shift or {})
    length = 3 + int(rng.integers(5)) + round(moved["words"])
    inputs = {
        "x": rng.standard_normal(3).astype(np.float32) + np.float32(moved["x"]),
        "picture": (rng.random((3, 8, 8)) * rng.uniform(0.5, 1) + moved["picture"]).astype(np.float32),
        "words": np.array(["a" * length, "b" * length], object),
        "tokens": rng.integers(0, 100, 7) + round(moved["tokens"]),
    }
    return inputs, {"y": rng.standard_normal(2).astype(np.float32) + np.float32(moved["y"])}


def made(items: int = 500) -> Profile:
    rng, asked, answered = np.random.default_rng(1), Distribution(SIGNATURE.inputs), Distribution(SIGNATURE.outputs)
    for _ in range(items):
        inputs, outputs = drawn(rng)
        asked.add(inputs)
        answered.add(outputs)
    return Profile(inputs=asked.features(), outputs=answered.features())


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def drift(clock: Clock) -> Drift:
    return Drift(made(), SIGNATURE, ("m", "r"), clock)


def watch(
    drift: Drift, items: int, shift: dict[str, float] | None = None, seed: int = 2
) -> dict[tuple[str, str], float]:
    """PSI by tensor and feature after so many live items."""
    rng = np.random.default_rng(seed)
    for _ in range(items):
        drift.count(*drawn(rng, shift))
    return {(each.tensor, each.feature): each.psi for each in drift.counted().told()}


@given(COUNTS, st.randoms())
def test_psi_is_the_symmetric_relative_entropy(counts: list[int], rng: random.Random) -> None:
    other = [rng.randrange(1000) for _ in counts]
    p, q = (np.array(each) + 0.5 for each in (counts, other))
    expected = stats.entropy(p, q) + stats.entropy(q, p)
    assert profile.psi(counts, other) == pytest.approx(expected, abs=1e-9)


@given(COUNTS, st.randoms())
def test_ks_is_that_of_two_samples_that_are_known_by_their_bins(counts: list[int], rng: random.Random) -> None:
    counts[0] += 1
    other = [rng.randrange(1, 1000) for _ in counts]
    samples = [np.repeat(np.arange(len(each) - 1), each[:-1]) for each in (counts, other)]  # the last is of no numbers
    assert profile.ks(counts, other) == pytest.approx(stats.ks_2samp(*samples, method="asymp").statistic, abs=1e-9)


@given(COUNTS)
def test_ks_is_1_and_no_more_where_no_live_value_is_a_number(counts: list[int]) -> None:
    """A window does not take more, and a pod whose window cannot be told is silent to the operator."""
    counts[0] += 1
    assert profile.ks(counts, [*[0] * (len(counts) - 1), 200]) == 1.0


def test_bins_of_the_evaluation_data_hold_about_as_many_items_each_and_all_of_them() -> None:
    for each in made().inputs[:3]:
        assert sum(each.counts) == 500 and each.counts[-1] == 0
        assert min(each.counts[:-1]) >= 45


def test_each_element_of_a_small_tensor_is_a_feature_and_of_others_what_sums_them_up(drift: Drift) -> None:
    assert set(watch(drift, LEAST_ITEMS)) == {
        *((tensor, str(number)) for tensor, size in (("x", 3), ("y", 2)) for number in range(size)),
        *((tensor, feature) for tensor in ("picture", "tokens") for feature in ("mean", "deviation")),
        ("words", "length"),
    }


def test_an_item_of_another_size_than_the_signature_says_has_no_numbers() -> None:
    assert profile.values(Y, np.zeros(3, np.float32)) == pytest.approx([math.nan] * 2, nan_ok=True)


def test_of_a_large_tensor_some_elements_are_looked_at_and_always_the_same() -> None:
    large = Tensor(name="z", dtype="FP32", shape=(-1, 8, 512, 512), batch_axis=0)
    item = np.random.default_rng(3).standard_normal((8, 512, 512)).astype(np.float32)
    assert profile.values(large, item) == profile.values(large, item) == pytest.approx([0, 1], abs=0.05)


def test_the_same_kind_of_data_does_not_drift(drift: Drift) -> None:
    assert max(watch(drift, 2000).values()) < 0.1


@pytest.mark.parametrize(("tensor", "by"), [("x", 1.5), ("picture", 0.3), ("words", 4), ("tokens", 40), ("y", -1.5)])
def test_what_has_moved_is_named_and_nothing_else(drift: Drift, tensor: str, by: float) -> None:
    moved = {name for (name, _), psi in watch(drift, 1000, {tensor: by}).items() if psi > 0.25}
    assert moved == {tensor}
    worst = drift.counted().window()
    assert (worst.items, worst.tensor) == (1000, tensor)
    assert worst.ks is not None and worst.ks > 0.3


def test_values_that_are_no_numbers_are_drift(drift: Drift) -> None:
    assert watch(drift, 500, {"x": math.nan})["x", "0"] > 1


def test_nothing_is_told_of_few_items(drift: Drift) -> None:
    assert watch(drift, LEAST_ITEMS - 1, {"x": 5}) == {}
    assert drift.counted().window().to_json() == {"items": LEAST_ITEMS - 1}


def test_what_is_ten_minutes_old_is_forgotten_and_memory_stays_what_it_was(drift: Drift, clock: Clock) -> None:
    watch(drift, 500, {"x": 5})

    def size() -> int:
        return sum(sys.getsizeof(array) + array.nbytes for _, counts in drift._blocks for array in counts)

    sizes = []
    for seed in range(3 * BLOCKS):
        clock.now += BLOCK_SECONDS
        moved = watch(drift, 50, seed=seed)
        sizes.append(size())
    assert max(moved.values()) < 0.15
    assert len(drift._blocks) == BLOCKS and max(sizes) == sizes[-1] < 100_000
    clock.now += BLOCKS * BLOCK_SECONDS
    counted = drift.counted()
    assert (counted.items, counted.told()) == (0, [])


@pytest.mark.parametrize("change", [{"inputs": ()}, {"outputs": made(50).inputs}], ids=["no inputs", "another model's"])
def test_a_profile_of_something_else_tells_nothing_of_that_side(change: dict[str, Any], clock: Clock) -> None:
    drift = Drift(made(50).model_copy(update=change), SIGNATURE, ("m", "r"), clock)
    watch(drift, LEAST_ITEMS)
    sides = {each.side for each in drift.counted().told()}
    assert sides == {"input", "output"} - {"input" if "inputs" in change else "output"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"inputs": [{"tensor": "x", "feature": "0", "edges": [1, 2], "counts": [1]}]}', b'{"inputs": 3}'],
)
def test_a_damaged_profile_is_none(content: bytes) -> None:
    assert profile.read(content) is None


def test_a_profile_is_read_as_it_was_written() -> None:
    assert profile.read(made(50).canonical()) == made(50)


async def test_requests_are_told_of_in_metrics_and_window(
    service: InferenceService, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [Distribution(side) for side in (service.model.signature.inputs, service.model.signature.outputs)]
    for value in range(100):
        for each, name in zip(seen, "xy", strict=True):
            each.add({name: np.full(4, value % 12, np.float32)})
    monkeypatch.setattr(service.model, "profile", Profile(inputs=seen[0].features(), outputs=seen[1].features()))
    again = InferenceService(service.settings, service.model)
    tick: Callable[[], float] = iter(range(10**6)).__next__
    again.samples = Samples(service.model.signature, 8, 1 << 20, clock=tick)
    for _ in range(LEAST_ITEMS):
        await again.infer(received(again, BODY), protocol)
    text = again.metrics.text().decode()
    assert 'fettle_server_drift_psi{feature="0",model="lookup",revision="r",side="input",tensor="x"} ' in text
    assert f'fettle_server_drift_items{{model="lookup",revision="r"}} {LEAST_ITEMS}.0' in text
    state = ProcessState()
    state.service = again
    body = await state.window(0)
    assert b'"drift":{"items":200,"tensor":"' in body
    again.close()
