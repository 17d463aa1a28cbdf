"""Items from a .parquet file: one column per input, nested lists for its dimensions."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fettle.errors import DataError
from fettle.optimizer.data_files import Array, Columns, Wanted

ROWS_AT_ONCE = 1024


def read_parquet(stream: IO[bytes], wanted: Wanted) -> Columns:
    """The wanted columns, read batch by batch until there are `wanted.most` items. Raises DataError."""
    try:
        file = pq.ParquetFile(stream)
        found = set(file.schema_arrow.names)
        names = wanted.columns(found)
        parts: dict[str, list[Any]] = {name: [] for name in names}
        left = file.metadata.num_rows if wanted.most is None else wanted.most
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=names):
            for name in names:
                parts[name].append(batch.column(name)[:left])
            left -= min(left, batch.num_rows)
            if not left:
                break
        types = {name: file.schema_arrow.field(name).type for name in names}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{wanted.uri} is no .parquet file that can be read: {error}") from error
    joined = {name: pa.chunked_array(parts[name], type=types[name]).combine_chunks() for name in names}
    return Columns({name: _dense(joined[name], f"{wanted.uri}: {name}") for name in names}, wanted.unused(found))


def _dense(column: Any, where: str) -> Array:
    """A column as one array: `[items]`, and a dimension for each level of lists. Raises DataError."""
    shape = [len(column)]
    while True:
        if column.null_count:
            raise DataError(f"{where}: {column.null_count} values are null; every item needs its numbers")
        kind = column.type
        if pa.types.is_dictionary(kind):
            column = column.dictionary_decode()
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            sizes = pc.unique(pc.list_value_length(column)).to_pylist() or [0]
            if len(sizes) > 1:
                raise DataError(f"{where}: items have different shapes (lists of {min(sizes)} to {max(sizes)} values)")
            shape.append(sizes[0])
            column = column.flatten()
        else:
            return _plain(column, where).reshape(shape)


def _plain(column: Any, where: str) -> Array:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=np.str_)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        values: Array = column.to_numpy(zero_copy_only=False)
        return values
    raise DataError(f"{where}: a column of {kind} is no input; numbers, booleans, texts and lists of them are")
