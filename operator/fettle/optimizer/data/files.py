"""The reader of a file of items, chosen by the file's extension. There is one module per format, imported when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import IO, Protocol, cast

from fettle.optimizer.data.columns import Columns, ReadRequest

READERS = {"parquet": "parquet", "jsonl": "jsonl", "ndjson": "jsonl"}  # end of a name -> module
DEFAULT = "npz"  # for any other


class FileReader(Protocol):
    """The functions of a format's module."""

    def read(self, stream: IO[bytes], wanted: ReadRequest) -> Columns:
        """The requested columns. Raises DataError."""
        ...

    def names(self, stream: IO[bytes], uri: str) -> set[str]:
        """Names of the columns, without reading them. Raises DataError."""
        ...


def read_columns(name: str, stream: IO[bytes], wanted: ReadRequest) -> Columns:
    """The requested columns of the file called `name`. Raises DataError."""
    return _reader(name).read(stream, wanted)


def column_names(name: str, stream: IO[bytes], uri: str) -> set[str]:
    """Names of the columns of the file called `name`, without reading them. Raises DataError."""
    return _reader(name).names(stream, uri)


def _reader(name: str) -> FileReader:
    end = name.rsplit(".", 1)[-1].lower()
    return cast(FileReader, import_module(f"fettle.optimizer.data.{READERS.get(end, DEFAULT)}"))
