"""What to say about an address where nothing is: a name is often misspelled, and the right one lies beside it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from fettle.api.text import RETRY_COMMAND
from fettle.store.uris import Location, Mounts

MOST_NAMED = 5


def not_there(location: Location, mounts: Mounts) -> str:
    """'pvc://models/modle.onnx does not exist; its folder has model.onnx, items.npz', and in a Job what to do when the file is there."""
    text = f"{location.uri} does not exist"
    if (names := _nearest(location)) is not None:
        text += f"; its folder has {', '.join(names)}" if names else "; its folder is empty"
    if location.uri.startswith("pvc://") and not mounts.allow_files:
        text += f"; correct the address, or copy the file there with `fettle push` and run `{RETRY_COMMAND}`"
    return text


def _nearest(location: Location) -> Sequence[str] | None:
    """Names in its folder, those most like its own first; None where no folder can be listed at once."""
    local = location.local
    if local is None or not local.parent.is_dir():
        return None
    names = sorted(path.name for path in local.parent.iterdir() if not path.name.startswith("."))
    like = difflib.get_close_matches(local.name, names, MOST_NAMED)
    return [*like, *(name for name in names if name not in like)][:MOST_NAMED]
