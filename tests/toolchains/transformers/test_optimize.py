"""`fettle optimize` of a directory of Hugging Face, from the command line to a published artifact that answers as transformers does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.toolchains.optimizing import answers, optimized
from tests.toolchains.transformers import examples


def test_a_directory_becomes_an_artifact(tmp_path: Path) -> None:
    example = examples.EXAMPLES["BertForSequenceClassification"]
    model, items = example.saved(tmp_path / "model"), example.items(np.random.default_rng(0))
    status = optimized(tmp_path, "model", items)
    exact = next(row["exact"] for row in status["candidates"] if row["name"] == status["artifacts"][0]["candidate"])
    found, wanted = answers(tmp_path, status, items)["logits"], examples.answer(model, items)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 if exact else 0.1)
