"""What the tests that convert programs of PyTorch share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest


@pytest.fixture(scope="session")
def operators_gathered_once() -> Iterator[None]:
    """PyTorch's exporter reads the signatures of a thousand operators anew for each model, which takes about a second."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield
