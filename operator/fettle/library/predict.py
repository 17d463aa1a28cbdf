"""Predictions of an artifact in this process, computed as its server computes them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.signature import Tensor
from fettle.cli.local.served import served_folder
from fettle.errors import UsageError
from fettle.library.items import GivenItems
from fettle.library.models import named
from fettle.runtimes.artifact import Parts, load
from fettle.runtimes.base import Array, numpy_dtype

AT_ONCE = 256  # items of a run that takes any number: memory does not grow with what is asked


class Predictor:
    """An artifact from its own folder or from a store, loaded with the measured settings. Raises StoreError, RuntimeFailure."""

    def __init__(self, folder: Path) -> None:
        # A session needs its files only while it is loaded.
        with tempfile.TemporaryDirectory(prefix="fettle-predict-") as temporary:
            served = served_folder(str(folder), folder, None, Path(temporary))
            manifest, self._session = load(served.folder, served.sha256)
        self._signature, self._parts = manifest.signature, Parts.of(manifest)

    def predict(self, inputs: Any) -> Array | dict[str, Array]:
        """See `Result.predict`."""
        outputs = self._outputs(self._given(inputs))
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _given(self, inputs: Any) -> dict[str, Array]:
        tensors = self._signature.inputs
        names = [tensor.name for tensor in tensors]
        given = named(GivenItems.of(inputs, labelled=False).arrays, names)
        if given.keys() != set(names):
            raise UsageError(f"expected arrays for the inputs {', '.join(names)}, found {', '.join(given)}")
        return {tensor.name: _typed(tensor, given[tensor.name]) for tensor in tensors}

    def _outputs(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        batched = {t.name: t.batch_axis for t in self._signature.inputs if t.batch_axis is not None}
        if not self._signature.batchable:
            return self._session.infer(inputs)
        counts = {name: inputs[name].shape[axis] for name, axis in batched.items()}
        rows = next(iter(counts.values()))
        if not rows or len(set(counts.values())) > 1:
            raise UsageError(f"expected as many items in each input, and at least one, found {counts}")
        parts = [
            self._parts.infer(self._session, _items(inputs, batched, slice(at, at + AT_ONCE)), min(AT_ONCE, rows - at))
            for at in range(0, rows, AT_ONCE)
        ]
        return {
            t.name: np.concatenate([part[t.name] for part in parts], axis=t.batch_axis or 0)
            for t in self._signature.outputs
        }


def _items(inputs: Mapping[str, Array], batched: Mapping[str, int], own: slice) -> dict[str, Array]:
    """Some of the items, as views."""
    return {
        name: array[(slice(None),) * batched[name] + (own,)] if name in batched else array
        for name, array in inputs.items()
    }


def _typed(tensor: Tensor, array: Array) -> Array:
    """The array cast to the input's data type, if numbers keep their kind. Raises UsageError."""
    expected = tensor.shape
    if array.ndim != len(expected) or any(
        size not in (-1, found) and axis != tensor.batch_axis
        for axis, (size, found) in enumerate(zip(expected, array.shape, strict=True))
    ):
        raise UsageError(
            f"input {tensor.name}: expected shape {list(expected)} (-1 = any size), found {list(array.shape)}"
        )
    wanted = numpy_dtype(tensor.dtype)
    if tensor.dtype == "BYTES":
        return array
    kind = np.dtype(np.float16) if tensor.dtype == "BF16" else wanted  # numpy does not know bfloat16 for a float
    if array.dtype != wanted and not np.can_cast(array.dtype, kind, "same_kind"):
        raise UsageError(f"input {tensor.name}: expected {wanted}, found {array.dtype}: convert it with astype")
    return np.asarray(array, wanted)
