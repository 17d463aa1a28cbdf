"""Damaged directories of Hugging Face: each ends with a reason that is the file's, none with an error of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from tests.toolchains.damaged import Change, changes
from tests.toolchains.preparing import CLAIM, Kind, Preparer, Whole, files_below
from tests.toolchains.transformers import examples

from fettle.api.data import EvaluationSpec

LONG_HEADER = (100 << 20).to_bytes(8, "little") + b'{"'
TEXTS = {"evaluation": EvaluationSpec(uri=f"pvc://{CLAIM}/items.npz")}


def _directory(folder: Path, name: str, target: str, header: bytes) -> Whole:
    examples.EXAMPLES[name].saved(folder / "model")
    return Whole(files_below(folder), f"model/{target}", header, entry="model")


def configuration(folder: Path) -> Whole:
    return _directory(folder, "ResNetForImageClassification", "config.json", b"{")


def weights(folder: Path) -> Whole:
    return _directory(folder, "ResNetForImageClassification", "model.safetensors", LONG_HEADER)


def _with_texts(folder: Path, target: str) -> Whole:
    examples.EXAMPLES["DistilBertModel"].saved(folder / "model")
    examples.tokenizer(folder / "model")
    np.savez(folder / "items.npz", text=examples.reviews(np.random.default_rng(0)))
    return Whole(files_below(folder), f"model/{target}", b"{", entry="model", data=TEXTS)


def tokenizer(folder: Path) -> Whole:
    return _with_texts(folder, "tokenizer.json")


def configuration_of_a_tokenizer(folder: Path) -> Whole:
    return _with_texts(folder, "tokenizer_config.json")


KINDS = (configuration, weights, tokenizer, configuration_of_a_tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_whole_is_refused_with_a_reason(preparing: Preparer, kind: Kind) -> None:
    preparing.refuses_forms(kind)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, derandomize=True)
@given(made=changes())
def test_a_changed_file_is_prepared_or_refused_with_a_reason(
    preparing: Preparer, kind: Kind, made: list[Change]
) -> None:
    preparing.refuses_changed(kind, made)
