"""What OpenVINO alone gets wrong or does in its own way, and `runtimes/openvino.py` sets right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import RuntimeName
from fettle.runtimes import base

IMAGE = (16, 40, 40)
SIGNATURE = Signature(
    inputs=(Tensor(name="image", dtype="FP32", shape=(-1, *IMAGE), batch_axis=0),),
    outputs=(
        Tensor(name="scaled", dtype="FP32", shape=(-1, 24, 40, 40), batch_axis=0),
        Tensor(name="mean", dtype="FP32", shape=(-1, 24, 1, 1), batch_axis=0),
    ),
)


def quantized(value: Any, zero: int, step: float) -> Any:
    """`value` in 8 bits."""
    low, high = np.float32(-zero * step), np.float32((255 - zero) * step)
    return ops.fake_quantize(value, low, high, low, high, 256)


@pytest.fixture(scope="module")
def squeeze_and_excite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 convolution that is read in int8 by a mean, and in float32 by what the mean scales."""
    weights = (np.random.default_rng(0).standard_normal((24, 16, 3, 3)) / 6).astype(np.float32)
    scales = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / np.float32(127)
    stored = np.clip(np.round(weights / scales), -127, 127).astype(np.int8)
    image = ops.parameter([-1, *IMAGE], np.float32, name="image")
    filters = ops.multiply(ops.convert(ops.constant(stored), "f32"), ops.constant(scales))
    product = ops.convolution(quantized(image, 128, 8 / 255), filters, [1, 1], [1, 1], [1, 1], [1, 1])
    mean = ops.reduce_mean(quantized(product, 134, 30 / 255), ops.constant(np.array([2, 3], np.int64)), keep_dims=True)
    scaled = ops.add(ops.multiply(product, ops.sigmoid(mean)), product)
    model = ov.Model([scaled, mean], [image])
    for port, tensor in zip((*model.inputs, *model.outputs), (*SIGNATURE.inputs, *SIGNATURE.outputs), strict=True):
        port.get_tensor().set_names({tensor.name})
    entry = tmp_path_factory.mktemp("model") / "model.xml"
    ov.save_model(model, entry, compress_to_fp16=False)
    return entry


@pytest.mark.parametrize("items", [1, 3])
def test_an_int8_product_that_several_operations_read_gives_the_same_answers_with_a_dynamic_batch(
    squeeze_and_excite: Path, items: int
) -> None:
    runtime = base.get(RuntimeName.OPENVINO)
    feed = {"image": np.random.default_rng(1).standard_normal((items, *IMAGE)).astype(np.float32)}
    fixed, dynamic = (
        runtime.load(squeeze_and_excite, RuntimeSettings(threads=1, batch_size=size), SIGNATURE).infer(feed)
        for size in (items, None)
    )
    for name, expected in fixed.items():
        assert np.abs(dynamic[name] - expected).mean() < 0.02 * np.abs(expected).mean(), name


def test_it_computes_in_int8_as_before(squeeze_and_excite: Path) -> None:
    feed = {"image": np.zeros((1, *IMAGE), np.float32)}
    executed = base.get(RuntimeName.OPENVINO).executed(squeeze_and_excite, RuntimeSettings(threads=1), feed, SIGNATURE)
    assert executed.int8 == 1
