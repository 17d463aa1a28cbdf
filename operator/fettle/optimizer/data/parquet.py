"""Items from a .parquet file: one column per input, nested lists for its dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fettle.errors import DataError
from fettle.optimizer.data.column import Column
from fettle.optimizer.data.columns import Columns, ReadRequest
from fettle.preprocess.cast import texts_of
from fettle.preprocess.reading import readable
from fettle.runtimes.base import Array

ROWS_MOST = 1024
ROWS_OF_TEXTS = 64  # how long a text will be is not known before it is read
BLOCK_BYTES = 8 << 20
KIND = ".parquet file"
_WIDEST = 8  # bytes of a number


def names(stream: IO[bytes], uri: str) -> set[str]:
    """Names of the columns. Raises DataError."""
    with readable(uri, KIND):
        return set(pq.ParquetFile(stream).schema_arrow.names)


def read(stream: IO[bytes], wanted: ReadRequest) -> Columns:
    """The requested columns, read batch by batch until there are `wanted.max_samples` items. Raises DataError."""
    with readable(wanted.uri, KIND):
        file = pq.ParquetFile(stream)
        column_names = list(file.schema_arrow.names)
        wanted_names = wanted.columns(column_names)
        paths = _paths(file, wanted_names)
        rows = file.metadata.num_rows
        items = rows if wanted.max_samples is None else min(rows, wanted.max_samples)
        columns = [Column(name, wanted, items) for name in wanted_names]
        left = items
        for batch in file.iter_batches(_rows_at_once(file, paths, items, wanted), columns=wanted_names):
            for column in columns:
                column.add(_dense(batch.column(column.name)[:left], column.where))
            left -= min(left, batch.num_rows)
            if not left:
                break
        if not items:
            for column in columns:
                kind = file.schema_arrow.field(column.name).type
                column.add(_dense(pa.array([], kind), column.where))
    return Columns({column.name: column.array() for column in columns}, wanted.unused(column_names))


def _paths(file: Any, names: list[str]) -> Mapping[str, str]:
    """Path in the file -> physical type, of the columns of these names. Every batch of a dictionary column holds all its texts, so dictionary
    columns are counted like numbers, and read many rows at once."""
    leaves = [file.schema.column(index) for index in range(len(file.schema))]
    shared = {name for name in names if pa.types.is_dictionary(file.schema_arrow.field(name).type)}
    return {
        leaf.path: "DICTIONARY" if leaf.path in shared else leaf.physical_type
        for leaf in leaves
        if any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in names)
    }


def _rows_at_once(file: Any, paths: Mapping[str, str], items: int, wanted: ReadRequest) -> int:
    """The number of rows per block. Raises DataError if the numbers alone, whose count is in the file, need more memory than there is.

    The file's size does not show this, since repeated numbers are compressed to almost nothing.
    """
    metadata, numbers, left = file.metadata, 0, items
    widest = 1
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        chunks = [group.column(place) for place in range(group.num_columns)]
        values = sum(
            chunk.num_values for chunk in chunks if paths.get(chunk.path_in_schema, "BYTE_ARRAY") != "BYTE_ARRAY"
        )
        rows = max(group.num_rows, 1)
        widest = max(widest, _WIDEST * values // rows)
        numbers += values * min(left, rows) // rows
        left -= min(left, rows)
        if not left:
            break
    wanted.room.require(numbers, wanted.uri)  # one byte each at least
    most = ROWS_OF_TEXTS if "BYTE_ARRAY" in paths.values() else ROWS_MOST
    return max(1, min(most, BLOCK_BYTES // widest))


def _dense(column: Any, where: str) -> Array:
    """A column as one array: `[items]`, with one more dimension for each level of lists. Raises DataError."""
    shape = [len(column)]
    while True:
        column = _unwrapped(column)
        kind = column.type
        if column.null_count:
            raise DataError(f"{where}: {column.null_count} values are null; every item must have values")
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            sizes = pc.unique(pc.list_value_length(column)).to_pylist() or [0]
            if len(sizes) > 1:
                raise DataError(f"{where}: items have different shapes (lists of {min(sizes)} to {max(sizes)} values)")
            shape.append(sizes[0])
            column = column.flatten()
        elif pa.types.is_dictionary(kind):
            used, places = np.unique(column.indices.to_numpy(zero_copy_only=False), return_inverse=True)
            chosen: Array = _dense(column.dictionary.take(pa.array(used)), where)[places]
            return chosen.reshape(shape)
        else:
            return _plain(column, where).reshape(shape)


def _unwrapped(column: Any) -> Any:
    """Other layouts of the same values: views as texts and lists, tensors of a fixed shape as lists of lists."""
    kind = column.type
    if pa.types.is_string_view(kind):
        return column.cast(pa.large_string())
    if pa.types.is_binary_view(kind):
        return column.cast(pa.large_binary())
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return column.cast(pa.large_list(kind.value_type))
    if (
        isinstance(kind, pa.FixedShapeTensorType)
        and not column.null_count
        and list(kind.permutation or ()) == sorted(kind.permutation or ())
    ):
        values = column.storage.flatten()
        for size in reversed(kind.shape):
            values = pa.FixedSizeListArray.from_arrays(values, size)
        return values
    return column


def _plain(column: Any, where: str) -> Array:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return texts_of(column.to_pylist())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return texts_of(column.to_pylist())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        values: Array = column.to_numpy(zero_copy_only=False)
        return values
    raise DataError(
        f"{where}: a column of {kind} cannot be an input; expected numbers, booleans, strings or lists of them"
    )
