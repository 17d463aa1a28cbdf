"""What the metadata of a model says of it."""

from __future__ import annotations

import pytest

from fettle.api.vocabulary import FormatName, RuntimeName
from fettle.server.describe import platform


@pytest.mark.parametrize(
    ("form", "runtime", "name"),
    [
        (FormatName.ONNX, RuntimeName.ONNXRUNTIME, "onnx_onnxruntime"),
        (FormatName.ONNX, RuntimeName.OPENVINO, "onnx_openvino"),
        ("OpenVINO", RuntimeName.OPENVINO, "openvino"),
    ],
)
def test_a_platform_is_format_and_runtime_without_repetition(form: str, runtime: str, name: str) -> None:
    assert platform(form, runtime) == name
