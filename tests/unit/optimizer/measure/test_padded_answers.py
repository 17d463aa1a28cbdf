"""Answers of text models beside the original's: padding says nothing, and widens no tolerance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fettle.api.signature import Signature, Tensor
from fettle.optimizer.measure.accuracy import Judgement, Reference
from fettle.store.padding import MASK

ITEMS, LENGTH, SIZE = 100, 8, 4
TOKENS = Tensor(name=MASK, dtype="INT64", shape=(-1, -1), batch_axis=0)
SIGNATURE = Signature(inputs=(TOKENS,), outputs=(Tensor(name="y", dtype="FP32", shape=(-1, -1, SIZE), batch_axis=0),))
MASKS = (np.arange(LENGTH) < 5).astype(np.int64)[None].repeat(ITEMS, 0)
ANSWERS = np.random.default_rng(0).normal(size=(ITEMS, LENGTH, SIZE)).astype(np.float32)


def judge(folder: Path, candidate: np.ndarray, original: np.ndarray = ANSWERS) -> Judgement:
    reference = Reference(folder, SIGNATURE, None, None, generated=False, masks=MASKS)
    reference.add([{"y": answer} for answer in original])
    reference.finish()
    return reference.judge(({"y": answer} for answer in candidate), lossy=True, alpha=0.05)


def changed(position: int) -> np.ndarray:
    other = ANSWERS.copy()
    other[:, position] += 1
    return other


@pytest.mark.parametrize(("position", "agreement"), [(6, 1.0), (3, 0.0)])
def test_only_what_is_no_padding_counts(tmp_path: Path, position: int, agreement: float) -> None:
    assert judge(tmp_path, changed(position)).agreement.value == agreement


def test_large_numbers_in_padding_widen_no_tolerance(tmp_path: Path) -> None:
    noisy, candidate = ANSWERS.copy(), changed(3)
    noisy[:, 6] *= 1e4
    candidate[:, 6] = noisy[:, 6]
    assert judge(tmp_path, candidate, noisy).agreement.value == 0
