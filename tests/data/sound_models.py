"""Models that take sound."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper
from tests.data.models import model, stored, tensor


def spectrum(channels: bool = False, one_sided: bool = True) -> onnx.ModelProto:
    """The power of 48 samples' frequencies every 20 samples. `channels`: the signal has a last axis of one."""
    nodes = [
        helper.make_node("STFT", ["sound", "step", "window"], ["image"], onesided=int(one_sided)),
        helper.make_node("ReduceSumSquare", ["image"], ["power"], axes=[3], keepdims=0),
    ]
    weights = [stored("step", 20, "int64"), stored("window", np.hanning(48))]
    shape: list[int | str | None] = ["N", 400, 1] if channels else ["N", 400]
    return model(nodes, [tensor("sound", shape)], [tensor("power", ["N", None, None])], weights)
