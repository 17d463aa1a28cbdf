"""Which runtimes load a form, asked once of each: asking starts a process, and some hundred tests prepare the same few models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer.prepare import probe, stage


class Remembered:
    """Asks as preparing does, and gives the same answer for the same files."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], str | None] = {}

    def refusal(self, name: RuntimeName, path: Path, signature: Signature) -> str | None:
        """See `probe.refusal`."""
        files = sorted(file for file in path.parent.iterdir() if file.is_file())
        digests = tuple((file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files)
        key = (name, path.name, digests, signature.model_dump_json())
        if key not in self._known:
            self._known[key] = probe.refusal(name, path, signature)
        return self._known[key]


REMEMBERED = Remembered()


@contextmanager
def probed_once() -> Iterator[None]:
    """Preparing that remembers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "probe", REMEMBERED)
        yield
