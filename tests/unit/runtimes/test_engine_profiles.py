"""Optimization profiles of engines: which are built for a signature and batch sizes, and in which of them a request runs on a GPU that is played."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.runtimes.fake_cuda import OUT_OF_MEMORY, FakeCuda
from tests.unit.runtimes.test_engine import LEFT, PAIR, RIGHT, session, tensor

from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.errors import RuntimeFailure
from fettle.runtimes.engine_build import ShapeRange, profiles_of

FIXED = Tensor(name="state", dtype="FP32", shape=(2, 6), batch_axis=None)


def batch(rows: int) -> dict[str, np.ndarray]:
    return {"left": np.ones((rows, 6), np.float32), "right": np.full((rows, 1), 2, np.float32)}


# ---------------------------------------------------------------------------------------------------- which profiles are built


@pytest.mark.parametrize(
    ("batch_size", "batch_sizes", "ranges"),
    [
        (None, (1, 8), [(1, 1), (2, 8)]),
        (None, (8, 1), [(1, 1), (2, 8)]),
        (None, (8, 32), [(1, 8), (9, 32)]),
        (None, (4, 1, 64, 4), [(1, 1), (2, 4), (5, 64)]),
        (None, (1, 2, 3), [(1, 1), (2, 2), (3, 3)]),
        (None, (16,), [(1, 16)]),
        (8, (8,), [(8, 8)]),
    ],
)
def test_each_batch_size_has_a_profile_that_is_optimized_for_it(
    batch_size: int | None, batch_sizes: tuple[int, ...], ranges: list[tuple[int, int]]
) -> None:
    profiles = profiles_of(PAIR, batch_size, batch_sizes)
    for name, width in (("left", 6), ("right", 1)):
        assert [profile[name] for profile in profiles] == [
            ShapeRange((least, width), (most, width), (most, width)) for least, most in ranges
        ]
    if batch_size is None:
        taken = [size for least, most in ranges for size in range(least, most + 1)]
        assert taken == list(range(1, max(batch_sizes) + 1)), "each number of items has one profile"


def test_a_model_without_a_batch_axis_has_one_profile_whatever_the_batch_sizes_are() -> None:
    profiles = profiles_of(Signature(inputs=(FIXED,), outputs=()), None, (1, 8))
    assert profiles == ({"state": ShapeRange((2, 6), (2, 6), (2, 6))},)


def test_an_input_without_a_batch_axis_has_one_shape_in_all_profiles() -> None:
    profiles = profiles_of(Signature(inputs=(tensor("left", 6), FIXED), outputs=()), None, (1, 8))
    assert [profile["state"] for profile in profiles] == [ShapeRange((2, 6), (2, 6), (2, 6))] * 2


def test_a_batch_that_is_not_the_first_axis_varies_where_it_is() -> None:
    sequence = Tensor(name="sequence", dtype="FP32", shape=(7, -1, 3), batch_axis=1)
    profiles = profiles_of(Signature(inputs=(sequence,), outputs=()), None, (1, 4))
    assert [profile["sequence"] for profile in profiles] == [
        ShapeRange((7, 1, 3), (7, 1, 3), (7, 1, 3)),
        ShapeRange((7, 2, 3), (7, 4, 3), (7, 4, 3)),
    ]


def test_a_size_that_varies_beside_the_batch_is_refused() -> None:
    wide = Tensor(name="page", dtype="FP32", shape=(-1, 3, -1), batch_axis=0)
    with pytest.raises(RuntimeFailure, match=r"set them in source\.inputs") as failure:
        profiles_of(Signature(inputs=(wide,), outputs=()), None, (1, 8))
    assert failure.value.reason == Reason.UNSUPPORTED_MODEL


# ------------------------------------------------------------------------------------------------- in which profile a run goes


def ran_in(cuda: FakeCuda) -> set[int]:
    """The profile of the last run: each leaves its number in the memory that its context was given."""
    (scratch,) = (memory for memory in cuda.device.values() if memory.nbytes == 300)
    return set(scratch[:100].tolist())


# Not in the order of their sizes.
THREE: dict[str, Any] = {"ranges": ((9, 32), (1, 1), (2, 8)), "scratch": (300, 100, 200)}


@pytest.mark.parametrize(("rows", "profile"), [(1, 1), (2, 2), (5, 2), (8, 2), (9, 0), (32, 0)])
def test_a_run_takes_the_profile_with_the_smallest_maximum_that_holds_it(rows: int, profile: int) -> None:
    cuda = FakeCuda()
    loaded = session(cuda, **THREE)
    np.testing.assert_array_equal(loaded.infer(batch(rows))["product"], np.full((rows, 6), 2))
    assert ran_in(cuda) == {profile}


def test_a_batch_that_no_profile_holds_is_the_callers_mistake() -> None:
    cuda = FakeCuda()
    loaded = session(cuda, **THREE)
    with pytest.raises(RuntimeFailure, match=r"other shapes than \[33, 6\]") as failure:
        loaded.infer(batch(33))
    assert failure.value.reason == Reason.DATA_INVALID
    assert cuda.calls.count("create_stream") == 1, "its lane stays"


def test_each_lane_has_a_context_for_each_profile_on_one_stream_and_in_one_piece_of_memory() -> None:
    cuda = FakeCuda()
    loaded = session(cuda, streams=2, **THREE)
    assert cuda.calls.count("create_execution_context") == 6
    assert sorted(call for call in cuda.calls if call.startswith("profile")) == sorted(
        ["profile 0", "profile 1", "profile 2"] * 2
    )
    assert [memory.nbytes for memory in cuda.device.values()] == [300, 300], "of the profile that needs most"
    assert len(cuda.streams) == 2
    loaded.close()
    assert cuda.left == (0, 0, 0)


def test_a_profile_of_one_size_is_recorded_and_the_others_are_not() -> None:
    cuda = FakeCuda()
    loaded = session(cuda, ranges=((1, 1), (2, 8)), scratch=(0, 0))
    for number in range(3):
        for rows in (1, 2, 5):
            left = np.full((rows, 6), number, np.float32)
            answers = loaded.infer({"left": left, "right": np.full((rows, 1), 2, np.float32)})
            np.testing.assert_array_equal(answers["product"], left * 2)
    assert (cuda.calls.count("begin_capture"), cuda.calls.count("launch")) == (1, 2)
    loaded.close()
    assert (cuda.recorded, cuda.left) == ((0, 0), (0, 0, 0))


def test_a_larger_batch_leaves_what_was_recorded_for_a_smaller_one_its_memory() -> None:
    cuda = FakeCuda()
    loaded = session(cuda, ranges=((1, 1), (2, 8)), scratch=(0, 0))
    one = {"left": LEFT[:1], "right": RIGHT[:1]}
    for _ in range(2):
        loaded.infer(one)
    for rows in (2, 8):
        loaded.infer(batch(rows))
    np.testing.assert_array_equal(loaded.infer(one)["product"], LEFT[:1] * 2)
    assert cuda.calls.count("launch") == 2


def test_a_run_tells_its_time_on_the_gpu_in_each_profile() -> None:
    cuda = FakeCuda()
    loaded = session(cuda, ranges=((1, 1), (2, 8)), scratch=(0, 0))
    loaded.time_on_gpu()
    for rows in (1, 8, 1):
        loaded.infer(batch(rows))
        assert loaded.gpu_milliseconds() == 1.0
    assert len(cuda.events) == 2, "of the lane"


@pytest.mark.parametrize("call", ["allocate", "create_execution_context", "profile 2"])
def test_a_lane_that_cannot_have_all_its_contexts_leaves_nothing_behind(call: str) -> None:
    cuda = FakeCuda(fails={call: (1 if call == "create_execution_context" else 0, OUT_OF_MEMORY)})
    with pytest.raises(RuntimeFailure, match="out of memory"):
        session(cuda, **THREE)
    assert cuda.left == (0, 0, 0)


def test_a_library_that_selects_no_profile_leaves_nothing_behind() -> None:
    cuda = FakeCuda()
    with pytest.raises(RuntimeFailure, match="did not select the optimization profile 1"):
        session(cuda, selects=False, **THREE)
    assert cuda.left == (0, 0, 0)


def test_a_run_that_fails_in_one_profile_frees_its_lane_and_the_next_one_answers_in_each() -> None:
    cuda = FakeCuda()
    loaded = session(cuda, **THREE)
    cuda.fails["execute"] = (0, OUT_OF_MEMORY)
    with pytest.raises(RuntimeFailure, match="out of memory"):
        loaded.infer(batch(8))
    assert cuda.left == (0, 0, 0)
    for rows in (1, 8, 32):
        np.testing.assert_array_equal(loaded.infer(batch(rows))["product"], np.full((rows, 6), 2))
    loaded.close()
    assert cuda.left == (0, 0, 0)
