"""Items from files (`data_files.py`): one array per input under its name, first axis = items. Checked against the signature before anything runs.

An item is what one run takes: without the batch axis where the model has one, else one whole input (docs/design/data.md). Inside this
package items are held whole: an array `[items, *shape of the input]`, with size 1 along the axis that items may be stacked on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from fettle.api.optimizedmodel import PreprocessSpec
from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.errors import DataError
from fettle.optimizer.data_files import LABELS, Array, Columns, Wanted, read_columns
from fettle.runtimes.base import numpy_dtype, v2_dtype
from fettle.store.store import explained
from fettle.store.uris import Location, Mounts, locate

_missing = partial(DataError, reason=Reason.DATA_NOT_FOUND)


@dataclass(frozen=True)
class Items:
    """Items, whole; labels if there are any."""

    arrays: Mapping[str, Array]
    labels: Array | None = None
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def whole(self, index: int) -> dict[str, Array]:
        """What one run takes for that item."""
        return {name: np.asarray(array[index]) for name, array in self.arrays.items()}

    def take(self, indices: list[int]) -> Items:
        """Only these items, in this order."""
        labels = None if self.labels is None else self.labels[indices]
        return Items({name: array[indices] for name, array in self.arrays.items()}, labels, self.notes)

    def hashes(self) -> list[str]:
        """Content hash of each item, over its inputs."""
        names = sorted(self.arrays)
        return [_item_hash([(name, self.arrays[name][index]) for name in names]) for index in range(len(self))]

    def stored(self, signature: Signature) -> dict[str, Array]:
        """The arrays as the store keeps them: without the batch axis where one was proved; labels under their common name."""
        arrays: dict[str, Array] = {}
        for tensor in signature.inputs:
            array = self.arrays[tensor.name]
            arrays[tensor.name] = array if tensor.batch_axis is None else np.squeeze(array, axis=tensor.batch_axis + 1)
        return arrays if self.labels is None else arrays | {LABELS: self.labels}


def _item_hash(values: list[tuple[str, Array]]) -> str:
    digest = hashlib.sha256()
    for name, value in values:
        digest.update(f"{name}\0{value.dtype.str}\0{value.shape}\0".encode())
        if value.dtype == object:
            digest.update("\0".join(map(str, value.reshape(-1).tolist())).encode())
        else:
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def read(
    uri: str,
    mounts: Mounts,
    signature: Signature,
    axes: Mapping[str, int],
    *,
    most: int | None,
    label_key: str | None = None,
    preprocess: PreprocessSpec | None = None,
) -> Items:
    """At most `most` items of the file (.npz, .parquet, .jsonl) or folder of pictures at `uri`.

    `axes`: by input, the axis that items are stacked on, if any.

    Raises DataError: DataNotFound; DataInvalid for arrays that are missing, do not fit or hold NaN or infinity.
    """
    location = locate(uri, mounts, missing=_missing)
    wanted = Wanted(uri, {tensor.name: tensor.dtype for tensor in signature.inputs}, label_key, most)
    with explained(f"reading {uri}"):
        columns = _columns(location, wanted, signature, preprocess)
    arrays = {t.name: _checked(t, columns.arrays[t.name], axes.get(t.name), uri) for t in signature.inputs}
    lengths = {name: len(array) for name, array in columns.arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{uri}: the first axis of every array counts the items, found {lengths}")
    if not min(lengths.values()):
        raise DataError(f"{uri} holds no item")
    labels = columns.arrays.get(label_key) if label_key is not None else None
    notes = (f"{uri}: columns that are neither an input nor labels are not used: {columns.unused}",)
    return Items(arrays, _checked_labels(labels, uri), notes if columns.unused else ())


def _columns(location: Location, wanted: Wanted, signature: Signature, preprocess: PreprocessSpec | None) -> Columns:
    filesystem, path = location.filesystem, location.path
    if filesystem.isdir(path):
        from fettle.optimizer.data_images import read_images

        return read_images(filesystem, path, wanted, signature, preprocess or PreprocessSpec())
    if not filesystem.isfile(path):
        raise DataError(f"{location.uri} does not exist", reason=Reason.DATA_NOT_FOUND)
    if preprocess is not None:
        raise DataError(
            f"{location.uri} is a file: preprocess is for a folder of pictures; a file holds what the model takes"
        )
    with filesystem.open(path, "rb") as stream:
        return read_columns(path, stream, wanted)


def _checked(tensor: Tensor, array: Array, axis: int | None, uri: str) -> Array:
    """`array` whole and in the input's data type. Raises DataError."""
    where = f"{uri}: {tensor.name}"
    whole = _whole(tensor, array, axis, where)
    cast = _cast(tensor, whole, where)
    if cast.dtype.kind == "f" and not np.isfinite(cast).all():
        bad = ~np.isfinite(cast).reshape(len(cast), -1).all(axis=1)
        first = int(np.argmax(bad))
        raise DataError(
            f"{where}: {int(bad.sum())} of {len(cast)} items hold NaN or infinity, the first is item {first}"
        )
    return cast


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


def _fits(wanted: tuple[int, ...], found: tuple[int, ...]) -> bool:
    return len(wanted) == len(found) and all(want in (-1, size) for want, size in zip(wanted, found, strict=True))


def _cast(tensor: Tensor, array: Array, where: str) -> Array:
    """Only casts that mean the same: another width of the same kind. uint8 pixels are no float32 pixels."""
    found = v2_dtype(array)
    if found == tensor.dtype:
        return array.astype(object) if tensor.dtype == "BYTES" and array.dtype.kind == "U" else _decoded(array)
    wanted = numpy_dtype(tensor.dtype)
    integers = array.dtype.kind in "iu" and wanted.kind in "iu"
    if integers and array.size:
        limits = np.iinfo(wanted)
        integers = bool(array.min() >= limits.min and array.max() <= limits.max)
    floats = array.dtype.kind == "f" and (wanted.kind == "f" or tensor.dtype == "BF16")
    if not integers and not floats:
        hint = (
            ""
            if tensor.dtype == "BYTES"
            else f"; convert it with the model's own preprocessing, then .astype('{wanted.name}')"
        )
        raise DataError(f"{where}: expected {tensor.dtype}, found {found}{hint}")
    return array.astype(wanted)


def _decoded(array: Array) -> Array:
    if array.dtype.kind != "S":
        return array
    try:
        return np.char.decode(array, "utf-8").astype(object)
    except UnicodeDecodeError as error:
        raise DataError(f"texts must be UTF-8: {error}") from error


def _checked_labels(labels: Array | None, uri: str) -> Array | None:
    if labels is None:
        return None
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise DataError(f"{uri}: labels hold NaN or infinity")
    return _decoded(labels)
