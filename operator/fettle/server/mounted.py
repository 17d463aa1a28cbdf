"""A mounted Secret: files that the kubelet exchanges when the Secret changes."""

from __future__ import annotations

import contextlib
from pathlib import Path

RENEW_SECONDS = 1.0  # between two looks at the files; the kubelet itself takes up to a minute or two
Seen = tuple[tuple[str, int, int, int], ...]


class MountedFolder:
    """The folder of a Secret's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: Seen = ()

    def changed(self) -> bool:
        """Whether the files are others than at the last look; the first look always finds so."""
        seen = tuple(sorted(self._files()))
        if seen == self._seen:
            return False
        self._seen = seen
        return True

    def forget(self) -> None:
        """What was found could not be used: the next look finds it changed again."""
        self._seen = ()

    def _files(self) -> Seen:
        found = []
        with contextlib.suppress(OSError):  # what vanishes while it is looked at has changed
            for path in self.folder.iterdir():
                if not path.name.startswith(".") and path.is_file():
                    state = path.stat()
                    found.append((path.name, state.st_ino, state.st_mtime_ns, state.st_size))
        return tuple(found)
