"""Damaged forms of a real file: what disks, networks and tools that are not quite right make of it. Nothing here knows a format.

A change goes into the bytes, or inside: into one file of a zip archive, which stays whole around it, or to one value of a JSON document.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

ZIP = b"PK\x03\x04"
# Values that no writer writes; the deepest one is deeper than Python's own stack.
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 7, 1 << 31, 1 << 63, -(1 << 63), 1e308, float("nan")),
    *("", "x" * 300, "../../etc/passwd", "\u0000", "\ud800", [], {}, [[]], {"": None}),
)
NAMES = ("../outside", "/outside", "a/../../outside", "config.json", "data.pkl", "schema.json", "version")
# What the readers of archives and documents raise for what is neither.
NEITHER = (ValueError, RuntimeError, OSError, EOFError, zlib.error, struct.error, zipfile.BadZipFile)
LENGTH = 8  # bytes in front of the header of safetensors


@dataclass(frozen=True)
class Change:
    """`kind` of change `at` a share of the length; `part`: of an archive or a document, which, counted round; `value`: bytes, or a number."""

    kind: str
    at: float
    part: int
    value: bytes

    @property
    def number(self) -> int:
        """`value` as a number."""
        return int.from_bytes(self.value, "little")


def forms(whole: bytes, header: bytes) -> dict[str, bytes]:
    """Damaged forms by name, which every format meets. `header`: a beginning that promises the format, and lies."""
    made = {
        "empty": b"",
        "header-alone": header,
        "header-and-zeros": header + bytes(4096),
        "text": header + b"hello " * 100,
    }
    for share in (0.05, 0.5, 0.95):
        made[f"cut-at-{share}"] = whole[: int(len(whole) * share)]
    made["without-the-last-byte"] = whole[:-1]
    made["twice"] = whole + whole
    return made


def changes(inside: bool = True) -> st.SearchStrategy[list[Change]]:
    """One to three changes. `inside`: the file is an archive or a document."""
    kinds = st.sampled_from(
        [*_BYTES, *(("inside-" + kind for kind in _BYTES) if inside else ()), *(_INSIDE if inside else ())]
    )
    one = st.builds(Change, kinds, st.floats(0, 1), st.integers(0, 999), st.binary(min_size=1, max_size=8))
    return st.lists(one, min_size=1, max_size=3)


def changed(whole: bytes, made: Sequence[Change], header: bytes = b"") -> bytes:
    """`whole` after these changes."""
    for change in made:
        whole = _changed(whole, change, header)
    return whole


def _changed(whole: bytes, change: Change, header: bytes) -> bytes:
    kind = change.kind.removeprefix("inside-")
    if change.kind not in _BYTES:
        with suppress(*NEITHER):  # an earlier change left no archive, or no document: then the bytes are changed
            if whole.startswith(ZIP):
                return _in_archive(whole, replace(change, kind=kind))
            if kind == "value":
                return _in_document(whole, change)
    return _BYTES.get(kind, _flip)(whole, int(change.at * len(whole)), change, header)


# -------------------------------------------------------------------------------------------------------------------- bytes


def _flip(whole: bytes, at: int, change: Change, header: bytes) -> bytes:
    old = whole[at : at + len(change.value)]
    return (
        whole[:at] + bytes(one ^ other for one, other in zip(old, change.value, strict=False)) + whole[at + len(old) :]
    )


def _overwrite(whole: bytes, at: int, change: Change, header: bytes) -> bytes:
    return whole[:at] + change.value + whole[at + len(change.value) :]


def _extreme(whole: bytes, at: int, change: Change, header: bytes) -> bytes:
    """A number, or an offset, that is as large as can be."""
    at -= at % 4
    number = (b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\x00" * 4, b"\xff" * 8)[change.number % 5]
    return whole[:at] + number + whole[at + len(number) :]


def _cut(whole: bytes, at: int, change: Change, header: bytes) -> bytes:
    return whole[:at]


def _insert(whole: bytes, at: int, change: Change, header: bytes) -> bytes:
    return whole[:at] + change.value + whole[at:]


def _remove(whole: bytes, at: int, change: Change, header: bytes) -> bytes:
    return whole[:at] + whole[at + 1 + change.number % 64 :]


def _repeat(whole: bytes, at: int, change: Change, header: bytes) -> bytes:
    return whole[: at + 1 + change.number % 256] + whole[at:]


def _splice(whole: bytes, at: int, change: Change, header: bytes) -> bytes:
    return header + whole[at:]


_BYTES: Mapping[str, Callable[[bytes, int, Change, bytes], bytes]] = {
    "flip": _flip,
    "overwrite": _overwrite,
    "extreme": _extreme,
    "cut": _cut,
    "insert": _insert,
    "remove": _remove,
    "repeat": _repeat,
    "splice": _splice,
}


# ------------------------------------------------------------------------------------------------------------------- inside

_INSIDE = ("drop", "rename", "value", "value", "value")


def _in_archive(whole: bytes, change: Change) -> bytes:
    with zipfile.ZipFile(io.BytesIO(whole)) as opened:
        files = [(name, opened.read(name)) for name in opened.namelist()]
    if not files:
        raise ValueError("an archive without files")
    index = change.part % len(files)
    if change.kind == "value":
        documents = [place for place, (_, content) in enumerate(files) if content.startswith(b"{")]
        index = documents[change.part % len(documents)] if documents else index
    name, content = files[index]
    if change.kind == "drop":
        del files[index]
    elif change.kind == "rename":
        files[index] = (NAMES[change.number % len(NAMES)], content)
    else:
        files[index] = (name, _changed(content, change, b""))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        for name, content in files:
            made.writestr(name, content)
    return packed.getvalue()


def _in_document(whole: bytes, change: Change) -> bytes:
    """With another value in the document, or in the header of safetensors. Raises ValueError for what is neither."""
    size = int.from_bytes(whole[:LENGTH], "little")
    if not whole.startswith(b"{") and size < len(whole):
        header = _in_document(whole[LENGTH : LENGTH + size], change)
        return len(header).to_bytes(LENGTH, "little") + header + whole[LENGTH + size :]
    document = json.loads(whole)
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        inner = waiting.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        places += [(inner, key) for key in keys]
        waiting += [inner[key] for key in keys]
    if places:
        inner, key = places[int(change.at * (len(places) - 1))]
        inner[key] = VALUES[change.number % len(VALUES)]
    return json.dumps(document).encode()
