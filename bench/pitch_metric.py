"""Overall accuracy of a pitch estimator with 360 bins of 20 cents, by what the original says: the share of frames that it calls alike.

A frame with a pitch must have one within 50 cents, one without must have none. So are such models compared with each other (J. Salamon et al.,
"Melody extraction from polyphonic music signals", IEEE Signal Processing Magazine, 2014). The text of this file is data.evaluation.custom.code.
"""

from typing import Any

import numpy as np

Outputs = dict[str, "np.ndarray[Any, Any]"]
BINS, BIN_CENTS, NEAR_CENTS = 360, 20.0, 50.0
AROUND = 4  # bins on either side of the highest, whose mean is the pitch


def crepe(outputs: Outputs, label: Outputs) -> float:
    """There is a pitch where the highest of CREPE's bins is above a half, as in its paper."""
    return overall(outputs, label, there=0.5)


def fcpe(outputs: Outputs, label: Outputs) -> float:
    """There is a pitch where the highest of FCPE's bins is above the threshold of its decoder."""
    return overall(outputs, label, there=0.05)


def overall(outputs: Outputs, label: Outputs, there: float) -> float:
    """The share of frames that two answers call alike."""
    (cents, highest), (expected, expected_highest) = _pitch(outputs), _pitch(label)
    near = np.abs(cents - expected) <= NEAR_CENTS
    alike = np.where(expected_highest > there, (highest > there) & near, highest <= there)
    return float(alike.mean())


def _pitch(outputs: Outputs) -> tuple[Any, Any]:
    """For each frame the pitch in cents, and how high its highest bin is."""
    (bins,) = (array.astype(np.float64).reshape(-1, BINS) for array in outputs.values())
    near = np.abs(np.arange(BINS) - bins.argmax(axis=1)[:, None]) <= AROUND
    weights = np.maximum(bins, 1e-9) * near
    return BIN_CENTS * (weights * np.arange(BINS)).sum(axis=1) / weights.sum(axis=1), bins.max(axis=1)
