"""The teacher of a training: what it answers to items, which is the same in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fettle.optimizer.measure.items import padded
from fettle.optimizer.training.items import TrainingItems
from fettle.optimizer.training.program import Module, call

CACHED_BYTES = 512 << 20  # of answers


@dataclass
class Teacher:
    """The teacher's answers to items, kept where they fit into memory.

    Asked in runs of one `size`: fewer rows are summed up in another order, and a training that goes on from a checkpoint asks for an item in
    other company than an undisturbed one did. `features`: how many answers there are behind the outputs, with items in front.
    """

    module: Module
    items: TrainingItems
    size: int
    features: int = 0
    _kept: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    _bytes: int = 0

    def answers(self, places: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Its answers to these items in one run."""
        if all(place in self._kept for place in places):
            return self._stacked([self._kept[place] for place in places])
        with torch.no_grad():
            runs = [self._run(places[start : start + self.size]) for start in range(0, len(places), self.size)]
        answers = tuple(torch.cat(parts, axis) for parts, axis in zip(zip(*runs, strict=True), self._axes, strict=True))
        size = sum(answer.numel() * answer.element_size() for answer in answers)
        if self.items.signature.batchable and self._bytes + size <= CACHED_BYTES:
            self._bytes += size
            for row, place in enumerate(places):
                self._kept[place] = tuple(
                    answer.movedim(axis, 0)[row].clone() for answer, axis in zip(answers, self._axes, strict=True)
                )
        return answers

    def afresh(self, given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Its answers to what was changed at random, and will not come again."""
        with torch.no_grad():
            return call(self.module, given)

    def _run(self, places: Sequence[int]) -> tuple[torch.Tensor, ...]:
        if not self.items.signature.batchable:
            return call(self.module, self.items.tensors(places))
        answers = call(self.module, self.items.tensors(padded(places, self.size)))
        return tuple(answer.narrow(axis, 0, len(places)) for answer, axis in zip(answers, self._axes, strict=True))

    @property
    def _axes(self) -> list[int]:
        return [*(tensor.batch_axis or 0 for tensor in self.items.signature.outputs), *[0] * self.features]

    def _stacked(self, rows: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.stack(parts).movedim(0, axis) for parts, axis in zip(zip(*rows, strict=True), self._axes, strict=True)
        )
