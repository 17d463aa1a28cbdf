"""The wheels are what Fettle takes them for: usable without a GPU, for architectures that are named; and CUDA's calls are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tensorrt_rtx
from cuda.bindings import runtime

from fettle.runtimes import cuda


@pytest.mark.parametrize("architecture", ["SM75", "SM80", "SM86", "SM89", "SM120"])
def test_the_library_is_imported_without_a_driver_and_knows_an_architecture(architecture: str) -> None:
    assert architecture in tensorrt_rtx.ComputeCapability.__members__


def test_its_release_is_the_one_that_is_pinned() -> None:
    assert tensorrt_rtx.__version__.startswith("1.7.")


def test_nvidias_bindings_have_every_call_and_constant_that_is_asked_for() -> None:
    source = Path(cuda.__file__).read_text()
    calls = re.findall(r'_ask\("(cuda\w+)"', source) + re.findall(r"runtime\.(cuda\w+)", source)
    assert len(set(calls)) > 20
    assert [name for name in calls if not hasattr(runtime, name)] == []


def test_a_gpu_tells_its_uuid_in_sixteen_bytes() -> None:
    assert len(bytes(runtime.cudaDeviceProp().uuid.bytes)) == 16
