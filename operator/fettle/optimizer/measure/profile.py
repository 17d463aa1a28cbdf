"""The profile of an artifact: how the items that judged it, and its answers to them, are distributed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fettle.optimizer.measure import items as item
from fettle.store.profile import MOST_ITEMS, Distribution, FeatureProfile

MOST_BYTES = 256 << 20  # of items that are read for it


def of_items(items: item.MappedItems) -> tuple[FeatureProfile, ...]:
    """The inputs' features, from the first items."""
    seen = Distribution(items.signature.inputs)
    each = sum(array.nbytes // len(array) for array in items.arrays.values())
    most = min(MOST_ITEMS, max(1, MOST_BYTES // max(1, each)))
    for (index,) in items.batches(1, last=most):
        feed = items.feed([index])
        seen.add(
            {t.name: feed[t.name] if t.batch_axis is None else feed[t.name].take(0, t.batch_axis) for t in seen.tensors}
        )
    return seen.features()


def noting(answers: Iterable[item.Answer], seen: Distribution) -> Iterator[item.Answer]:
    """The answers as they come, the first of them added to `seen`."""
    for answer in answers:
        seen.add(answer)
        yield answer
