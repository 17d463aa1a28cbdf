"""A task that is learned in a second: handwritten digits of 8x8 pixels (scikit-learn's), and a small net that knows them.

Import this only where PyTorch is needed: it takes seconds.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
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
    """Convolutions, batch normalization, residual blocks, dropout, a head."""

    def __init__(self, width: int = 16, blocks: int = 2) -> None:
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
            for _ in range(blocks)
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


def other_names() -> nn.Module:
    """A smaller net whose layers have other names."""
    first = nn.Conv2d(1, 8, 3, stride=2)
    return nn.Sequential(OrderedDict(first=first, second=nn.Flatten(), third=nn.Linear(72, 10)))


class Attentive(nn.Module):
    """Attention over the rows of an image, in one of the forms in which people write it, and a block of dense layers."""

    def __init__(self, form: str = "fused", heads: int = 4, width: int = 32) -> None:
        super().__init__()
        self.form, self.heads = form, heads
        self.enter = nn.Linear(8, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.all = nn.Linear(width, 3 * width)
        self.layer = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 1, 8, 8] -> logits [N, 10]"""
        found = self.enter(image.flatten(1, 2))
        found = found + self.attended(self.norm(found))
        found = found + self.wide(found)
        scores: torch.Tensor = self.head(found.mean(1))
        return scores

    def attended(self, given: torch.Tensor) -> torch.Tensor:
        """What the heads make of the rows."""
        if self.form == "layer":
            answer: torch.Tensor = self.layer(given, given, given, need_weights=False)[0]
            return answer
        apart = (self.query, self.key, self.value)
        parts = self.all(given).chunk(3, dim=-1) if self.form == "cut" else [layer(given) for layer in apart]
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if self.form == "written":
            weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
            mixed = weights @ value
        else:
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        together: torch.Tensor = self.mix(mixed.transpose(1, 2).reshape(-1, *given.shape[1:]))
        return together


class Scaled(nn.Module):
    """A net with a second input, which is the same for all items."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """As the net, and a number of times as much."""
        scores: torch.Tensor = self.net(image) * scale
        return scores


class Outlying(nn.Module):
    """A net with one number that is 10,000, which counts nothing: with it, int8 has no steps left for the others."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net, self.head = net, nn.Linear(net.head.in_features + 1, 10)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[:, :-1] = net.head.weight
            self.head.bias.copy_(net.head.bias)
        net.head = nn.Identity()  # type: ignore[assignment]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """As the net."""
        found = self.net(image)
        scores: torch.Tensor = self.head(torch.cat([found, torch.full_like(found[:, :1], 1e4)], 1))
        return scores


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


class InPlace(Net):
    """A net that changes its values in place, as most residual nets that people use."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """As `Net`."""
        found = self.stem(image)
        for block in self.blocks:
            made = block(found)
            made += found
            found = torch.relu_(made)
        scores: torch.Tensor = self.head(self.drop(self.deep(found).mean((2, 3))))
        return scores


class Double(nn.Module):
    """A net that computes in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 1, 8, 8] -> logits [N, 10]"""
        scores: torch.Tensor = self.body(image.double()).float()
        return scores


class Deciding(Net):
    """A net that looks at its own numbers before it goes on, which no graph can."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """As `Net`."""
        scores = super().forward(image)
        return scores if float(scores.mean()) < 1e6 else -scores


def deciding() -> nn.Module:
    """A net that cannot be exported."""
    return Deciding()


class TwoHeaded(Plain):
    """A net with a second answer, from layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, 1, 8, 8] -> logits [N, 10] and [N, 3]"""
        found = self.body(image).mean((2, 3))
        return self.head(found), self.other(found)


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
