"""What every codec asks of a request: the signature's inputs, their types and shapes, items in bounds, outputs that there are.

Raises RequestError INVALID, which names the tensor, what was expected and what was found.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from fettle.api.signature import Signature, Tensor
from fettle.api.text import clip
from fettle.server.elements import MOST_BYTES_OF_TEXTS, MOST_ELEMENTS, ElementsError
from fettle.server.request import Code, RequestError

MOST_SAID = 300  # bytes of what a client wrote that an error repeats
# Parameters by which a client asks for another answer than the model's, or points elsewhere for it: to ignore them would be wrong.
_REFUSED = ("classification", "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")


def invalid(message: str) -> RequestError:
    """The client's mistake."""
    return RequestError(Code.INVALID, message)


def unfit(tensor: Tensor, error: ElementsError) -> RequestError:
    """The error for elements that do not fit an input."""
    return invalid(f"input {tensor.name}: {said(error)}")


def said(value: Any) -> str:
    """What a client wrote, as far as it needs to be repeated."""
    return clip(str(value), MOST_SAID)


def require_inputs(signature: Signature, names: Sequence[str]) -> None:
    """Each input once, in any order."""
    expected = [tensor.name for tensor in signature.inputs]
    if len(names) > len(expected):
        raise invalid(f"expected the inputs {expected}, found {len(names)} inputs")
    if sorted(names) != sorted(expected):
        raise invalid(f"expected the inputs {expected}, found {said(names)}")


def chosen_outputs(signature: Signature, names: Sequence[str]) -> tuple[str, ...] | None:
    """The outputs that the client asks for; None = all."""
    known = [tensor.name for tensor in signature.outputs]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise invalid(f"unknown outputs {said(unknown)}; this model has {known}")
    if len(set(names)) < len(names):
        raise invalid(f"each output can be requested only once, found {said(names)}")
    return tuple(names) or None


def require_shape(tensor: Tensor, datatype: Any, shape: Sequence[int]) -> None:
    """Type and shape fit the signature, and numpy can count the elements. `shape` holds numbers that are not negative."""
    where = f"input {tensor.name}"
    if datatype != tensor.dtype:
        raise invalid(f"{where}: expected datatype {tensor.dtype}, found {said(datatype)}")
    expected = list(tensor.shape)
    fits = len(shape) == len(expected) and all(
        size in (-1, given) or axis == tensor.batch_axis
        for axis, (size, given) in enumerate(zip(expected, shape, strict=True))
    )
    if not fits:
        raise invalid(f"{where}: expected shape {tensor.free_shape} (-1 = any size), found {said(list(shape))}")
    if math.prod(filter(None, shape)) > MOST_ELEMENTS:
        raise invalid(f"{where}: shape {said(list(shape))} is too large: at most {MOST_ELEMENTS} elements")


def least_shape(tensor: Tensor) -> list[int]:
    """The smallest shape that clients may send: 1 where a size varies."""
    return [1 if size == -1 else size for size in tensor.free_shape]


def count_rows(signature: Signature, shapes: Mapping[str, Sequence[int]], max_rows: int) -> int:
    """The items of a request, of which each input with a batch axis holds as many; 1 where none has one."""
    sizes = {t.name: shapes[t.name][t.batch_axis] for t in signature.inputs if t.batch_axis is not None}
    if len(set(sizes.values())) > 1:
        raise invalid(f"the inputs hold different numbers of items: {sizes}")
    rows = next(iter(sizes.values()), 1)
    if not 1 <= rows <= max_rows:
        raise invalid(f"expected 1 to {max_rows} items in a request, found {rows}")
    return rows


def require_texts(sizes: Iterable[int]) -> None:
    """`sizes`: bytes of each tensor of strings."""
    total = sum(sizes)
    if total > MOST_BYTES_OF_TEXTS:
        raise invalid(f"expected at most {MOST_BYTES_OF_TEXTS} bytes of strings in a request, found {total}")


def refuse_parameters(names: Container[str], where: str) -> None:
    """Others than these change nothing and may stand there."""
    for name in _REFUSED:
        if name in names:
            raise invalid(f"{where}: the parameter {name} is not supported")
