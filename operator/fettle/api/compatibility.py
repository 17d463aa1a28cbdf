"""Whether the clients of one model can use another in its place: by its inputs and outputs, not by what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fettle.api.signature import Signature, Tensor

Fits = Callable[[int, int], bool]


def differences(stable: Signature, new: Signature) -> tuple[str, ...]:
    """Why requests to `stable` would fail at `new`, or their answers would have another form, in words; empty if neither is so.

    A model may take more than the one before it: a dimension that varies instead of one with a fixed size, or further outputs. The sizes of
    outputs follow from those of inputs, so of them only two that are fixed are compared.
    """
    known = {tensor.name for tensor in stable.inputs}
    added = (f"input {tensor.name} ({_form(tensor)}) is new" for tensor in new.inputs if tensor.name not in known)
    return (
        *_changed("input", stable.inputs, new.inputs, lambda before, now: now in (-1, before)),
        *added,
        *_changed("output", stable.outputs, new.outputs, lambda before, now: -1 in (before, now) or now == before),
    )


def _changed(side: str, stable: Sequence[Tensor], new: Sequence[Tensor], fits: Fits) -> Iterator[str]:
    found = {tensor.name: tensor for tensor in new}
    for before in stable:
        now = found.get(before.name)
        if now is None:
            yield f"{side} {before.name} ({_form(before)}) is missing"
        elif not _same(before, now, fits):
            yield f"{side} {before.name} is {_form(now)} instead of {_form(before)}"


def _same(before: Tensor, now: Tensor, fits: Fits) -> bool:
    sizes, others = before.free_shape, now.free_shape
    return before.dtype == now.dtype and len(sizes) == len(others) and all(map(fits, sizes, others))


def _form(tensor: Tensor) -> str:
    """'FP32 [-1, 4]'."""
    return f"{tensor.dtype} {tensor.free_shape}"
