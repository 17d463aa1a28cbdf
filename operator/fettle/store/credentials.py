"""A Secret as a folder with a file for each key. Its values go to the client of an address, and nowhere else: not into the environment, a
message, a log or a report."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fettle.api.secrets import without_secrets
from fettle.api.uris import SECRETS_VARIABLE
from fettle.errors import UsageError

MOST_BYTES = 1 << 20  # of a value; Kubernetes holds no more in a whole Secret
DOCKER_CONFIG = ".dockerconfigjson"  # the key of a Secret of type kubernetes.io/dockerconfigjson
# What may be read in a message: it says where somebody connects to, not as whom.
_PUBLIC = re.compile(
    r"REGION|ENDPOINT|BUCKET|PROXY|CA_BUNDLE|\.crt$|ACCOUNT_NAME|TENANT|SKIP_SIGNATURE|TRACKING_URI", re.IGNORECASE
)


@dataclass(frozen=True, repr=False)
class Credentials:
    """The keys and values of a Secret, and the folder that they were read from. It has no repr: a traceback may show one."""

    folder: Path
    values: Mapping[str, str]

    @property
    def name(self) -> str:
        """Of the Secret."""
        return self.folder.name

    def __repr__(self) -> str:
        return f"Credentials({self.name})"

    @classmethod
    def read(cls, folder: Path) -> Credentials:
        """The Secret in `folder`; empty where there is none. Raises UsageError for a value that is no text."""
        values: dict[str, str] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (path.name.startswith(".") and path.name != DOCKER_CONFIG) or not path.is_file():
                continue  # the kubelet keeps its own links beside the keys
            try:
                with path.open("rb") as stream:
                    values[path.name] = stream.read(MOST_BYTES).decode().strip()
            except (OSError, UnicodeDecodeError) as error:
                problem = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
                raise UsageError(f"the key {path.name} of Secret {folder.name} cannot be read: {problem}") from None
        return cls(folder, values)

    def hidden(self) -> Iterator[str]:
        """What must never be read by a person: the values, and the forms in which they are sent."""
        for key, value in self.values.items():
            if not _PUBLIC.search(key):
                yield value
                yield from _inside(value)
        if "password" in self.values:
            pair = f"{self.values.get('username', '')}:{self.values['password']}"
            yield base64.b64encode(pair.encode()).decode()


def _inside(value: str) -> Iterator[str]:
    """The texts of a JSON document, as a service account's key is one, and what `docker login` writes; and the lines of any other."""
    try:
        document = json.loads(value) if value.startswith("{") else None
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        yield from (text for key, text in document.items() if isinstance(text, str) and "private" in key)
        auths = document.get("auths")
        for entry in auths.values() if isinstance(auths, dict) else ():
            yield from _login(entry)
    else:
        yield from (line for line in value.splitlines() if line != value)


def _login(entry: Any) -> Iterator[str]:
    known = {key: text for key, text in entry.items() if isinstance(text, str)} if isinstance(entry, dict) else {}
    yield from (known[key] for key in ("auth", "password", "identitytoken", "registrytoken") if key in known)
    with suppress(ValueError):
        yield base64.b64decode(known.get("auth", "")).decode().partition(":")[2]


def decode_secrets(text: str) -> dict[str, Path | None]:
    """Address -> folder of its Secret, as `FETTLE_SECRETS` says. Raises UsageError."""
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UsageError(f"{SECRETS_VARIABLE} must be JSON {{address: folder}}: {error}") from error
    if not isinstance(found, dict) or not all(value is None or isinstance(value, str) for value in found.values()):
        raise UsageError(f"{SECRETS_VARIABLE} must be JSON {{address: folder}}, found {text[:200]}")
    return {address: Path(folder) if folder is not None else None for address, folder in found.items()}


def hidden_values(environment: Mapping[str, str]) -> tuple[str, ...]:
    """What no text that leaves this process may contain: all that its Secrets hold."""
    try:
        folders = {folder for folder in decode_secrets(environment.get(SECRETS_VARIABLE, "")).values() if folder}
        return tuple(value for folder in sorted(folders) for value in Credentials.read(folder).hidden())
    except UsageError:  # then no address is opened either: what is wrong is told there
        return ()


class CleanFormatter(logging.Formatter):
    """Log lines, tracebacks included, without the secrets of this process."""

    def __init__(self, format: str | None = None) -> None:
        super().__init__(format)
        self._hidden = hidden_values(os.environ)

    def format(self, record: logging.LogRecord) -> str:
        """The line. Every value of a Secret in it is stars."""
        return self.clean(super().format(record))

    def clean(self, line: str) -> str:
        """`line` with stars in place of every value of a Secret."""
        return without_secrets(line, os.environ, self._hidden)
