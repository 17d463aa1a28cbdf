"""Random changes of images while a model trains.

What is drawn follows from the seed, the epoch and the place in it, not from a generator's state: a training that goes on from a checkpoint sees the
same images as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fettle.api.signature import Signature
from fettle.api.vocabulary import Augmentation
from fettle.errors import RecipeError

CHANNELS = (1, 3, 4)  # of images: grey, in colours, with another beside them
SMALLER = 0.2  # at most: what a crop leaves out of each side
SHIFTED = 0.125  # at most, of each side
NOISE = 0.02  # of the standard deviation of the images of a batch
FLIPS = {Augmentation.HORIZONTAL_FLIP: -1, Augmentation.VERTICAL_FLIP: -2}


@dataclass(frozen=True)
class Augmenter:
    """Changes images of [N, C, H, W], or with `channels_last` of [N, H, W, C]."""

    names: frozenset[Augmentation]
    channels_last: bool

    def changed(self, images: torch.Tensor, drawn: Sequence[int]) -> torch.Tensor:
        """Each image changed in a way of its own; `drawn` are the numbers that all of it follows from."""
        random = np.random.default_rng(drawn)
        moved = (images.movedim(-1, 1) if self.channels_last else images).float()
        for name, axis in FLIPS.items():
            if name in self.names:
                chosen = torch.from_numpy(random.random(len(moved)) < 0.5).reshape(-1, 1, 1, 1)
                moved = torch.where(chosen, moved.flip(axis), moved)
        if self.names & {Augmentation.CROP, Augmentation.SHIFT}:
            moved = self._cut(moved, random)
        if Augmentation.NOISE in self.names:
            noise = torch.from_numpy(random.standard_normal(tuple(moved.shape), np.float32))
            moved = moved + NOISE * moved.std() * noise
        changed = moved.movedim(1, -1) if self.channels_last else moved
        return changed.to(images.dtype).contiguous()

    def _cut(self, images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        """Another part of each image, scaled to the same size. What lies outside has the values of the edge, whatever black is here."""
        count = len(images)
        size = np.ones(count) if Augmentation.CROP not in self.names else 1 - SMALLER * random.random(count)
        centre = (1 - size)[:, None] * random.uniform(-1, 1, (count, 2))  # an image reaches from -1 to 1
        if Augmentation.SHIFT in self.names:
            centre = centre + 2 * SHIFTED * random.uniform(-1, 1, (count, 2))
        window = np.zeros((count, 2, 3), np.float32)
        window[:, 0, 0] = window[:, 1, 1] = size
        window[:, :, 2] = centre
        grid = functional.affine_grid(torch.from_numpy(window), list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def augmenter(
    names: Sequence[Augmentation], signature: Signature, example: Sequence[torch.Tensor], labels: Any
) -> Augmenter | None:
    """What changes the items of a model; None where nothing is asked for. `example`: what one run takes; `labels`: an array, or None.

    Raises RecipeError where the items are no images, or where labels would no longer be right.
    """
    if not names:
        return None
    found = ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in signature.inputs)
    shape, only = tuple(example[0].shape), signature.inputs[0]
    axes = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] in CHANNELS]
    if len(example) > 1 or only.batch_axis not in (0, None) or not example[0].is_floating_point() or not axes:
        raise RecipeError(
            "data.training.augment changes images: expected one floating-point input [N, C, H, W] or [N, H, W, C] with "
            f"1, 3 or 4 channels, found {found}; leave it out"
        )
    moving = [name for name in names if name is not Augmentation.NOISE]
    if moving and getattr(labels, "ndim", 1) > 2:
        raise RecipeError(
            f"data.training.augment: {', '.join(moving)} would move images and not their labels, which are "
            f"{list(labels.shape[1:])} for each item: use Noise alone, or leave out the labels"
        )
    return Augmenter(frozenset(names), channels_last=axes[0] == 3)
