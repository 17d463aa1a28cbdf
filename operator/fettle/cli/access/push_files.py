"""What `fettle push` sends, and the protocol with the receiver, over any pair of streams."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fettle.api.reasons import Reason
from fettle.cli.access.claim_pod import Wire
from fettle.errors import ClusterError, UsageError
from fettle.store.files import file_digest

CHUNK = 256 << 10  # of a websocket message


@dataclass(frozen=True)
class Entry:
    """A file, and where it goes inside the claim or the bucket."""

    source: Path
    path: str
    bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """The entry as the receiver reads it."""
        return {"path": self.path, "bytes": self.bytes, "sha256": self.sha256}


def entries(source: Path, path: str) -> tuple[Entry, ...]:
    """A file becomes PATH (or goes inside it, if PATH ends with '/' or is empty); a folder's files go below PATH. Raises UsageError."""
    if source.is_file():
        inside = not path or path.endswith("/")
        return (_entry(source, f"{path.rstrip('/')}/{source.name}" if inside else path),)
    if not source.is_dir():
        raise UsageError(f"{source}: no such file or folder")
    files = sorted(file for file in source.rglob("*") if file.is_file())
    if not files:
        raise UsageError(f"the folder {source} contains no files")
    return tuple(_entry(file, f"{path.rstrip('/')}/{file.relative_to(source).as_posix()}") for file in files)


def _entry(source: Path, path: str) -> Entry:
    try:
        sha256, size = file_digest(source)
        return Entry(source, path.lstrip("/"), size, sha256)
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error}") from error


def transfer(files: tuple[Entry, ...], wire: Wire, sent: Callable[[int], None]) -> int:
    """Send the files that the receiver does not have, and return their number. `sent` is called with bytes that were sent or already there.

    Raises ClusterError with the receiver's message.
    """
    wire.send((json.dumps([entry.to_json() for entry in files]) + "\n").encode())
    want = _answer(wire, "want")
    missing = [files[index] for index in want]
    sent(sum(entry.bytes for entry in files) - sum(entry.bytes for entry in missing))
    for entry in missing:
        with entry.source.open("rb") as stream:
            while data := stream.read(CHUNK):
                wire.send(data)
                sent(len(data))
        _answer(wire, "done")
    _answer(wire, "ok")
    return len(missing)


def _answer(wire: Wire, key: str) -> Any:
    line = wire.line()
    try:
        told = json.loads(line)
    except ValueError:
        told = {"error": line or "the pod closed the connection"}
    if key not in told:
        # What the program itself says is final; that it was not run, or was cut off, is not.
        text = f"the pod could not write the files: {told.get('error', told.get('message', told))}"
        raise ClusterError(text, reason=Reason.STORE_UNREACHABLE, retryable=not line or "error" not in told)
    return told[key]
