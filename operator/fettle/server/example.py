"""A request that works for the model that is served: an item that it was measured with, or one of zeros where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import orjson

from fettle.api.signature import Signature
from fettle.runtimes import base
from fettle.runtimes.base import Array
from fettle.server import elements
from fettle.server.checks import least_shape
from fettle.store.manifest import REFERENCE, read_reference


def item(signature: Signature, folder: Path) -> dict[str, Array]:
    """Inputs of one item by name: the first of the artifact in `folder`; of zeros, each free size 1, where it has none."""
    path = folder / REFERENCE
    if not path.is_file():
        return base.zeros(signature, {tensor.name: least_shape(tensor) for tensor in signature.inputs})
    inputs, _ = read_reference(path)
    if not signature.batchable:
        return inputs
    return {tensor.name: np.take(inputs[tensor.name], [0], axis=tensor.batch_axis or 0) for tensor in signature.inputs}


def body(signature: Signature, inputs: Mapping[str, Array]) -> bytes:
    """The V2 request in JSON, which has no word for NaN and infinities: there a finite number stands for them."""
    parts: list[bytes] = []
    for tensor in signature.inputs:
        array = inputs[tensor.name]
        if array.dtype.kind == "f":
            array = np.nan_to_num(array)
        head = orjson.dumps({"name": tensor.name, "datatype": tensor.dtype, "shape": list(array.shape)})[:-1]
        parts += (b',{"inputs":[' if not parts else b",", head, b',"data":', *elements.write(array, tensor.dtype), b"}")
    return b"".join(parts)[1:] + b"]}"
