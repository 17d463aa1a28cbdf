"""Modules of PyTorch as people keep them beside their weights, and what makes them: copied into claims as somebody's own code."""

from __future__ import annotations

import torch
from torch import nn


class Net(nn.Module):
    """Convolution, batch normalization, dropout, a buffer, and an argument that is no tensor."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, classes)
        self.register_buffer("scale", torch.full((1,), 2.0))

    def forward(self, image: torch.Tensor, plain: bool = False) -> torch.Tensor:
        """[N, 3, H, W] -> [N, classes]"""
        found = self.norm(self.convolution(image)).relu()
        scores: torch.Tensor = self.head(self.drop(found.mean((2, 3))))
        return scores if plain else scores * self.scale


class Tied(nn.Module):
    """The table of tokens is the matrix of the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """int64 [N, T] -> [N, 20]"""
        return {"scores": self.head(self.table(tokens).mean(1))}


class Fixed(Net):
    """Counts its items in Python."""

    def forward(self, image: torch.Tensor, plain: bool = False) -> torch.Tensor:
        """[N, 3, H, W] -> [N, classes]"""
        return super().forward(image, plain).reshape(int(image.shape[0]), -1)


class Scaled(Net):
    """Takes another tensor."""

    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """[N, 3, H, W], [1] -> [N, classes]"""
        return super().forward(image) * scale


class Nameless(Net):
    """Takes whatever it is given."""

    def forward(self, *images: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] -> [N, classes]"""
        return super().forward(images[0])


def create() -> nn.Module:
    """A net of four classes."""
    return Net(4)


def tied() -> nn.Module:
    """A net with tied weights."""
    return Tied()


def fixed() -> nn.Module:
    """A net that is exported for one number of items."""
    return Fixed(4)


def scaled() -> nn.Module:
    """A net with a second input."""
    return Scaled(4)


def nameless() -> nn.Module:
    """A net whose inputs have no names."""
    return Nameless(4)


def wrapped() -> nn.Module:
    """As it is trained on several GPUs."""
    return nn.DataParallel(create())


def half() -> nn.Module:
    """In half precision."""
    return create().half()


def sized(classes: int, *, width: int = 8) -> nn.Module:
    """Needs to be told something."""
    return Net(classes * width // 8)


def unlucky() -> nn.Module:
    """Fails."""
    raise RuntimeError("no such luck")


def leaving() -> nn.Module:
    """Ends the process."""
    raise SystemExit(3)


def nothing() -> int:
    """No net."""
    return 0


def filled(make: str = "create", seed: int = 3) -> nn.Module:
    """A net with weights that are the same every time, in evaluation mode."""
    torch.manual_seed(seed)
    made: nn.Module = globals()[make]()
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):  # as after training: fresh statistics would hide a lost normalization
            layer.running_mean, layer.running_var = torch.rand(8), torch.rand(8) + 0.5
    return made.eval()
