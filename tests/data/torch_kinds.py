"""Boundaries of PyTorch models as people write them: each module is one linear layer with something around it that breaks tools.

Import this only where PyTorch is needed: it takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple  # noqa: UP035  TorchScript reads these from the source

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """What the others share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Linear(4, 3)


class Defaults(Layer):
    def forward(self, x: Tensor, times: int = 2, mask: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        found: Tensor = self.layer(x) * times
        return found if mask is None else found * mask


class Unused(Layer):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


class Keys(Layer):
    def forward(self, x: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        found = self.layer(x)
        return {"logits": found, "probabilities": found.softmax(1)}


class Nested(Layer):
    def forward(self, answer: Tensor) -> Tuple[Tensor, List[Tensor]]:  # noqa: UP006
        found = self.layer(answer)
        return found, [found + 1, found.argmax(1)]


class HandedOn(Layer):
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        return self.layer(x), x


class Gathered(Layer):
    def forward(self, features: Dict[str, Tensor], *, scale: Tensor) -> Tensor:  # noqa: UP006
        found: Tensor = self.layer(features["a"]) * features["b"] * scale
        return found


class Chosen(Layer):
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        found = self.layer(x)
        return found, found.argmax(1)


class Tokens(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.layer(self.table(tokens).mean(1))
        return found


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.convolution = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.max_pool2d(self.convolution(x), 2, 2, ceil_mode=True)


class Several(Layer):
    def forward(self, xs: List[Tensor]) -> Tensor:  # noqa: UP006
        found: Tensor = self.layer(xs[0])
        return found


class Count(Layer):
    def forward(self, x: Tensor) -> Tuple[Tensor, int]:  # noqa: UP006
        return self.layer(x), x.shape[0]


class Wave(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.layer(x))


class Twin(Layer):
    def forward(self, x: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        return {"x": self.layer(x)}


class Changing(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        found: Tensor = self.layer(x) + self.calls
        return found


class Buckets(nn.Module):
    """PyTorch rounds down; the exporter for scripts (2.15) writes ONNX's Div, which rounds integers towards zero."""

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        return (x - start) // 3


class Shared(Layer):
    def forward(self, x: Tensor, parts: Tensor) -> Tensor:
        found: Tensor = self.layer(x) + torch.full_like(parts, 12) // parts  # dividing by zero raises
        return found


class Normalized(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(self.norm(x))
        return found


@dataclass(frozen=True)
class Call:
    """A module and how torch.export is to call it."""

    module: Callable[[], nn.Module]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    shapes: Any = None
    training: bool = False


_BATCH = {0: torch.export.Dim("batch", min=1, max=64)}
_X = torch.linspace(0, 1, 8).reshape(2, 4)
CALLS = {
    "Chosen": Call(Chosen, (_X[:1],)),
    "Gathered": Call(
        Gathered,
        ({"a": _X, "b": torch.ones(2, 1)},),
        {"scale": torch.ones(2, 1)},
        {"features": {"a": _BATCH, "b": _BATCH}, "scale": _BATCH},
    ),
    "HandedOn": Call(HandedOn, (_X,), shapes=(_BATCH,)),
    "Defaults": Call(Defaults, (_X, 3, None), shapes=(_BATCH, None, None)),
    "Tokens": Call(Tokens, (torch.ones(2, 8, dtype=torch.int64),), shapes=(_BATCH,)),
    "Pooled": Call(Pooled, (torch.ones(2, 1, 8, 8),), shapes=({**_BATCH, 2: 2 * torch.export.Dim("half", min=4, max=32)},)),
    "Count": Call(Count, (_X,)),
    "Wave": Call(Wave, (_X,), shapes=(_BATCH,)),
    "Twin": Call(Twin, (_X,), shapes=(_BATCH,)),
    "Changing": Call(Changing, (_X,), shapes=(_BATCH,)),
    "Normalized": Call(Normalized, (_X,), shapes=(_BATCH,), training=True),
}  # fmt: skip


def save_script(name: str, path: Path) -> None:
    """The module of that name as TorchScript."""
    torch.jit.script(globals()[name]().eval()).save(str(path))


def save_program(name: str, path: Path) -> None:
    """The module of that name as a program of torch.export."""
    call = CALLS[name]
    module = call.module().train(call.training)
    torch.export.save(torch.export.export(module, call.args, call.kwargs, dynamic_shapes=call.shapes), path)
