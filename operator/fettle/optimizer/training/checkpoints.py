"""States of a training in the store, so that one that is killed goes on from the last of them."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fettle.errors import AbsentError, StoreError
from fettle.store.store import Store

KEPT = 2  # should the newest be damaged, the one before it is there
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoints:
    """Those of the build with the key `key`, which is in each of them. Each is whole or not there: it is written under another name and renamed."""

    store: Store
    key: str

    def save(self, number: int, state: dict[str, Any]) -> None:
        """Keep `state` (tensors and plain values) as the newest, and of the others as many as are kept. Raises StoreError."""
        buffer = io.BytesIO()
        torch.save({"key": self.key, "state": state}, buffer)
        self.store.write_bytes(f"{self._folder}/{number:08}.pt", buffer.getvalue())
        for name in self._names()[:-KEPT]:
            self.store.remove(f"{self._folder}/{name}")

    def newest(self) -> dict[str, Any] | None:
        """The newest state of this build that can be read; None where there is none. Raises StoreError where the store cannot be read."""
        for name in reversed(self._names()):
            try:
                state = self._read(name)
            except AbsentError:
                continue  # removed by a pod of an earlier attempt, which its lost node still runs
            except StoreError:
                raise
            except Exception:  # the library raises what it likes for a damaged file
                log.warning(
                    "checkpoint %s is damaged, or of another training; using the one before it", name, exc_info=True
                )
                continue
            log.info("resuming from checkpoint %s", name)
            return state
        return None

    def clear(self) -> None:
        """Remove them, and what a process that was killed left half written: what was trained is in the store. Raises StoreError."""
        for name in self._all():
            self.store.remove(f"{self._folder}/{name}")

    @property
    def _folder(self) -> str:
        return f"checkpoints/{self.key}"

    def _read(self, name: str) -> dict[str, Any]:
        content = self.store.read_bytes(f"{self._folder}/{name}")
        kept = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if kept["key"] != self.key:
            raise ValueError(f"it is of the build {kept['key']}")
        state: dict[str, Any] = kept["state"]
        return state

    def _names(self) -> Sequence[str]:
        return [name for name in self._all() if name.endswith(".pt") and name[0] != "."]

    def _all(self) -> Sequence[str]:
        try:
            return self.store.names(self._folder)
        except StoreError as error:
            if error.retryable:
                raise
            return []
