"""Files that hold texts, where the source brings what makes inputs of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fettle.api.signature import Signature, Tensor
from fettle.errors import DataError
from fettle.optimizer.data.columns import Encoder, Room
from fettle.optimizer.data.items import Items, ItemsRequest, read
from fettle.runtimes.base import Array
from fettle.store.uris import Mounts

TEXTS = np.array(["ab", "c", "abc"])
SIGNATURE = Signature(inputs=(Tensor(name="codes", dtype="INT64", shape=(-1, -1), batch_axis=0),), outputs=())


class Letters:
    """The codes of a text's letters, those of the second text behind them, zeros up to the longest."""

    columns = ("text", "text_pair")

    def encode(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """See `Encoder.encode`."""
        texts = ["".join(parts) for parts in zip(*(columns[name].tolist() for name in sorted(columns)), strict=True)]
        width = max(map(len, texts))
        return {"codes": np.array([[*map(ord, text), *[0] * (width - len(text))] for text in texts], np.int64)}


LETTERS = Letters()


def items(folder: Path, *, encoder: Encoder | None = LETTERS, room: Room | None = None, **arrays: Any) -> Items:
    np.savez(folder / "items.npz", **arrays)
    request = ItemsRequest("pvc://claim/items.npz", label_key="labels", encoder=encoder)
    return read(request, Mounts({"claim": folder}), SIGNATURE, {"codes": 0}, room or Room())


def test_texts_become_the_inputs(tmp_path: Path) -> None:
    found = items(tmp_path, text=TEXTS, labels=np.arange(3))
    assert found.arrays["codes"].squeeze(1).tolist() == [[97, 98, 0], [99, 0, 0], [97, 98, 99]]
    assert found.labels is not None
    assert (found.labels.tolist(), found.others) == ([0, 1, 2], ())


def test_a_second_text_is_read_where_it_is_there(tmp_path: Path) -> None:
    found = items(tmp_path, text=TEXTS, text_pair=np.array(["x", "y", "z"]))
    assert found.arrays["codes"].squeeze(1)[1].tolist() == [99, 121, 0, 0]


def test_a_text_has_the_same_hash_in_every_file_however_long_the_others_are(tmp_path: Path) -> None:
    short, long = (items(tmp_path, text=np.array(["ab", "c", other])) for other in ("abc", "abcdef"))
    assert [short.hashes()[place] == long.hashes()[place] for place in range(3)] == [True, True, False]
    assert long.take([2, 0]).hashes() == [long.hashes()[2], short.hashes()[0]]


def test_inputs_that_are_there_are_taken_as_they_are(tmp_path: Path) -> None:
    found = items(tmp_path, text=TEXTS, codes=np.ones((3, 2), np.int64))
    assert found.arrays["codes"].squeeze(1).tolist() == [[1, 1]] * 3
    assert found.others == ("text",)


@pytest.mark.parametrize(
    ("encoder", "arrays"), [(None, {"text": TEXTS}), (LETTERS, {"text_pair": TEXTS}), (LETTERS, {"texts": TEXTS})]
)
def test_without_inputs_and_texts_for_them_the_file_is_refused(
    tmp_path: Path, encoder: Encoder | None, arrays: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=r"no array for the inputs \['codes'\]"):
        items(tmp_path, encoder=encoder, **arrays)


def test_what_texts_become_counts_among_what_items_may_take(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the items need more than"):
        items(tmp_path, room=Room(2000), text=np.array(["a", "b" * 1000]))
