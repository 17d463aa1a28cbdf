"""Checkpoints: what is not a whole state of this very build is passed over, whoever wrote it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fettle.optimizer.training.checkpoints import Checkpoints
from fettle.store.store import Store
from fettle.store.uris import Mounts

KEY, OTHER = "a" * 64, "b" * 64
STATE: dict[str, Any] = {"epoch": 3, "student": {"weight": torch.ones(2)}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open("pvc://claim/store", Mounts({"claim": tmp_path}))


class Hostile:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def saved(content: Any) -> bytes:
    """As PyTorch writes it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


FOREIGN: dict[str, Callable[[Path], bytes]] = {
    "cut off": lambda _: saved({"key": KEY, "state": STATE})[:-40],
    "empty": lambda _: b"",
    "of another build": lambda _: saved({"key": OTHER, "state": STATE | {"epoch": 9}}),
    "of no build": lambda _: saved(STATE | {"epoch": 9}),
    "no state": lambda _: saved([torch.ones(2)]),
    "code in a pickle": lambda path: pickle.dumps(Hostile(path)),
    "code in a state": lambda path: saved({"key": KEY, "state": Hostile(path)}),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_state_of_this_build_is_passed_over_and_never_run(store: Store, tmp_path: Path, what: str) -> None:
    checkpoints, marker = Checkpoints(store, KEY), tmp_path / "was-run"
    checkpoints.save(2, STATE)
    store.write_bytes(f"checkpoints/{KEY}/{3:08}.pt", FOREIGN[what](marker))
    found = checkpoints.newest()
    assert found is not None and found["epoch"] == 3
    assert torch.equal(found["student"]["weight"], torch.ones(2))
    assert not marker.exists()


class Forgetful(Store):
    """A store in which a pod that should be gone has just removed a file."""

    def names(self, folder: str) -> list[str]:
        """With a name of what is not there any more."""
        return [*super().names(folder), f"{9:08}.pt"]


def test_a_checkpoint_that_another_pod_removes_meanwhile_is_passed_over(store: Store) -> None:
    Checkpoints(store, KEY).save(2, STATE)
    found = Checkpoints(Forgetful(store.root), KEY).newest()
    assert found is not None and found["epoch"] == 3


def test_what_a_killed_process_left_half_written_goes_with_the_others(store: Store) -> None:
    checkpoints = Checkpoints(store, KEY)
    for number in range(1, 5):
        checkpoints.save(number, STATE)
    half = f".{5:08}.pt.0123456789ab.partial"
    store.write_bytes(f"checkpoints/{KEY}/{half}", b"half")
    assert store.names(f"checkpoints/{KEY}") == [half, f"{3:08}.pt", f"{4:08}.pt"]
    assert checkpoints.newest() is not None
    checkpoints.clear()
    assert store.names(f"checkpoints/{KEY}") == []
