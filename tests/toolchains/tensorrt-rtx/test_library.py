"""The wheel is what Fettle takes it for: usable without a GPU, for architectures that are named."""

from __future__ import annotations

import pytest
import tensorrt_rtx


@pytest.mark.parametrize("architecture", ["SM75", "SM80", "SM86", "SM89", "SM120"])
def test_the_library_is_imported_without_a_driver_and_knows_an_architecture(architecture: str) -> None:
    assert architecture in tensorrt_rtx.ComputeCapability.__members__


def test_its_release_is_the_one_that_is_pinned() -> None:
    assert tensorrt_rtx.__version__.startswith("1.7.")
