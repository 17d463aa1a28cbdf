"""Training items: split into those that teach and those held out, and brought to the model batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fettle.api.signature import Signature
from fettle.errors import RecipeError
from fettle.optimizer.measure.items import MappedItems, digests
from fettle.optimizer.training.augment import Augmenter
from fettle.runtimes.base import Array
from fettle.runtimes.torchscript import to_tensor
from fettle.store.arrays import Texts

LEAST_ITEMS = 20  # distinct ones; fewer are neither enough to learn from nor to hold some out
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 1000


@dataclass(frozen=True)
class TrainingItems:
    """Items with their labels, if there are any: `teaching` and `held_out` are places of the two parts, in the order of their content.

    `augmenter` changes those that teach, and only while they do.
    """

    items: MappedItems
    labels: Array | Texts | None
    teaching: tuple[int, ...]
    held_out: tuple[int, ...]
    augmenter: Augmenter | None = None

    @property
    def signature(self) -> Signature:
        """Of the model that takes them."""
        return self.items.signature

    def tensors(self, places: Sequence[int]) -> list[torch.Tensor]:
        """What the model takes for these items in one run, in the order of its inputs."""
        feed = self.items.feed(places)
        return [to_tensor(feed[tensor.name]) for tensor in self.signature.inputs]

    def seen(self, places: Sequence[int], drawn: Sequence[int]) -> list[torch.Tensor]:
        """What the model takes for these items in one run while it learns; `drawn` are the numbers from which random changes follow."""
        given = self.tensors(places)
        return given if self.augmenter is None else [self.augmenter.changed(given[0], drawn)]

    def runs(self, places: Sequence[int]) -> Iterator[list[int]]:
        """`places` as they go into the model: all at once, or one by one where it takes no batch."""
        if self.signature.batchable:
            yield list(places)
        else:
            yield from ([place] for place in places)


def training_items(items: MappedItems, labels: Array | Texts | None) -> TrainingItems:
    """Hold out a tenth of the items, those of the lowest content hash: which they are depends on nothing but the items.

    Raises RecipeError where there are too few, or where a model of texts cannot be trained.
    """
    if any(isinstance(array, Texts) for array in items.arrays.values()):
        raise RecipeError("the model's inputs are texts, which have no gradients: train it without its tokenizer")
    hashes = list(digests(items))
    order = sorted(range(len(items)), key=lambda place: (hashes[place], place))
    kinds = sorted(set(hashes))  # all copies of an item go the same way
    if len(kinds) < LEAST_ITEMS:
        found = f"{len(items)} ({len(kinds)} distinct)" if len(kinds) < len(items) else f"{len(items)}"
        raise RecipeError(
            f"training needs {LEAST_ITEMS} distinct items or more, found {found}: provide more in data.training"
        )
    held_out = set(kinds[: max(min(HELD_OUT_MOST, int(len(kinds) * HELD_OUT_SHARE)), 1)])
    return TrainingItems(
        items,
        labels,
        tuple(place for place in order if hashes[place] not in held_out),
        tuple(place for place in order if hashes[place] in held_out),
    )


def batches(places: Sequence[int], size: int, seed: int, epoch: int, nodes: int = 1) -> Iterator[list[int]]:
    """`places` in an order of that epoch, `size` at a time. A last batch with one item for a node joins the one before it: it has no statistics."""
    generator = np.random.default_rng((seed, epoch))
    order = [places[index] for index in generator.permutation(len(places))]
    starts = list(range(0, len(order), size))
    if len(starts) > 1 and len(order) - starts[-1] < 2 * nodes:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        yield order[start:end]
