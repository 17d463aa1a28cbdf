"""Short-time Fourier transforms as convolutions."""

from __future__ import annotations

import numpy as np
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.data.models import model, stored, tensor

from fettle.optimizer.onnx.stft import convolve_stft


@settings(max_examples=30, deadline=None)
@given(
    items=st.integers(0, 3),
    frame=st.integers(1, 70),
    step=st.integers(1, 50),
    more=st.integers(0, 120),
    windowed=st.booleans(),
    one_sided=st.booleans(),
)
def test_a_convolution_answers_as_the_transform(
    items: int, frame: int, step: int, more: int, windowed: bool, one_sided: bool
) -> None:
    ends = ["sound", "step", "window"] if windowed else ["sound", "step", "", "frame"]
    node = helper.make_node("STFT", ends, ["image"], onesided=int(one_sided))
    random = np.random.default_rng(frame)
    weights = [stored("step", step, "int64"), stored("frame", frame, "int64")]
    weights += [stored("window", random.standard_normal(frame))] if windowed else []
    made = model(
        [node], [tensor("sound", ["N", "L"])], [tensor("image", ["N", None, None, 2], TensorProto.FLOAT)], weights
    )
    sound = random.standard_normal((items, frame + more)).astype(np.float32)
    changed = convolve_stft(made)
    assert "Conv" in [one.op_type for one in changed.graph.node]
    before, after = (
        onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"sound": sound}
        )[0]
        for one in (made, changed)
    )
    assert before.shape == after.shape
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)
