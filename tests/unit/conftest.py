"""What the tests of one machine share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests import warm
from tests.authorities import one_authority as one_authority

# Nothing that imports onnxruntime or openvino: each of them starts a thread, which a forked process would lack.
warm.imported(
    "fettle.runtimes.torchscript",
    "fettle.optimizer.stage",
    "fettle.optimizer.measure.promises",
    "fettle.server.pod",
    "onnxscript",
    "torch.export",
    "torch.onnx",
)


@pytest.fixture(scope="session", autouse=True)
def _no_loss_of_power() -> Iterator[None]:
    """No test cuts the power, so none waits until a disk has what a store wrote; what a store makes of such a disk is tested by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield
