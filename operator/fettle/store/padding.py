"""Padding: positions of a sequence that a mask among the inputs excludes. What a model answers there says nothing, so it is not compared.

The measuring Jobs and the server share this, as they share `comparison.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fettle.api.signature import Signature, Tensor

Array = np.ndarray[Any, Any]
MASK = "attention_mask"  # as transformers and most exporters of text models call it: 1 counts, 0 is padding
VARIES = -1


class Padding:
    """Which outputs have an answer for each position of the mask, and along which axis of one item's answer.

    Only sizes that vary are taken for positions: a fixed size that happens to be the sequence's may be anything.
    """

    def __init__(self, axes: Mapping[str, int]) -> None:
        self._axes = axes

    @classmethod
    def of(cls, signature: Signature) -> Padding | None:
        """None where no output has positions that a mask excludes."""
        masks = [tensor for tensor in signature.inputs if tensor.name == MASK and tensor.dtype != "BYTES"]
        if not masks or masks[0].batch_axis != 0 or len(masks[0].shape) != 2 or masks[0].shape[1] != VARIES:
            return None
        axes = {
            tensor.name: varying[0] - 1
            for tensor in signature.outputs
            if tensor.batch_axis == 0 and len(varying := _varying(tensor)) == 1
        }
        return cls(axes) if axes else None

    def removed(self, answer: Mapping[str, Array], mask: Array) -> dict[str, Array]:
        """The answer to one item without its padding. As it is where the mask is another's, or excludes all or nothing."""
        counts = np.asarray(mask).reshape(-1) != 0
        if counts.all() or not counts.any():
            return dict(answer)
        return {
            name: array.compress(counts, axis) if axis is not None and array.shape[axis] == len(counts) else array
            for name, array, axis in ((name, array, self._axes.get(name)) for name, array in answer.items())
        }


def _varying(tensor: Tensor) -> list[int]:
    """The axes whose size varies, the batch axis aside."""
    return [axis for axis, size in enumerate(tensor.shape) if size == VARIES and axis != tensor.batch_axis]
