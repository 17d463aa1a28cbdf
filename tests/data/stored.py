"""What lies in a store, read as a test wants to see it."""

from __future__ import annotations

from fettle.store.arrays import Array, read_npz
from fettle.store.store import Store


def arrays(store: Store, sha256: str) -> dict[str, Array]:
    """The arrays of an .npz blob."""
    with store.open_file(f"blobs/{sha256}") as stream:
        return read_npz(stream)
