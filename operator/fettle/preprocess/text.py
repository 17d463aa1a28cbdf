"""Texts as a model's tokens, by a file of the library tokenizers: what the optimizer publishes, and what a server reads requests with.

The file says how texts are cut off and padded. The padding itself is done here, because a few bytes may ask for more of it than memory has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fettle.api.text import quoted
from fettle.errors import DataError
from fettle.preprocess.reading import readable
from fettle.runtimes.base import Array

COLUMNS = ("text", "text_pair")  # of items, called as tokenizers call them
IDS, KINDS, MASK = "input_ids", "token_type_ids", "attention_mask"


class TooManyTokens(DataError):
    """More than the caller has room for."""


class TextEncoder:
    """The tokenizer in a file of the library. `lower`: texts are written in small letters first."""

    def __init__(self, content: bytes, *, lower: bool = False) -> None:
        """Raises DataError for a file that this version of the library cannot read, or that does not say how to pad; ModuleNotFoundError."""
        from tokenizers import Tokenizer
        from tokenizers import __version__ as version

        with readable("the tokenizer", f"file of tokenizers {version}"):
            self._tokenizer = Tokenizer.from_str(content.decode())
        padding = self._tokenizer.padding
        if padding is None:
            raise DataError("the tokenizer does not say how texts are padded")
        self._tokenizer.no_padding()
        self._length, self._left = padding["length"] or 0, padding["direction"] == "left"
        self._fill = {IDS: padding["pad_id"], KINDS: padding["pad_type_id"], MASK: 0}
        self._lower = lower

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, most: int | None = None
    ) -> dict[str, Array]:
        """The inputs that tokenizers make, by name, each INT64 [texts, tokens]. `pairs`: the second text of each item.

        `most`: tokens of all texts together, those of padding included. Raises TooManyTokens, DataError.
        """
        first = self._written(texts)
        encodings = self._encoded(first if pairs is None else list(zip(first, self._written(pairs), strict=True)))
        width = max([self._length, *map(len, encodings)])
        if most is not None and width * len(encodings) > most:
            raise TooManyTokens(f"{len(encodings)} texts of {width} tokens, padding included; the limit is {most}")
        rows = {
            IDS: [each.ids for each in encodings],
            KINDS: [each.type_ids for each in encodings],
            MASK: [each.attention_mask for each in encodings],
        }
        return {name: self._padded(lists, width, self._fill[name]) for name, lists in rows.items()}

    def _encoded(self, items: Sequence[str | tuple[str, str]]) -> Sequence[Any]:
        try:
            encodings: Sequence[Any] = self._tokenizer.encode_batch(items)
            return encodings
        except (MemoryError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library is no Exception
            raise DataError(f"the tokenizer cannot encode these texts: {quoted(error)}") from error

    def _written(self, texts: Sequence[str]) -> list[str]:
        return [text.lower() if self._lower else text for text in texts]

    def _padded(self, rows: Sequence[Sequence[int]], width: int, fill: int) -> Array:
        array = np.full((len(rows), width), fill, np.int64)
        for place, row in zip(array, rows, strict=True):
            start = width - len(row) if self._left else 0
            place[start : start + len(row)] = row
        return array
