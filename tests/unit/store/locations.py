"""Addresses as the tests open them: with a Secret, read, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from fettle.errors import FettleError, SourceError
from fettle.store.uris import Location


def secret(folder: Path, values: Mapping[str, str] | None = None, **others: str) -> Path:
    """A Secret with these keys, as a folder."""
    folder.mkdir(exist_ok=True)
    for key, value in {**(values or {}), **others}.items():
        (folder / key).write_text(value)
    return folder


def read(location: Location, path: str = "") -> bytes:
    """The content of the file at `location`, or of another one beside it."""
    with location.filesystem.open(path or location.path, "rb") as stream:
        content: bytes = stream.read()
    return content


def refusal(location: Location, path: str = "model.onnx") -> FettleError:
    """What reading that file raises."""
    with pytest.raises(SourceError) as caught:
        read(location, path)
    return caught.value
