"""Files of a source, wherever they lie: listed, and copied to this machine."""

from __future__ import annotations

from pathlib import Path

from fettle.api.reasons import Reason
from fettle.errors import SourceError
from fettle.store.store import explained
from fettle.store.uris import Location


def below(home: Location) -> list[str]:
    """Every file in the folder and below it, relative to it."""
    start = home.path.rstrip("/") + "/"
    return sorted(path.removeprefix(start) for path in home.filesystem.find(home.path))


def copy(home: Location, name: str, folder: Path, what: str = "the model's weights") -> None:
    """Copy the file `name` of `home`, which is part of `what`, to the same place in `folder`.

    Raises SourceError: SourceNotFound, UnsupportedModel for a link out of it.
    """
    source = home.child(name)
    if not home.filesystem.isfile(source.path):
        raise SourceError(f"{source.uri} does not exist: expected {what} there")
    local = source.local
    if local is not None and home.local is not None and not local.resolve().is_relative_to(home.local.resolve()):
        message = f"{source.uri} is a symbolic link out of the folder of {what}"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with explained(f"copying {source.uri}", reading=True):
        home.filesystem.get_file(source.path, str(target))
