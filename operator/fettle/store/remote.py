"""Files in an object store or on a web server, through obstore: one client for S3, Google Cloud Storage, Azure and HTTP.

It tries again by itself, and goes on where a connection broke.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from fettle.api.reasons import Reason
from fettle.errors import FettleError
from fettle.store.failures import Failure, error_of
from fettle.store.places import Missing, Place

PART = 16 << 20  # bytes of one request of several at once
AT_ONCE = 4
WHOLE = 64 << 20  # bytes: a file up to this size is fetched before it is read, a larger one is read in blocks
BLOCK = 8 << 20
NO_PATH = "expected a path in UTF-8 without control characters, and without empty parts, '.' and '..'"


class RemoteFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The files of a place. Paths are relative to it. Raises FileNotFoundError, and what `missing` makes for all else."""

    protocol = "remote"
    cachable = False  # an instance holds credentials

    def __init__(self, place: Place, missing: Missing) -> None:
        super().__init__()
        self._place, self._missing = place, missing
        # Name -> type: who lists a folder need not ask for each of its files again.
        self._listed: dict[str, str] = {}

    # -------------------------------------------------------------------------------------------------------------- asking

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size in bytes, type (file or directory), and the time of the last change."""
        key = path.strip("/")
        if key:
            try:
                return _entry(self._head(key))
            except FileNotFoundError:
                if not self._place.lists:
                    raise
        if self._place.lists and (self._first(key) is not None or not key):
            return {"name": key, "size": 0, "type": "directory"}
        raise absent(f"{self._place.root}/{key}")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The entries of a folder; a file is its own only entry."""
        import obstore

        key = path.strip("/")
        entries: list[dict[str, Any]] = []
        if self._place.lists:
            with self._translated(key):
                found = obstore.list_with_delimiter(self._place.client, prefix=key or None)
            entries += [{"name": name, "size": 0, "type": "directory"} for name in found["common_prefixes"]]
            entries += [_entry(meta) for meta in found["objects"] if meta["path"] != key]
        return self._listing(entries or [self.info(key)], detail)

    def _listing(self, entries: list[dict[str, Any]], detail: bool) -> list[Any]:
        """`entries`, or their names. What is told of them is not asked for again."""
        self._listed |= {entry["name"]: entry["type"] for entry in entries}
        return entries if detail else [entry["name"] for entry in entries]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """Every file below `path`: by name where `detail` is asked for. None on a web server, which cannot say."""
        import obstore

        key, found = path.strip("/"), list[dict[str, Any]]()
        if self._place.lists:
            with self._translated(key):
                listed = obstore.list(self._place.client, prefix=key or None)
                found = _files([_entry(meta) for batch in listed for meta in batch], key)
        if detail:
            return {entry["name"]: entry for entry in found}
        return [entry["name"] for entry in found if entry["size"] or self._is_there(entry["name"])]

    def _is_there(self, key: str) -> bool:
        """Whether there is a file of this name: an empty one that is listed may mark a folder with nothing in it."""
        try:
            self._head(key)
        except FileNotFoundError:
            return False
        return True

    def exists(self, path: str, **_: Any) -> bool:
        """As fsspec's own, which takes a refusal for absence; here it is raised."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: str) -> bool:
        """Whether it is there and is a file."""
        return self._type(path) == "file"

    def isdir(self, path: str) -> bool:
        """Whether it is there and is a folder. A web server has none."""
        return self._place.lists and self._type(path) == "directory"

    def _type(self, path: str) -> str | None:
        listed = self._listed.get(path.strip("/"))
        if listed is not None:
            return listed
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return None

    def _first(self, key: str) -> Any:
        import obstore

        with self._translated(key):
            pages = obstore.list(self._place.client, prefix=key or None, chunk_size=1)
            return next((page[0] for page in pages if page), None)

    def _head(self, key: str) -> dict[str, Any]:
        import obstore

        with self._translated(key):
            try:
                return dict(obstore.head(self._place.client, key))
            except (FileNotFoundError, obstore.exceptions.BaseError) as error:
                if not re.search(r"status code: 4(?!04)\d\d", str(error)):
                    raise
                # The answer to HEAD has no body that says why; and some servers take none.
                return dict(obstore.get(self._place.client, key, options={"range": (0, 1)}).meta)

    # ------------------------------------------------------------------------------------------------------------- reading

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        """Copy a file to this machine, in parallel ranges; each is asked for again until it is whole."""
        key = rpath.strip("/")
        with open(lpath, "w+b") as target:
            self._fetch(key, self._head(key), target)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            raise NotImplementedError("remote files are written whole, with `write`")
        key = path.strip("/")
        meta = self._head(key)
        if meta["size"] > WHOLE and self._has_ranges(key):
            return RemoteFile(self, key, mode, block_size=BLOCK, cache_type="readahead", size=meta["size"], meta=meta)
        copied = tempfile.TemporaryFile(prefix="fettle-")  # noqa: SIM115 - the caller's to close
        self._fetch(key, meta, copied)
        copied.seek(0)
        return copied

    def _has_ranges(self, key: str) -> bool:
        import obstore

        try:
            self.read_range(key, {}, 0, 1)
        except obstore.exceptions.NotSupportedError:
            return False
        return True

    def _fetch(self, key: str, meta: dict[str, Any], target: IO[bytes]) -> None:
        import obstore

        size = meta["size"]
        target.truncate(size)

        def fetch(start: int) -> None:
            data, at = memoryview(self.read_range(key, meta, start, min(start + PART, size))), start
            while data:
                written = os.pwrite(target.fileno(), data, at)
                data, at = data[written:], at + written

        try:
            at_once(fetch, range(0, size, PART))
        except obstore.exceptions.NotSupportedError:
            self._fetch_whole(key, target, size)

    def _fetch_whole(self, key: str, target: IO[bytes], most: int | None = None) -> None:
        """For a server without ranges: nothing can be continued there, so that a broken connection begins again. `most`: bytes that it may send."""
        import obstore

        target.seek(0)
        target.truncate()
        with self._translated(key):
            for chunk in obstore.get(self._place.client, key).stream(min_chunk_size=1 << 20):
                target.write(chunk)
                if most is not None and target.tell() > most:
                    raise self._missing(f"{self._place.root}/{key}: the server sends more than {most} bytes")
        target.flush()

    def read_range(self, key: str, meta: dict[str, Any], start: int, end: int) -> bytes:
        """Bytes `start` to `end` of the file as it was when `meta` was read. Raises obstore's NotSupportedError where there are no ranges."""
        import obstore

        options: dict[str, Any] = {"range": (start, end)}
        tag = meta.get("e_tag")
        if tag and not tag.startswith("W/"):
            options["if_match"] = tag
        with self._translated(key):
            return bytes(obstore.get(self._place.client, key, options=options).bytes())

    # ------------------------------------------------------------------------------------------------------------- writing

    def write(self, path: str, source: IO[bytes]) -> None:
        """Write a file whole, from the start of `source`: nobody ever sees a part of it, and of two writers the last one stays."""
        import obstore

        key, size = path.strip("/"), source.seek(0, os.SEEK_END)
        source.seek(0)
        options = {"use_multipart": size > WHOLE, "chunk_size": PART, "max_concurrency": AT_ONCE}
        with self._translated(key):
            obstore.put(self._place.client, key, source, **options)

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        import obstore

        key = path.strip("/")
        with self._translated(key):
            obstore.delete(self._place.client, key)

    # -------------------------------------------------------------------------------------------------------------- errors

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """The errors of the client, translated into ours. Its own messages are left out: they may show what was sent."""
        from obstore import exceptions

        try:
            yield
        except exceptions.NotSupportedError:
            raise
        except (FileNotFoundError, exceptions.BaseError) as error:
            failure = Failure.of(str(error), isinstance(error, FileNotFoundError))
        except ValueError:  # of obstore, about a path
            shown = f"{self._place.root}/{key}".encode(errors="backslashreplace").decode()
            raise self._missing(f"{shown}: {NO_PATH}", reason=Reason.INVALID_SPEC) from None
        else:
            return
        where = f"{self._place.root}/{key}"
        if failure.absent:
            raise absent(where) from None
        raise self._error(where, failure) from None

    def _error(self, where: str, failure: Failure) -> FettleError:
        return error_of(self._place, where, failure, self._missing)


