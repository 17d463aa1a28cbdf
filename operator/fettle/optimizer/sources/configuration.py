"""Configurations in JSON that lie beside a model: small files, which somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fettle.api.reasons import Reason
from fettle.errors import SourceError

MOST_BYTES = 16 << 20  # the names of a hundred thousand classes take less


def read_json(path: Path) -> Any:
    """What the file holds. Raises FileNotFoundError, and SourceError (SourceCorrupted) for what is not JSON, or is too large."""
    with path.open("rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        message = f"{path.name} is damaged: expected a configuration of at most {MOST_BYTES >> 20} MiB"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        message = f"{path.name} is damaged: it is not JSON: {error}"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED) from error
