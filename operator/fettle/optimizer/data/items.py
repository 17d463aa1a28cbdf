"""Items from files (`files.py`): one array per input under its name, first axis = items. They are checked against the signature before a run.

An item is the input of one run: without the batch axis if the model has one, else one whole input (docs/design/data.md). Inside this
package items are whole: an array `[items, *shape of the input]`, with size 1 along the axis on which items can be stacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from fettle.api.data import PreprocessSpec
from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.errors import DataError
from fettle.optimizer.data.columns import LABELS, Columns, Encoder, ReadRequest, Room, listed
from fettle.optimizer.data.files import column_names, read_columns
from fettle.runtimes.base import Array
from fettle.store.arrays import item_digest
from fettle.store.beside import not_there
from fettle.store.comparison import is_float
from fettle.store.store import explained
from fettle.store.uris import Location, Mounts, locate

_missing = partial(DataError, reason=Reason.DATA_NOT_FOUND)


@dataclass(frozen=True)
class Items:
    """Whole items, with labels if there are any. `others`: the other columns of their file, any of which may be the labels.

    `read`: the raw columns, if the arrays were made from them: texts, whose tokens are padded to a different length in each file.
    """

    arrays: Mapping[str, Array]
    labels: Array | None = None
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    read: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def whole(self, index: int) -> dict[str, Array]:
        """The inputs of one run for that item."""
        return {name: array[index, ...] for name, array in self.arrays.items()}

    def take(self, indices: list[int]) -> Items:
        """Only these items, in this order."""
        labels = None if self.labels is None else self.labels[indices]
        arrays, read = ({name: array[indices] for name, array in all.items()} for all in (self.arrays, self.read))
        return Items(arrays, labels, self.notes, self.others, read)

    def hashes(self) -> list[str]:
        """Content hash of each item: of its inputs, or of the raw columns they were made from."""
        told = self.read or self.arrays
        return [item_digest({name: array[index, ...] for name, array in told.items()}) for index in range(len(self))]

    def stored(self, signature: Signature) -> dict[str, Array]:
        """The arrays as the store keeps them: without the batch axis if one was proved, and with labels under a fixed name."""
        arrays: dict[str, Array] = {}
        for tensor in signature.inputs:
            array = self.arrays[tensor.name]
            arrays[tensor.name] = array if tensor.batch_axis is None else np.squeeze(array, axis=tensor.batch_axis + 1)
        return arrays if self.labels is None else arrays | {LABELS: self.labels}


@dataclass(frozen=True)
class ItemsRequest:
    """Which items to read: their address, the most to read, the name of the labels, and how pictures are prepared."""

    uri: str
    max_samples: int | None = None
    label_key: str | None = None
    preprocess: PreprocessSpec | None = None
    by_name: bool = False  # the label of a picture is its folder's name
    judged: bool = True  # labels count for something
    missing: frozenset[str] = frozenset()  # inputs whose values may be missing (NaN)
    encoder: Encoder | None = None  # for files that hold what it reads instead of the inputs


def read(request: ItemsRequest, mounts: Mounts, signature: Signature, axes: Mapping[str, int], room: Room) -> Items:
    """The items of a file (.npz, .parquet, .jsonl) or folder of pictures.

    `axes`: by input, the axis that items are stacked on, if any. `room`: the memory they may take.

    Raises DataError: DataNotFound; DataInvalid for arrays that are missing, do not fit, or hold infinity or an unexpected NaN.
    """
    uri = request.uri
    location = locate(uri, mounts, missing=_missing)
    inputs = {tensor.name: tensor.dtype for tensor in signature.inputs}
    encoded = _encoded(request, inputs, mounts)
    wanted = ReadRequest(
        uri, encoded or inputs, request.label_key, request.max_samples, room, request.by_name, request.judged
    )
    with explained(f"reading {uri}"):
        columns = _columns(location, mounts, wanted, signature, request.preprocess)
    texts = {name: columns.arrays[name] for name in encoded}
    if texts and request.encoder is not None:
        made = request.encoder.encode(texts)
        room.take(sum(array.nbytes for array in made.values()), uri)
        columns = replace(columns, arrays={**columns.arrays, **made})
    arrays = {
        t.name: _checked(t, columns.arrays[t.name], axes.get(t.name), uri, t.name in request.missing)
        for t in signature.inputs
    }
    lengths = {name: len(array) for name, array in columns.arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{uri}: the first axis of every array must have the same number of items, found {lengths}")
    if not min(lengths.values()):
        raise DataError(f"{uri} contains no items")
    labels = columns.arrays.get(request.label_key) if request.label_key is not None else None
    if labels is not None and labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise DataError(f"{uri}: the labels contain NaN or infinity")
    hint = "; if one of them holds the labels, set labelKey to its name" if request.label_key and labels is None else ""
    notes = (f"{uri}: ignored arrays, because they are neither inputs nor labels: {listed(columns.unused)}{hint}",)
    others = () if location.filesystem.isdir(location.path) else tuple(columns.unused)
    return Items(arrays, labels, notes if columns.unused else (), others, texts)


def _encoded(request: ItemsRequest, inputs: Mapping[str, str], mounts: Mounts) -> dict[str, str]:
    """The file's columns for the encoder, with their data type; empty if the file has the model's own inputs, or neither."""
    if request.encoder is None:
        return {}
    first, *others = request.encoder.columns
    found = column_names_of(request.uri, mounts)
    if first not in found or inputs.keys() <= found:
        return {}
    return dict.fromkeys((first, *(name for name in others if name in found)), "BYTES")


def column_names_of(uri: str, mounts: Mounts) -> set[str]:
    """Names of the columns of the file at `uri`; none for a folder. Raises DataError (DataNotFound, DataInvalid)."""
    location = locate(uri, mounts, missing=_missing)
    with explained(f"reading {uri}"):
        if not location.filesystem.isfile(location.path):
            return set()
        with location.filesystem.open(location.path, "rb") as stream:
            return column_names(location.path, stream, uri)


def class_names_of(uri: str, mounts: Mounts) -> list[str]:
    """Names of the folders of classes at `uri`, in their order; none for a file. Raises DataError (DataNotFound)."""
    location = locate(uri, mounts, missing=_missing)
    with explained(f"reading {uri}"):
        if not location.filesystem.isdir(location.path):
            return []
        from fettle.optimizer.data.images import class_folders

        return [path.rsplit("/", 1)[-1] for path in class_folders(location.filesystem, location.path)]


def _columns(
    location: Location, mounts: Mounts, wanted: ReadRequest, signature: Signature, preprocess: PreprocessSpec | None
) -> Columns:
    filesystem, path = location.filesystem, location.path
    if filesystem.isdir(path):
        from fettle.optimizer.data.images import read_images

        return read_images(filesystem, path, wanted, signature, preprocess or PreprocessSpec())
    if not filesystem.isfile(path):
        raise DataError(not_there(location, mounts), reason=Reason.DATA_NOT_FOUND)
    if preprocess is not None:
        raise DataError(
            f"{location.uri} is a file, but preprocess requires a folder of images; a file must contain the model's inputs as they are"
        )
    with filesystem.open(path, "rb") as stream:
        return read_columns(path, stream, wanted)


def _checked(tensor: Tensor, array: Array, axis: int | None, uri: str, missing: bool) -> Array:
    """`array` as whole items. Raises DataError for another shape, for infinity, and for NaN unless values may be `missing`."""
    where = f"{uri}: {tensor.name}"
    whole = _whole(tensor, array, axis, where)
    if is_float(whole):
        odd = np.isinf(whole) if missing else ~np.isfinite(whole)
        if odd.any():
            bad = odd.reshape(len(whole), -1).any(axis=1)
            first, what = int(np.argmax(bad)), "infinity" if missing else "NaN or infinity"
            raise DataError(
                f"{where}: {int(bad.sum())} of {len(whole)} items contain {what}, the first is item {first}"
            )
    return whole


def _whole(tensor: Tensor, array: Array, axis: int | None, where: str) -> Array:
    rank = len(tensor.shape)
    if axis is not None and array.ndim == rank:
        expanded = np.expand_dims(array, axis + 1)
        if _fits(tensor.shape, expanded.shape[1:]):
            return expanded
    if array.ndim == rank + 1 and _fits(tensor.shape, array.shape[1:]):
        return array
    item = [size for place, size in enumerate(tensor.shape) if place != axis]
    message = f"{where}: expected the shape [items, {', '.join('any' if size < 0 else str(size) for size in item)}], found {list(array.shape)}"
    raise DataError(message)


def _fits(wanted: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(want in (-1, size) for want, size in zip(wanted, shape, strict=True))
