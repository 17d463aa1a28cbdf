"""The wheels are what Fettle takes them for: usable without a GPU, for architectures that are named; and CUDA's calls are there."""

from __future__ import annotations

import re
from pathlib import Path

import tensorrt_rtx
from cuda.bindings import runtime

from fettle.api import catalog
from fettle.runtimes import cuda
from fettle.runtimes.tensorrt_rtx import RUNTIME


def test_the_library_is_imported_without_a_driver_and_knows_the_architectures_of_the_catalog() -> None:
    assert RUNTIME.library.architectures() == catalog.runtime(RUNTIME.name).architectures


def test_its_release_is_the_one_that_is_pinned() -> None:
    assert tensorrt_rtx.__version__.startswith("1.7.")


def test_nvidias_bindings_have_every_call_and_constant_that_is_asked_for() -> None:
    source = Path(cuda.__file__).read_text()
    calls = re.findall(r'_ask\("(cuda\w+)"', source) + re.findall(r"runtime\.(cuda\w+)", source)
    assert len(set(calls)) > 20
    assert [name for name in calls if not hasattr(runtime, name)] == []


def test_a_gpu_tells_its_uuid_in_sixteen_bytes() -> None:
    assert len(bytes(runtime.cudaDeviceProp().uuid.bytes)) == 16
