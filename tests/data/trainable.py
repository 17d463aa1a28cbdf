"""A task that is learned in a second: handwritten digits of 8x8 pixels (scikit-learn's), and a small net that knows them.

Import this only where PyTorch is needed: it takes seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from fettle.runtimes.base import Array

SHARES = {"training": slice(0, 800), "evaluation": slice(800, 1797)}


class Net(nn.Module):
    """Convolutions, batch normalization, two residual blocks, dropout, a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )
        self.deep = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 1, 8, 8] -> logits [N, 10]"""
        found = self.stem(image)
        for block in self.blocks:
            found = torch.relu(found + block(found))
        scores: torch.Tensor = self.head(self.drop(self.deep(found).mean((2, 3))))
        return scores


@cache
def digits() -> dict[str, dict[str, Array]]:
    """`image` float32 [items, 1, 8, 8] in [0, 1], `labels` int64 [items]: in each share other items, the same ones always."""
    data = load_digits()
    order = np.random.default_rng(3).permutation(len(data.images))
    image, labels = (data.images[order, None] / 16).astype(np.float32), data.target[order].astype(np.int64)
    return {name: {"image": image[share], "labels": labels[share]} for name, share in SHARES.items()}


def learned(make: Callable[[], nn.Module] = Net, epochs: int = 6) -> nn.Module:
    """A net that has learned the training share."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module, items = make(), digits()["training"]
    image, labels = torch.from_numpy(items["image"]), torch.from_numpy(items["labels"])
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(epochs):
        for places in torch.randperm(len(labels)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(image[places]), labels[places]).backward()
            optimizer.step()
    return module.eval()


def save(module: nn.Module, path: Path) -> Path:
    """A program of torch.export that takes any number of images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    example = (torch.zeros(2, 1, 8, 8),)
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=({0: batch},)), path)
    return path


def student() -> nn.Module:
    """A net that is smaller, as a person's own."""
    return Net(width=8)


class Precise(Net):
    """A net that insists on the data type of what its layers answer."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """As `Net`; what scatters has to have the data type of what it is scattered into."""
        scores = super().forward(image)
        nothing = 0 * image.flatten(1)[:, :10]
        return nothing.scatter_add(1, torch.arange(10).expand_as(nothing), scores)


def precise() -> nn.Module:
    """A net that cannot compute in bfloat16."""
    return Precise()


def stranger() -> nn.Module:
    """A net that answers something else."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


class Doubled(Net):
    """A net that answers in another data type."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """As `Net`, in float64."""
        return super().forward(image).double()


def doubled() -> nn.Module:
    """A net whose answers are no float32."""
    return Doubled()


def picky() -> nn.Module:
    """A net that not every process of a training can make."""
    if os.environ["JOB_COMPLETION_INDEX"] == "1":
        raise OSError("a file that only the leader has")
    return Net(width=8)


def nothing() -> int:
    """No net."""
    return 0


def leaving() -> nn.Module:
    """No net, and no process either."""
    sys.exit(3)


def uneven() -> nn.Module:
    """A net that is not the same in every process of a training."""
    return Net(width=8 + int(os.environ["JOB_COMPLETION_INDEX"]))


class Plain(nn.Module):
    """A net without anything that depends on the company of an item in its batch, or on chance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 1, 8, 8] -> logits [N, 10]"""
        scores: torch.Tensor = self.head(self.body(image).mean((2, 3)))
        return scores
