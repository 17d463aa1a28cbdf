"""What to say about an address where nothing is: a name is often misspelled, and the right one lies beside it."""

from __future__ import annotations

import difflib
from urllib.parse import urlsplit

from fettle.api.text import RETRY_COMMAND
from fettle.store.uris import Location, Mounts

MOST_NAMED = 5


def not_there(location: Location, mounts: Mounts) -> str:
    """'pvc://models/modle.onnx does not exist; its folder has model.onnx, items.npz', and in a Job what to do when the file is there."""
    text = f"{location.uri} does not exist{_instead(location)}"
    if location.uri.startswith("pvc://") and not mounts.allow_files:
        text += f"; correct the address, or copy the file there with `fettle push` and run `{RETRY_COMMAND}`"
    return text


def _instead(location: Location) -> str:
    """What the nearest folder that exists has, the names most like the missing one first; empty where no folder can be listed at once."""
    missing = location
    while (local := missing.local) is not None and not local.parent.is_dir():
        if urlsplit(missing.uri).path.count("/") <= 1:  # nothing above it belongs to the address
            return ""
        missing = missing.parent
    if local is None:
        return ""
    names = sorted(path.name for path in local.parent.iterdir() if not path.name.startswith("."))
    like = difflib.get_close_matches(local.name, names, MOST_NAMED)
    shown = [*like, *(name for name in names if name not in like)][:MOST_NAMED]
    folder = "its folder" if missing is location else missing.parent.uri
    return f"; {folder} has {', '.join(shown)}" if shown else f"; {folder} is empty"