def at_once(fetch: Callable[[int], None], starts: Iterable[int]) -> None:
    """Call `fetch` with each of `starts`, AT_ONCE of them at a time: those of a file that announces terabytes are not held in memory.

    Raises what a call raised, and makes no more calls then.
    """
    running: set[Future[None]] = set()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in starts:
            if len(running) == AT_ONCE:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for part in done:
                    part.result()
            running.add(pool.submit(fetch, start))
        for part in running:
            part.result()


def absent(where: str) -> FileNotFoundError:
    """There is no such file, as the operating system says it."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)


def _entry(meta: Any) -> dict[str, Any]:
    return {"name": meta["path"], "size": meta["size"], "type": "file", "mtime": meta["last_modified"].timestamp()}


def _files(entries: list[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    """Without what marks a folder with something in it: consoles write an empty object for each, whose name ends with /, which obstore leaves out."""
    empty = {entry["name"] for entry in entries if not entry["size"]}
    folders = {folder}
    if empty:
        folders |= {str(above) for entry in entries for above in PurePosixPath(entry["name"]).parents}
    return [entry for entry in entries if entry["name"] not in empty & folders]


class RemoteFile(AbstractBufferedFile):  # type: ignore[misc]
    """A large file, read in blocks."""

    def __init__(self, fs: RemoteFiles, path: str, mode: str, *, meta: dict[str, Any], **options: Any) -> None:
        super().__init__(fs, path, mode, **options)
        self._meta = meta

    def _fetch_range(self, start: int, end: int) -> bytes:
        read: bytes = self.fs.read_range(self.path, self._meta, start, end)
        return read
