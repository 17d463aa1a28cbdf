"""From stored items to what a model takes, and from what it gives back to answers, one per item.

Stored arrays have items along their first axis. A model takes them along its proved batch axis, or one at a time.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.api.task import StoredData
from fettle.errors import DataError, StoreError
from fettle.store.store import Store, restored

Array = np.ndarray[Any, Any]
Answer = dict[str, Array]  # the outputs for one item, without their batch axis

LARGEST_BATCH = 32
FEED_BYTES = 64 << 20  # of one feed's inputs: what a batch may hold in memory at once


@dataclass(frozen=True)
class Items:
    """Items to run: an array per input as it lies on disk, items along the first axis. Only what a feed takes is read."""

    arrays: Mapping[str, Array]
    signature: Signature

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def first(self, most: int | None) -> Items:
        """The first `most` items; all where it is None."""
        return Items({name: array[:most] for name, array in self.arrays.items()}, self.signature)

    def feed(self, indices: Sequence[int]) -> Answer:
        """What the model takes for these items in one run. Raises DataError where an item's rank fits no input."""
        return {
            tensor.name: _stacked(tensor, restored(np.asarray(self.arrays[tensor.name][np.asarray(indices)])))
            for tensor in self.signature.inputs
        }

    def batches(self, size: int, first: int = 0, last: int | None = None) -> Iterator[list[int]]:
        """Indices of the items `first` to `last`, `size` at a time; the last batch may be shorter."""
        end = len(self) if last is None else min(last, len(self))
        for start in range(first, end, size):
            yield list(range(start, min(start + size, end)))


def unpack(store: Store, data: StoredData, folder: Path) -> dict[str, Path]:
    """Lay stored items out as one .npy file per array, digest checked, without holding them in memory.

    Raises StoreError (ArtifactTampered).
    """
    folder.mkdir(parents=True, exist_ok=True)
    packed = folder / "items.npz"
    with store.open_file(f"blobs/{data.sha256}") as source, packed.open("wb") as target:
        shutil.copyfileobj(source, target)
    with packed.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != data.sha256:
        message = f"{store.uri}/blobs/{data.sha256}: found content with sha256 {found}; the store was changed behind Fettle's back"
        raise StoreError(message, reason=Reason.ARTIFACT_TAMPERED)
    files: dict[str, Path] = {}
    with zipfile.ZipFile(packed) as archive:
        for number, member in enumerate(archive.infolist()):
            path = folder / f"{number}.npy"  # an input's name may hold anything, a slash too
            with archive.open(member) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
            files[member.filename.removesuffix(".npy")] = path
    packed.unlink()
    return files


def opened(files: Mapping[str, Path], signature: Signature) -> Items:
    """The items of `unpack` for a model, mapped, not read. Raises DataError."""
    return of({name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in files.items()}, signature)


def of(arrays: Mapping[str, Array], signature: Signature) -> Items:
    """The items for a model. Raises DataError where an input has no array, or there is no item."""
    absent = [tensor.name for tensor in signature.inputs if tensor.name not in arrays]
    if absent:
        raise DataError(f"the items have no array for the inputs {absent}; found {sorted(arrays)}")
    wanted = {tensor.name: arrays[tensor.name] for tensor in signature.inputs}
    if not wanted or min(len(array) for array in wanted.values()) < 1:
        raise DataError("there is not one item to judge by", reason=Reason.EVALUATION_DATA_MISSING)
    return Items(wanted, signature)


def _stacked(tensor: Tensor, chosen: Array) -> Array:
    """Items as this input takes them: an item lacks the batch axis, or is a whole input where there is none (data.md)."""
    rank = len(tensor.shape)
    if tensor.batch_axis is not None and chosen.ndim == rank:
        return np.moveaxis(chosen, 0, tensor.batch_axis)
    if tensor.batch_axis is None and len(chosen) == 1 and chosen.ndim == rank + 1:
        return np.asarray(chosen[0])
    raise DataError(
        f"input {tensor.name} takes {list(tensor.shape)}; {len(chosen)} items of shape {list(chosen.shape[1:])} do not fit"
    )


def split(signature: Signature, outputs: Mapping[str, Array], count: int) -> list[Answer] | None:
    """The answers to `count` items from one run's outputs. None where an output's batch axis does not have that size."""
    stacked: dict[str, Array] = {}
    for tensor in signature.outputs:
        array = outputs[tensor.name]
        if tensor.batch_axis is None:
            if count != 1:
                return None
            stacked[tensor.name] = array[np.newaxis]
            continue
        if array.ndim <= tensor.batch_axis or array.shape[tensor.batch_axis] < count:
            return None
        stacked[tensor.name] = np.moveaxis(array, tensor.batch_axis, 0)
    # With `...` one number or one text is an array too, of no dimensions: an index alone would take it out of its array.
    return [{name: array[index, ...] for name, array in stacked.items()} for index in range(count)]


def batch_size(items: Items, fixed: int | None, alone: bool) -> int:
    """Items per run while judging. `fixed`: the model's static batch; `alone`: an answer may depend on its batch mates."""
    if not items.signature.batchable:
        return 1
    if fixed is not None:
        return fixed
    if alone:
        return 1
    each = sum(max(array[0].nbytes, 1) for array in items.arrays.values())
    return int(min(LARGEST_BATCH, max(1, FEED_BYTES // each)))


def padded(indices: Sequence[int], size: int) -> list[int]:
    """`indices`, its last repeated up to `size`: a static batch takes no fewer."""
    return [*indices, *[indices[-1]] * (size - len(indices))]
