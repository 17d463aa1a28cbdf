"""One network as numbers: a convolution, ReLU, the mean of each channel, a dense layer, softmax. Tests have it in every format.

Needs nothing but numpy, because the formats are written in several environments; what it answers is computed here in float64.
"""

from __future__ import annotations

import numpy as np

from fettle.store.arrays import Array

SIZE, COLORS, CHANNELS, CLASSES = 12, 3, 8, 4
INPUT = "image"  # channels last, in every format
_random = np.random.default_rng(11)


def _weights(*shape: int) -> Array:
    return _random.normal(size=shape).astype(np.float32)


KERNEL, KERNEL_BIAS = _weights(3, 3, COLORS, CHANNELS), _weights(CHANNELS)  # height, width, in, out
DENSE, DENSE_BIAS = _weights(CHANNELS, CLASSES) / 8, _weights(CLASSES) / 8
PICTURES = _weights(40, SIZE, SIZE, COLORS) + _weights(40, 1, 1, COLORS)  # each of another color


def answers() -> Array:
    """To each of PICTURES the share of each class."""
    windows = np.lib.stride_tricks.sliding_window_view(PICTURES.astype(np.float64), (3, 3), axis=(1, 2))
    hidden = np.maximum(np.einsum("nijchw,hwco->nijo", windows, KERNEL.astype(np.float64)) + KERNEL_BIAS, 0)
    logits = hidden.mean(axis=(1, 2)) @ DENSE.astype(np.float64) + DENSE_BIAS
    shares: Array = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)
