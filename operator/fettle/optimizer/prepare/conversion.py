"""Conversions without a fallback: if no runtime serves the source itself, the portable form is compared with it on many items.

Three items reveal a wrong conversion, but not a rare fault: a branch that float32 takes differently from float64, or a missing category.
All gains are then measured against the portable form, so nothing else would notice what the conversion loses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import numpy as np

from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.errors import ConversionError
from fettle.optimizer.data.items import Items
from fettle.optimizer.measure.agreement import OutputProfile
from fettle.optimizer.reference import alike
from fettle.optimizer.sources.base import RunModel, RunnableModel
from fettle.runtimes.base import Array, Arrays

MOST_ITEMS = 1000
ALONE = 50  # a model without a batch axis is run as often
BATCH = 100
LONG_SECONDS = 60.0  # a slow model is held against fewer items
MOST_SHARE = 0.01  # of items that float32 may decide otherwise
log = logging.getLogger(__name__)


def difference(original: RunnableModel, portable: RunModel, items: Items, signature: Signature) -> str | None:
    """A sentence on how many items the portable form answers differently from `original`; None if there are none.

    Raises ConversionError (NumericalMismatch) for more than MOST_SHARE of them; RuntimeFailure.
    """
    start = time.perf_counter()
    pairs = []
    for given in _runs(items, signature):
        pairs.append((original.run(given), portable(given)))
        if time.perf_counter() - start > LONG_SECONDS:
            break
    changed = np.zeros(0, bool)
    for tensor in signature.outputs:
        profile = OutputProfile()
        for wanted, _ in pairs:
            profile.add(wanted[tensor.name])
        noise = profile.noise()
        moved = [
            not alike(np.asarray(one), np.asarray(other), noise, original.steps.get(tensor.name, 0.0))
            for wanted, found in pairs
            for one, other in _by_item(wanted[tensor.name], found[tensor.name], tensor.batch_axis)
        ]
        changed = np.array(moved) if not changed.size else changed | np.array(moved)
    count = int(changed.sum())
    log.info("the portable form answers %d of %d items differently", count, len(changed))
    if count > MOST_SHARE * len(changed):
        message = f"the converted model answers {count} of {len(changed)} items differently from the original"
        raise ConversionError(message, reason=Reason.NUMERICAL_MISMATCH)
    if not count:
        return None
    return (
        f"the portable form, which is the timed baseline, answers {count} of {len(changed)} items differently from the original: "
        "float32 rounds what the original computes in float64"
    )


def _runs(items: Items, signature: Signature) -> Iterator[Arrays]:
    """The inputs of each run: one item, or several if a batch axis was proved."""
    axes = {tensor.name: tensor.batch_axis for tensor in signature.inputs}
    if not signature.batchable:
        yield from (items.whole(index) for index in range(min(len(items), ALONE)))
        return
    for start in range(0, min(len(items), MOST_ITEMS), BATCH):
        indices = range(start, min(start + BATCH, len(items), MOST_ITEMS))
        wholes = [items.whole(index) for index in indices]
        yield {name: np.concatenate([whole[name] for whole in wholes], axis=axes[name]) for name in wholes[0]}


def _by_item(wanted: Array, found: Array, axis: int | None) -> Iterator[tuple[Array, Array]]:
    if axis is None or wanted.shape != found.shape:
        count = 1 if axis is None else wanted.shape[axis]
        yield from ((wanted, found) for _ in range(count))
        return
    yield from zip(np.moveaxis(wanted, axis, 0), np.moveaxis(found, axis, 0), strict=True)
