"""Files of a place that tells at once which there are. Its folders are those that the files lie in."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from fettle.store.places import Missing, Place
from fettle.store.remote import RemoteFiles, absent

_NO_TIME = datetime.fromtimestamp(0, UTC)


class ListedFiles(RemoteFiles):
    """The files that `names` lists; `title` is what a person knows the place as."""

    def __init__(self, place: Place, title: str, missing: Missing) -> None:
        super().__init__(place, missing)
        self._title = title

    def names(self) -> Collection[str]:
        """Of all files, each relative to the place and inside it. Raises what `missing` makes."""
        raise NotImplementedError

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """As that of the other remote files."""
        key = path.strip("/")
        if key in self.names():
            return super().info(key)
        if not key or any(name.startswith(f"{key}/") for name in self.names()):
            return {"name": key, "size": 0, "type": "directory"}
        raise absent(f"{self._title}/{key}")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The entries of a folder, without sizes; a file is its own only entry."""
        key = path.strip("/")
        below = f"{key}/" if key else ""
        types = {
            below + child: "directory" if rest else "file"
            for child, rest, _ in (name.removeprefix(below).partition("/") for name in self.find(key))
        }
        entries = [{"name": name, "size": None, "type": type} for name, type in types.items()]
        return self._listing(entries or [self.info(key)], detail)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """The name of every file below `path`."""
        key = path.strip("/")
        return sorted(name for name in self.names() if not key or name.startswith(f"{key}/"))

    def isdir(self, path: str) -> bool:
        """Whether it is there and is a folder."""
        return self._type(path) == "directory"

    def _head(self, key: str) -> dict[str, Any]:
        if key not in self.names():
            raise absent(f"{self._title}/{key}")
        return super()._head(key)


class WholeFiles(ListedFiles):
    """Listed files whose sizes the list tells, and their times nobody. Each is fetched whole before it is read."""

    def size_of(self, key: str) -> int:
        """Bytes of a file that is listed."""
        raise NotImplementedError

    def _head(self, key: str) -> dict[str, Any]:
        if key not in self.names():
            raise absent(f"{self._title}/{key}")
        return {"path": key, "size": self.size_of(key), "e_tag": None, "last_modified": _NO_TIME}

    def _has_ranges(self, key: str) -> bool:
        return False
