"""What the tests of whole measurements share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.optimizer.measure.models import Bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The digits, their linear classifier, 797 labelled items, in a store of the module's own."""
    from tests.unit.optimizer.measure.models import (
        make_bench,  # onnx and scikit-learn stay out of the tests without models
    )

    return make_bench(tmp_path_factory.mktemp("measure"))
