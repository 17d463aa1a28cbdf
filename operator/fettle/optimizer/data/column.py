"""A column while it is read: each block is cast, checked and counted on arrival, so memory holds only the items and one block."""

from __future__ import annotations

import sys

import numpy as np

from fettle.errors import DataError
from fettle.optimizer.data.columns import ITEM_BYTES, ReadRequest
from fettle.preprocess.cast import cast, plain, texts_of
from fettle.runtimes.base import Array

LONG = 256  # characters from which on it is worth the while to keep a text once
EXACT = 1 << 53  # integers up to here are exact as floats


class Column:
    """Collects one column. `rows`: the number of items, if it is known in advance."""

    def __init__(self, name: str, wanted: ReadRequest, rows: int | None = None) -> None:
        self.name = name
        self.where = f"{wanted.uri}: {name}"
        self._dtype = wanted.inputs.get(name)  # None: labels, which keep their own
        self._room = wanted.room
        self._rows = rows
        self._whole: Array | None = None
        self._parts: list[Array] = []
        self._filled = 0
        self._shared: dict[str, str] = {}

    def add(self, block: Array, where: str | None = None) -> None:
        """Add the next items, `[items, *shape of an item]`. Raises DataError for another shape, a wrong data type, or too little memory."""
        place = where or self.where
        items = plain(block, place) if self._dtype is None else cast(self._dtype, block, place)
        before = self._whole if self._whole is not None else (self._parts[0] if self._parts else None)
        if before is not None and before.shape[1:] != items.shape[1:]:
            shapes = f"{list(before.shape[1:])} and {list(items.shape[1:])}"
            raise DataError(f"{place}: items have different shapes, {shapes}")
        if items.dtype == object:
            items = self._counted(items, place)
        if self._rows is None:
            self._room.take(items.nbytes + len(items) * ITEM_BYTES, place)
            self._parts.append(items)
            return
        if self._whole is None:
            each = items.nbytes // len(items) if len(items) else 0
            self._room.take(self._rows * (each + ITEM_BYTES), place)
            self._whole = np.empty((self._rows, *items.shape[1:]), items.dtype)
        self._whole[self._filled : self._filled + len(items)] = items
        self._filled += len(items)

    def _counted(self, texts: Array, where: str) -> Array:
        """`texts`; long ones that were read before become the same objects, which take no more memory."""
        kept: list[str] = []
        size = 0
        for text in texts.reshape(-1).tolist():
            known = self._shared.setdefault(text, text) if len(text) > LONG else text
            size += sys.getsizeof(text) if known is text else 0
            kept.append(known)
        self._room.take(size, where)
        return texts_of(kept).reshape(texts.shape)

    def array(self) -> Array:
        """All items. Raises DataError if there are fewer than the file said, or if labels mix kinds that do not go together."""
        if self._rows is not None and self._filled < self._rows:
            raise DataError(f"{self.where}: expected {self._rows} items, found {self._filled}; the file is damaged")
        if self._whole is not None:
            return self._whole
        parts, self._parts = self._parts, []
        kinds = {part.dtype.kind for part in parts}
        if len({"f" if kind in "iuf" else kind for kind in kinds}) > 1:
            raise DataError(f"{self.where}: numbers, booleans and strings are mixed in one key")
        if len(kinds) > 1:
            parts = [_common(part, kinds, self.where) for part in parts]
        return np.concatenate(parts)


def _common(part: Array, kinds: set[str], where: str) -> Array:
    """Convert numbers to the one kind that holds all of `kinds` exactly."""
    if "f" in kinds:
        if part.dtype.kind in "iu" and part.size and max(abs(int(part.min())), abs(int(part.max()))) > EXACT:
            raise DataError(
                f"{where}: integers above 2^53 are mixed with floats, which cannot represent them exactly: use one type"
            )
        return part.astype(np.float64)
    if part.size and int(part.min()) < 0:
        raise DataError(f"{where}: negative numbers are mixed with numbers above 2^63 - 1; no data type holds both")
    return part.astype(np.uint64)
