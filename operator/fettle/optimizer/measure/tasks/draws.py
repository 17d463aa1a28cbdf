"""What a bootstrap over items draws, for metrics of sums and of weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from fettle.optimizer.statistics import Indices, groups_of

Array = np.ndarray[Any, Any]


def times(drawn: Indices, groups: int) -> Array:
    """How often each group was drawn: `[..., draws]` -> `[..., groups]`."""
    flat = drawn.reshape(-1, drawn.shape[-1])
    codes = flat + groups * np.arange(len(flat))[:, None]
    counts = np.bincount(codes.reshape(-1), minlength=len(flat) * groups)
    return counts.reshape(*drawn.shape[:-1], groups).astype(np.float64)


def by_group(matrix: Array) -> Array:
    """Sums over the items of each group: `[items, k]` -> `[groups, k]`."""
    group = groups_of(len(matrix))
    totals = np.zeros((int(group.max(initial=-1)) + 1, matrix.shape[1]))
    np.add.at(totals, group, matrix)
    return totals
