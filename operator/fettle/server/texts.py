"""Texts as the inputs of a request, made by the file that was held against the evaluation items.

Texts of strangers are bounded before they take memory or time: by their bytes, each of which takes up to five hundred bytes while the library works
on it; by their characters after NFKD, because a normalizer makes up to 18 of one; and by the tokens of all texts together, because each is padded to
the longest. One request is encoded at a time.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from unicodedata import normalize

import orjson

from fettle.api.signature import Signature
from fettle.api.task import StoredTokenizer
from fettle.errors import DataError
from fettle.preprocess.cast import cast
from fettle.preprocess.text import COLUMNS, TextEncoder, TooManyTokens
from fettle.runtimes.base import Array
from fettle.server.checks import count_rows, invalid, require_shape, said
from fettle.server.request import Code, InferRequest, RequestError
from fettle.store.manifest import TOKENIZER

TEXT, PAIR = COLUMNS
TOKEN_BYTES = 3 * 8  # its number, its kind and whether it counts


@dataclass(frozen=True)
class Room:
    """What the texts of a request may take: bytes as they are sent, and of all tensors that they become."""

    body: int
    tensors: int

    def require(self, size: int, of: str = "bytes") -> None:
        """Raises RequestError TOO_LARGE."""
        if size > self.body:
            message = f"the texts have {size} {of}; the limit is {self.body} (FETTLE_SERVER_MAX_TEXT_BYTES)"
            raise RequestError(Code.TOO_LARGE, f"{message}: send a shorter text, or fewer texts in a request")


class Texts:
    """Makes the inputs of a model of texts."""

    def __init__(self, signature: Signature, tokenizer: StoredTokenizer, folder: Path) -> None:
        """`folder`: the artifact's. Raises DataError if the file cannot be read, ModuleNotFoundError if the library is not installed."""
        # The library's own threads would take the model's cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._signature = signature
        self._encoder = TextEncoder((folder / TOKENIZER).read_bytes(), lower=tokenizer.lower)

    def plain(self, body: bytes | bytearray, room: Room) -> InferRequest:
        """One item: the whole body is its text. Raises RequestError INVALID, TOO_LARGE."""
        room.require(len(body))
        return self._request([_text(body.removeprefix(BOM_UTF8))], None, room, 1)

    def lines(self, body: bytes | bytearray, room: Room, max_rows: int) -> InferRequest:
        """An item of each line, as in a file of evaluation items. Raises RequestError INVALID, TOO_LARGE."""
        room.require(len(body))
        lines = [
            (number, line)
            for number, line in enumerate(bytes(body).removeprefix(BOM_UTF8).split(b"\n"), 1)
            if line.strip()
        ]
        if not 1 <= len(lines) <= max_rows:
            raise invalid(f"expected 1 to {max_rows} lines with an item, found {len(lines)}")
        items = [_item(line, f"line {number}") for number, line in lines]
        pairs = [item[PAIR] for item in items if PAIR in item]
        if len(pairs) not in (0, len(items)):
            raise invalid(f"expected {PAIR} in all items or in none, found it in {len(pairs)} of {len(items)}")
        return self._request([item[TEXT] for item in items], pairs or None, room, max_rows)

    def _request(self, texts: list[str], pairs: list[str] | None, room: Room, max_rows: int) -> InferRequest:
        characters = sum(len(normalize("NFKD", text)) for text in chain(texts, pairs or ()))
        room.require(characters, "characters after NFKD")
        try:
            made = self._encoder.encode(texts, pairs, room.tensors // TOKEN_BYTES)
        except TooManyTokens as error:
            raise RequestError(Code.TOO_LARGE, f"{error.message}: send fewer texts in a request") from error
        except DataError as error:
            raise invalid(error.message) from error
        inputs: dict[str, Array] = {}
        for tensor in self._signature.inputs:
            array = inputs[tensor.name] = cast(tensor.dtype, made[tensor.name], tensor.name)
            if not array.size:
                raise invalid("the texts have no tokens")
            require_shape(tensor, tensor.dtype, array.shape)
        shapes = {name: array.shape for name, array in inputs.items()}
        rows = count_rows(self._signature, shapes, max_rows)
        if rows != len(texts):  # one whose items cannot be stacked
            raise invalid(f"this model takes one text in a request, found {len(texts)}")
        return InferRequest(inputs, rows, None, None)


def _text(body: bytes | bytearray) -> str:
    if not body:
        raise invalid("the body is empty: expected a text")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"the text is not UTF-8: {error.reason} at byte {error.start}") from error


def _item(line: bytes, where: str) -> dict[str, Any]:
    try:
        item = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise invalid(f"{where} is not valid JSON: {error}") from error
    if not isinstance(item, dict) or TEXT not in item:
        raise invalid(f'{where}: expected an object with a "{TEXT}", found {said(item)}')
    for name in COLUMNS:
        if name in item and not isinstance(item[name], str):
            raise invalid(f'{where}: "{name}" must be a string, found {said(item[name])}')
    return item
