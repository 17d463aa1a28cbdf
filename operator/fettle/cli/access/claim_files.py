"""The files of a claim as a filesystem, read through a pod that runs `pods/send.py`."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from fettle.api.reasons import Reason
from fettle.cli.access.claim_pod import Wire
from fettle.errors import ClusterError

BLOCK = 4 << 20  # of a question: what arrives is held in memory until it is whole


class ClaimFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Read-only. Paths are relative to the claim. Raises ClusterError with the pod's message, and FileNotFoundError."""

    protocol = "pvc"
    cachable = False  # an instance is one connection

    def __init__(self, wire: Wire, arrived: Callable[[int], None] = lambda number: None) -> None:
        """`arrived` is called with the number of bytes of each block."""
        super().__init__()
        self._wire, self._arrived = wire, arrived

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send one request to `pods/send.py`, and return its answer."""
        self._wire.send((json.dumps(question) + "\n").encode())
        line = self._wire.line()
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:
            told = {"error": line or "the pod closed the connection"}
        if "error" in told:
            message = f"the pod could not read the claim: {told['error']}"
            raise ClusterError(message, reason=Reason.STORE_UNREACHABLE)
        return told

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size in bytes, and type (file or directory)."""
        told = self.ask(info=path)
        if "missing" in told:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return {"name": path.strip("/"), **told}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The entries of a folder; for a file, the file itself."""
        itself = self.info(path)
        listed = [itself]
        if itself["type"] == "directory":
            entries = self.ask(list=path)["entries"]
            listed = [{"name": f"{path.strip('/')}/{name}".lstrip("/"), **entry} for name, entry in entries.items()]
        return listed if detail else [entry["name"] for entry in listed]

    def checksum(self, path: str) -> str:
        """sha256 of a file, computed in the pod."""
        return str(self.ask(digest=path)["sha256"])

    def fetch(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a file."""
        count = self.ask(read=path, start=start, end=end)["bytes"]
        data = self._wire.read(count)
        if len(data) != count:
            raise ClusterError("the pod closed the connection", reason=Reason.STORE_UNREACHABLE)
        self._arrived(count)
        return data

    def _open(self, path: str, mode: str = "rb", **_: Any) -> AbstractBufferedFile:
        return ClaimFile(self, path, mode, block_size=BLOCK, cache_type="none", size=self.info(path)["size"])


class ClaimFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file of a claim, read in blocks."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        fetched: bytes = b"".join(self.fs.fetch(self.path, at, min(at + BLOCK, end)) for at in range(start, end, BLOCK))
        return fetched
