"""Cast an array from a file to the data type of an input. A cast that would change the meaning of a value is refused.

The width of a number may change if every value fits; byte order never matters. See docs/design/data.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fettle.errors import DataError
from fettle.runtimes.base import Array, numpy_dtype, v2_dtype

_NO_INPUT = {
    "c": "complex numbers",
    "M": "dates",
    "m": "durations",
    "V": "records, or numbers of a type that .npy cannot name",
    "T": "variable-width strings",
}
_SAVE_AS = "save numbers, booleans or strings (bfloat16 and float8 as float32, dates as numbers)"
_FLOATS = ("FP16", "FP32", "FP64", "BF16")


def cast(dtype: str, array: Array, where: str) -> Array:
    """`array` in the V2 data type `dtype`, in the machine's byte order. `where` begins the message. Raises DataError."""
    values = plain(array, where)
    if v2_dtype(values) == dtype:
        return values
    if dtype in _FLOATS and values.dtype.kind == "f":
        return _float(dtype, values, where)
    if dtype == "BOOL" and values.dtype.kind in "iu":
        return _bool(values, where)
    wanted = numpy_dtype(dtype)
    if wanted.kind in "iu" and values.dtype.kind in "iu":
        return _integer(dtype, values, where)
    hint = ""
    if dtype != "BYTES" and values.dtype != object:
        hint = f"; convert it with the model's own preprocessing, then .astype('{wanted.name}')"
    raise DataError(f"{where}: expected {dtype}, found {v2_dtype(values)}{hint}")


def plain(array: Array, where: str) -> Array:
    """Numbers and booleans in the machine's byte order, texts as an object array of str. Raises DataError for anything else."""
    kind = array.dtype.kind
    if kind in "USO":  # readers leave no other objects than texts
        return _texts(array, where)
    if kind in _NO_INPUT:
        raise DataError(f"{where}: {_NO_INPUT[kind]} ({array.dtype}) cannot be read; {_SAVE_AS}")
    if kind == "b" and array.size and np.ascontiguousarray(array).view(np.uint8).max() > 1:
        raise DataError(f"{where}: expected booleans as bytes 0 and 1, found other bytes; the file is damaged")
    if kind == "f" and array.dtype.itemsize > 8:  # long double: another size on every machine
        return _float("FP64", array, where)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def texts_of(values: Sequence[str | bytes]) -> Array:
    """An object array of texts, without padding."""
    made = np.empty(len(values), object)
    made[:] = values
    return made


def _texts(array: Array, where: str) -> Array:
    """Texts as str that UTF-8 can encode. Raises DataError."""
    try:
        flat = array.reshape(-1).tolist()
        texts = [value.decode() if isinstance(value, bytes) else value for value in flat]
        for text in texts:
            if not text.isascii():
                text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: a string contains half of a surrogate pair, which is not a character: {error}"
        ) from error
    except (ValueError, SystemError) as error:  # UnicodeDecodeError; numbers that are no code points
        raise DataError(f"{where}: strings must be Unicode, and bytes must be UTF-8: {error}") from error
    return texts_of(texts).reshape(array.shape)


def _float(dtype: str, array: Array, where: str) -> Array:
    wanted = numpy_dtype(dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = array.astype(wanted)
    lost = np.isinf(values) & np.isfinite(array)
    if lost.any():
        worst = array[lost].reshape(-1)[0]
        raise DataError(f"{where}: {int(lost.sum())} values do not fit {dtype}, for example {worst:.6g}")
    return values


def _integer(dtype: str, array: Array, where: str) -> Array:
    wanted = numpy_dtype(dtype)
    limits = np.iinfo(wanted)
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            message = f"{where}: expected {dtype}, {limits.min} to {limits.max}, found values from {low} to {high}"
            raise DataError(message)
    return array.astype(wanted)


def _bool(array: Array, where: str) -> Array:
    other = array[(array != 0) & (array != 1)].reshape(-1)
    if other.size:
        raise DataError(f"{where}: expected BOOL, or numbers 0 and 1, found {other[0]}")
    return array.astype(bool)
