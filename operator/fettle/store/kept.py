"""What a library for GPUs found out and can use again, kept from one Job to the next: `<store>/gpu/<key>`.

A file begins with a line that says for what it was made, and the digest of the rest. What is damaged, or was made for something else, is worth
nothing, and what it would have saved is done again: nothing here is an error, and a line in the log tells of it.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from fettle.api.base import ApiModel, canonical_digest
from fettle.api.text import quoted
from fettle.errors import StoreError
from fettle.store.files import whole_file
from fettle.store.store import Store

FOLDER = "gpu"
MOST_BYTES = 256 << 20  # of a file: what every Job has room for
log = logging.getLogger(__name__)


class MadeFor(ApiModel):
    """The library and its release, the architecture of the GPU, and the CUDA version of its driver."""

    library: str
    version: str
    architecture: str
    driver: str

    def key(self, *words: str) -> str:
        """Where the store keeps what was made for this, and for these words."""
        return canonical_digest([self.to_json(), *words])


class _Heading(ApiModel):
    made_for: MadeFor
    sha256: str


def read(path: Path, made_for: MadeFor) -> bytes:
    """What is kept in the file at `path`; nothing where there is none that is whole and was made for this."""
    try:
        first, _, content = path.read_bytes().partition(b"\n")
        heading = _Heading.model_validate_json(first)
    except FileNotFoundError:
        return b""
    except (OSError, ValueError) as error:
        log.info("%s is damaged, and is made again: %s", path, quoted(error))
        return b""
    if heading.made_for != made_for:
        log.info("%s was made for %s, not for %s, and is made again", path, quoted(heading.made_for), made_for)
    elif heading.sha256 != hashlib.sha256(content).hexdigest():
        log.info("%s is damaged, and is made again", path)
    else:
        return content
    return b""


def write(path: Path, made_for: MadeFor, content: bytes) -> None:
    """Keep `content` in the file at `path`, whole or not at all."""
    heading = _Heading(made_for=made_for, sha256=hashlib.sha256(content).hexdigest())
    try:
        with whole_file(path) as partial:
            partial.write_bytes(heading.canonical() + b"\n" + content)
    except OSError as error:  # a folder that may only be read, or a full disk
        log.info("%s is not kept: %s", path, error)


def lend(store: Store, key: str, path: Path) -> None:
    """Copy what the store keeps under `key` to `path`, if there is anything."""
    place = f"{FOLDER}/{key}"
    try:
        if (content := _stored(store, place)) is not None:
            with whole_file(path) as partial:
                partial.write_bytes(content)
    except (OSError, StoreError) as error:
        log.info("what %s keeps for this GPU cannot be read: %s", store.uri, error)


def take_back(store: Store, key: str, path: Path) -> None:
    """Keep the file at `path` in the store, if there is one and the store does not have the same."""
    try:
        if not path.exists() or not 0 < path.stat().st_size <= MOST_BYTES:
            return
        content, place = path.read_bytes(), f"{FOLDER}/{key}"
        if _stored(store, place) != content:
            store.write_bytes(place, content)
    except (OSError, StoreError) as error:
        log.info("what this GPU's library found out is not kept in %s: %s", store.uri, error)


def _stored(store: Store, place: str) -> bytes | None:
    """What is there, if it is of a size that a library writes. Raises StoreError, OSError."""
    if not store.exists(place):
        return None
    with store.open_file(place) as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) <= MOST_BYTES:
        return content
    log.info("%s/%s is larger than %d bytes, and is made again", store.uri, place, MOST_BYTES)
    return None
