"""From stored items to a model's inputs, and from its outputs to answers, one per item.

Stored arrays have items along their first axis. A model takes them along its proved batch axis, or one at a time.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fettle.api.reasons import Reason
from fettle.api.signature import BY_V2, Signature, Tensor
from fettle.api.text import counted
from fettle.errors import DataError, RuntimeFailure
from fettle.runtimes.base import Array
from fettle.store.arrays import Texts, mapped, restored, unpack_npz

if TYPE_CHECKING:  # a worker unpacks nothing: without them it starts sooner
    from fettle.api.task import StoredData
    from fettle.store.store import Store

Answer = dict[str, Array]  # the outputs for one item, without their batch axis

LARGEST_BATCH = 32
ENLARGED = 1000.0  # times: an item beside which ranges that are taken over a whole run round the others to nothing
FEED_BYTES = 64 << 20  # of one feed's inputs and answers: what a batch may hold in memory at once


@dataclass(frozen=True)
class MappedItems:
    """Items to run: one memory-mapped array per input, items along the first axis. Only the parts that a feed uses are read."""

    arrays: Mapping[str, Array | Texts]
    signature: Signature

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def first(self, most: int | None) -> MappedItems:
        """The first `most` items; all of them if it is None."""
        return MappedItems({name: array[:most] for name, array in self.arrays.items()}, self.signature)

    def feed(self, indices: Sequence[int]) -> Answer:
        """The model's inputs for these items in one run. Raises DataError if an item's rank does not fit the input."""
        return {
            tensor.name: _stacked(tensor, restored(_in_memory(self.arrays[tensor.name][np.asarray(indices)])))
            for tensor in self.signature.inputs
        }

    def batches(self, size: int, first: int = 0, last: int | None = None) -> Iterator[list[int]]:
        """Indices of the items `first` to `last`, `size` at a time; the last batch may be shorter."""
        end = len(self) if last is None else min(last, len(self))
        for start in range(first, end, size):
            yield list(range(start, min(start + size, end)))


def _in_memory(chosen: Array | Texts) -> Array | Texts:
    return chosen if isinstance(chosen, Texts) else np.asarray(chosen)


def unpack(store: Store, data: StoredData, folder: Path) -> dict[str, Path]:
    """Write stored items to one file per array (`store.arrays.mapped` opens it), digests checked, without holding them in memory.

    Raises StoreError (ArtifactTampered).
    """
    folder.mkdir(parents=True, exist_ok=True)
    packed = folder / "items.npz"
    store.fetch_blob(data.sha256, packed, packed.name)
    with zipfile.ZipFile(packed) as archive:
        files = unpack_npz(archive, folder)
    packed.unlink()
    return files


def opened(files: Mapping[str, Path], signature: Signature) -> MappedItems:
    """The items of `unpack` for a model, mapped, not read. Raises DataError."""
    return of({name: mapped(path) for name, path in files.items()}, signature)


def of(arrays: Mapping[str, Array | Texts], signature: Signature) -> MappedItems:
    """The items for a model. Raises DataError if an input has no array, or if there are no items."""
    absent = [tensor.name for tensor in signature.inputs if tensor.name not in arrays]
    if absent:
        raise DataError(f"the items have no array for the inputs {absent}; found {sorted(arrays)}")
    inputs = {tensor.name: arrays[tensor.name] for tensor in signature.inputs}
    if not inputs or min(len(array) for array in inputs.values()) < 1:
        raise DataError("there are no evaluation items", reason=Reason.EVALUATION_DATA_MISSING)
    return MappedItems(inputs, signature)


def digests(items: MappedItems) -> Iterator[str]:
    """A digest of each item's content: equal items have the same digest in every set."""
    names = sorted(items.arrays)
    for place in range(len(items)):
        digest = hashlib.sha256()
        for name in names:
            stored = items.arrays[name][place : place + 1]
            if isinstance(stored, Texts):
                digest.update(repr(stored.decoded().tolist()).encode())
            else:
                digest.update(np.ascontiguousarray(stored).tobytes())
        yield digest.hexdigest()


def _stacked(tensor: Tensor, chosen: Array) -> Array:
    """Items stacked for this input: an item lacks the batch axis, or is a whole input if there is none (docs/design/data.md)."""
    rank = len(tensor.shape)
    if tensor.batch_axis is not None and chosen.ndim == rank:
        return np.moveaxis(chosen, 0, tensor.batch_axis)
    if tensor.batch_axis is None and len(chosen) == 1 and chosen.ndim == rank + 1:
        return np.asarray(chosen[0])
    raise DataError(
        f"input {tensor.name} takes {list(tensor.shape)}; {len(chosen)} items of shape {list(chosen.shape[1:])} do not fit"
    )


def enlarged(signature: Signature, feed: Answer, places: Sequence[int]) -> Answer:
    """The same feed with the floating-point inputs of the items at `places` multiplied by 1000, within the range of their data type."""
    enlarged_feed = dict(feed)
    for tensor in signature.inputs:
        array = feed[tensor.name]
        if tensor.batch_axis is None or array.dtype.kind != "f":
            continue
        large = np.moveaxis(array.copy(), tensor.batch_axis, 0)
        limit = np.finfo(array.dtype).max
        with np.errstate(over="ignore"):
            large[list(places)] = np.clip(large[list(places)] * array.dtype.type(ENLARGED), -limit, limit)
        enlarged_feed[tensor.name] = np.moveaxis(large, 0, tensor.batch_axis)
    return enlarged_feed


def split(signature: Signature, outputs: Mapping[str, Array], count: int) -> list[Answer] | None:
    """The answers to `count` items from one run's outputs. None if an output's batch axis does not have that size."""
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


def answers(signature: Signature, outputs: Mapping[str, Array], count: int) -> list[Answer]:
    """As `split`, but raises RuntimeFailure (OutputsInvalid) if an output does not have one row per item, as it had before."""
    by_item = split(signature, outputs, count)
    if by_item is not None:
        return by_item
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    message = (
        f"{counted(count, 'item')} in one run gave outputs of shapes {shapes}; their batch axis does not follow: where "
        "how many rows there are depends on what an item holds, fix the size of that axis at 1 in source.inputs[].shape"
    )
    raise RuntimeFailure(message, reason=Reason.OUTPUTS_INVALID)


def batch_size(items: MappedItems, fixed: int | None, alone: bool) -> int:
    """Items per run while judging. `fixed`: the model's static batch size; `alone`: an answer depends on the other items of its batch."""
    if not items.signature.batchable:
        return 1
    if fixed is not None:
        return fixed
    if alone:
        return 1
    each = sum(max(array.nbytes // len(array), 1) for array in items.arrays.values()) + _answer_bytes(items.signature)
    return int(min(LARGEST_BATCH, max(1, FEED_BYTES // each)))


def size_of(answers: Sequence[Answer]) -> int:
    """Bytes of these answers' arrays."""
    return sum(array.nbytes for answer in answers for array in answer.values())


def _answer_bytes(signature: Signature) -> int:
    """Bytes of the answer to one item, as far as the signature shows."""
    sizes = (BY_V2[tensor.dtype].bytes or 0 for tensor in signature.outputs)
    counts = (math.prod(max(size, 1) for size in tensor.shape) for tensor in signature.outputs)
    return sum(size * count for size, count in zip(sizes, counts, strict=True))


def padded(indices: Sequence[int], size: int) -> list[int]:
    """`indices`, with the last one repeated up to `size`, because a static batch must be full."""
    return [*indices, *[indices[-1]] * (size - len(indices))]
