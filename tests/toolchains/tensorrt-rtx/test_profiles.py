"""Engines with several optimization profiles, built here without a GPU. What each is worth needs one."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorrt_rtx
from bench.gpu.engine_models import MODELS, Model

from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.errors import RuntimeFailure
from fettle.optimizer.onnx import model as onnx_model
from fettle.runtimes import engine_build
from fettle.runtimes.engine_build import ShapeRange, profiles_of
from fettle.runtimes.tensorrt_rtx import RUNTIME

DIGITS = next(model for model in MODELS if model.name == "digits")
SIGNATURE = Signature(inputs=(Tensor(name="image", dtype="FP32", shape=(-1, 1, 32, 32), batch_axis=0),), outputs=())
BATCHES = [((1, 8),), ((1, 1), (2, 8)), ((1, 1), (2, 4), (5, 16), (17, 64))]
# Whose first axis is the batch's.
VARYING = [model for model in MODELS if model.name in ("digits", "orientation", "magika")]


@pytest.mark.parametrize("model", VARYING, ids=lambda model: model.name)
@pytest.mark.parametrize("ranges", BATCHES, ids=["one profile", "two", "four"])
def test_a_real_model_becomes_one_engine_with_a_profile_for_each_range_of_batches(
    model: Model, ranges: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    alone = RUNTIME.build(model.file, tmp_path / "alone.rtx", "sm89", model.batches([(1, ranges[-1][1])]))
    note = RUNTIME.build(model.file, tmp_path / "model.rtx", "sm89", model.batches(ranges))
    assert note == alone, "the network is the same"
    size, one = ((tmp_path / f"{name}.rtx").stat().st_size for name in ("model", "alone"))
    assert size < 2 * one, "the profiles share the weights"


def test_sizes_of_one_name_that_differ_and_never_vary_do_not_keep_the_batch_from_varying(tmp_path: Path) -> None:
    """Height and width have one name in this file, and the library takes those of one name for one size."""
    model = next(each for each in MODELS if each.name == "ocr-direction")
    (value,) = onnx_model.inputs(onnx_model.read(model.file).graph)
    assert len({name for _, name in onnx_model.dimensions(value)[2:]}) == 1
    assert RUNTIME.build(model.file, tmp_path / "model.rtx", "sm89", model.batches([(1, 1), (2, 8)])).executed.total > 0


def test_the_batch_sizes_of_a_target_become_the_profiles_of_its_engine(tmp_path: Path) -> None:
    profiles = profiles_of(SIGNATURE, None, (1, 8))
    assert RUNTIME.build(DIGITS.file, tmp_path / "model.rtx", "sm89", profiles).executed.total > 0


def test_the_library_has_a_profile_for_each_and_none_where_every_input_has_one_shape() -> None:
    def built(*batch_sizes: int, fixed: int | None = None) -> list[list[tuple[int, ...]]]:
        log = engine_build.error_log(tensorrt_rtx)
        builder = tensorrt_rtx.Builder(log)
        network = engine_build._parsed(RUNTIME.library, builder, DIGITS.file, log)
        made = engine_build._profiles(builder, network, profiles_of(SIGNATURE, fixed, batch_sizes))
        return [[tuple(shape) for shape in profile.get_shape("image")] for profile in made]

    image = (1, 32, 32)
    assert built(1, 8) == [[(1, *image)] * 3, [(2, *image), (8, *image), (8, *image)]]
    assert built(4, fixed=4) == []


def test_a_profile_that_says_nothing_of_an_input_is_refused(tmp_path: Path) -> None:
    one = (1, 1, 32, 32)
    profiles = ({"image": ShapeRange(one, one, one)}, {})
    with pytest.raises(RuntimeFailure, match="an engine needs the range of each dynamic dimension") as failure:
        RUNTIME.build(DIGITS.file, tmp_path / "model.rtx", "sm89", profiles)
    assert failure.value.reason == Reason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (
            "ICudaEngine",
            ("num_optimization_profiles", "get_tensor_profile_shape", "get_device_memory_size_for_profile_v2"),
        ),
        ("IExecutionContext", ("set_optimization_profile_async", "set_device_memory", "set_input_shape")),
        ("IExecutionContext", ("get_tensor_shape", "set_tensor_address", "execute_async_v3")),
        ("IRuntimeConfig", ("set_execution_context_allocation_strategy", "create_runtime_cache", "set_runtime_cache")),
    ],
)
def test_the_library_has_every_name_that_running_an_engine_takes(owner: str, names: tuple[str, ...]) -> None:
    there = getattr(tensorrt_rtx, owner)
    assert [name for name in names if not hasattr(there, name)] == []
    assert hasattr(tensorrt_rtx.ExecutionContextAllocationStrategy, "USER_MANAGED")
