"""Which tokenizers a server gets: those that made the evaluation items, if nothing else is needed to make them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fettle.api.signature import Signature, Tensor
from fettle.errors import DataError
from fettle.optimizer.data.columns import Portable
from fettle.optimizer.data.items import Items
from fettle.optimizer.prepare.texts import stored_tokenizer
from fettle.runtimes.base import Array
from fettle.store.store import Store
from fettle.store.uris import Mounts

TEXTS = {"text": np.array(["good", "bad"], object)}
ITEMS = Items({"input_ids": np.zeros((2, 1, 3), np.int64)}, read=TEXTS)


class Words:
    """A tokenizer whose file is its word, or that is none where it has no word."""

    columns = ("text", "text_pair")

    def __init__(self, word: str) -> None:
        self.word = word

    def encode(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """See `Encoder.encode`."""
        return {}

    def portable(self, columns: Mapping[str, Array]) -> Portable:
        """See `Encoder.portable`."""
        assert columns == TEXTS, "it is held against the evaluation items"
        if not self.word:
            raise DataError("it is written in Python")
        return Portable(self.word.encode(), lower=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open("pvc://claim", Mounts({"claim": tmp_path}))


def signature(*names: str, length: int = -1) -> Signature:
    tensors = (Tensor(name=name, dtype="INT64", shape=(-1, length), batch_axis=0) for name in names)
    return Signature(inputs=tuple(tensors), outputs=())


MASKED = signature("input_ids", "attention_mask")


def test_the_tokenizer_of_the_evaluation_items_is_stored(store: Store) -> None:
    found, notes = stored_tokenizer(store, Words("words"), ITEMS, MASKED)
    assert found is not None and notes == ()
    assert (store.read_bytes(f"blobs/{found.file.sha256}"), found.file.path, found.lower) == (
        b"words",
        "tokenizer.json",
        True,
    )


def test_without_texts_nothing_shows_how_they_become_inputs(store: Store) -> None:
    assert stored_tokenizer(store, None, ITEMS, MASKED) == (None, ())
    tokens = Items(ITEMS.arrays)
    assert stored_tokenizer(store, Words("words"), tokens, MASKED) == (None, ())


def test_a_tokenizer_that_needs_more_than_its_file_is_left_out_with_a_note(store: Store) -> None:
    found, (note,) = stored_tokenizer(store, Words(""), ITEMS, MASKED)
    assert found is None
    assert note == "the served model takes tokens and no texts: it is written in Python"


def test_an_answer_must_not_depend_on_how_far_a_text_is_padded(store: Store) -> None:
    found, (note,) = stored_tokenizer(store, Words("words"), ITEMS, signature("input_ids"))
    assert found is None and "without attention_mask" in note
    fixed, notes = stored_tokenizer(store, Words("words"), ITEMS, signature("input_ids", length=8))
    assert fixed is not None and notes == ()
