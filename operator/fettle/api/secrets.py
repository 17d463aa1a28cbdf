"""What people may read never holds a secret: addresses lose user, password and query, known secret values become stars."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"
SHORTEST = 6  # characters of a value that is worth hiding; shorter ones would blot out ordinary words
_USER = re.compile(r"(?<=://)(?<!mlflow://)[^/\s@]+@")  # what stands there in mlflow://MODEL@ALIAS is no user
_QUERY = re.compile(r"(?P<address>\b[a-z][a-z0-9+.-]*://[^\s?#\'\"]+)\?[^\s\'\")\],;]*[^\s\'\")\],;:.]")
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE", re.IGNORECASE)


def without_secrets(text: str, environment: Mapping[str, str] | None = None, hidden: Iterable[str] = ()) -> str:
    """`text` fit for a condition, an Event or a log line.

    User, password and query of every address are taken out: a signed URL carries its signature in the query. With
    `environment` also the values of its variables whose names say that they are secret; and all of `hidden`.
    """
    clean = _QUERY.sub(lambda match: f"{match['address']}?{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))
    values = [value for name, value in (environment or {}).items() if _SECRET_NAME.search(name)]
    for value in sorted({*values, *hidden}, key=len, reverse=True):
        if len(value) >= SHORTEST:
            clean = clean.replace(value, HIDDEN)
    return clean
