"""PyTorch models as people write them, small, with random weights, and the files that PyTorch makes of them.

Import this only where PyTorch is needed: it takes seconds.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fettle.api.source import InputSpec
from fettle.runtimes.base import Array


class Convolutional(nn.Module):
    """Convolution, batch normalization, and a branch on the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] -> [N, 4]"""
        found = self.norm(self.convolution(image)).relu()
        if found.shape[2] > 8:
            found = torch.max_pool2d(found, 2)
        scores: torch.Tensor = self.head(self.drop(found.mean((2, 3))))
        return scores


class Block(nn.Module):
    """Attention over embedded tokens, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.projection = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [N, T] -> [N, 3]"""
        hidden = self.norm(self.table(tokens))
        query, key, value = self.projection(hidden).chunk(3, dim=-1)
        weights = torch.softmax(query @ key.transpose(1, 2) / 4.0, dim=-1)
        scores: torch.Tensor = self.head((hidden + weights @ value).mean(1))
        return scores


class Pair(nn.Module):
    """Two inputs, two outputs."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, 6], [N, 1] -> [N, 6], [N]"""
        return left * right, (left + right).sum(1)


class Spectrum(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 4] -> [N, 4]"""
        return torch.special.bessel_j0(x)


@dataclass(frozen=True)
class Example:
    """A module, the inputs to try it with (two items), what `source.inputs` says, whether the batch is dynamic."""

    module: Callable[[], nn.Module]
    inputs: dict[str, Array]
    specs: tuple[InputSpec, ...]
    dynamic: bool = True
    traced: bool = False


def _numbers(*shape: int) -> Array:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


_IMAGE, _TOKENS = _numbers(2, 3, 12, 12), np.arange(16, dtype=np.int64).reshape(2, 8)
EXAMPLES = {
    "convolutional": Example(
        Convolutional, {"image": _IMAGE}, (InputSpec(name="image", dtype="FP32", shape=("N", 3, 12, 12)),)
    ),
    "fixed_batch": Example(
        Convolutional,
        {"image": _IMAGE[:1]},
        (InputSpec(name="image", dtype="FP32", shape=(1, 3, 12, 12)),),
        dynamic=False,
    ),
    "block": Example(
        Block, {"tokens": _TOKENS}, (InputSpec(name="tokens", dtype="INT64", shape=("N", 8)),), traced=True
    ),
    "pair": Example(
        Pair,
        {"left": _numbers(2, 6), "right": _numbers(2, 1)},
        (
            InputSpec(name="left", dtype="FP32", shape=("N", 6)),
            InputSpec(name="right", dtype="FP32", shape=("N", 1)),
        ),
    ),
}
UNSUPPORTED = Example(Spectrum, {"x": _numbers(2, 4)}, (InputSpec(name="x", dtype="FP32", shape=("N", 4)),))


def module_of(example: Example) -> nn.Module:
    """The module, in evaluation mode, with the same weights every time."""
    torch.manual_seed(3)
    made = example.module()
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):  # as after training: fresh statistics would hide a lost normalization
            layer.running_mean, layer.running_var = torch.rand(8), torch.rand(8) + 0.5
    return made.eval()


def tensors(example: Example) -> tuple[torch.Tensor, ...]:
    """The example's inputs."""
    return tuple(torch.from_numpy(array) for array in example.inputs.values())


def save_script(example: Example, path: Path) -> Path:
    """A TorchScript archive, scripted or traced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = module_of(example)
        made = torch.jit.trace(module, tensors(example)) if example.traced else torch.jit.script(module)
        torch.jit.save(made, str(path))
    return path


def save_program(example: Example, path: Path) -> Path:
    """A program of torch.export."""
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} for _ in example.inputs) if example.dynamic else None
    torch.export.save(torch.export.export(module_of(example), tensors(example), dynamic_shapes=shapes), path)
    return path


@cache
def _package(name: str, threads: int) -> bytes:
    from fettle.api.recipe import OptimizeGraphStep
    from fettle.api.signature import Signature
    from fettle.api.task import DeviceForm
    from fettle.api.vocabulary import RuntimeName
    from fettle.optimizer.steps import Device, Work
    from fettle.optimizer.steps.inductor_compile import compile_program

    device = Device(RuntimeName.INDUCTOR, DeviceForm(threads=threads), Signature(inputs=(), outputs=()))
    with tempfile.TemporaryDirectory() as folder:
        entry = save_program(EXAMPLES[name], Path(folder) / "model.pt2")
        work = Work(entry=entry, folder=entry.parent, step=OptimizeGraphStep(), device=device)
        return compile_program(work).read_bytes()


def save_package(name: str, path: Path, threads: int = 1) -> Path:
    """The program of an example, compiled: once in a process, for it takes a while."""
    path.write_bytes(_package(name, threads))
    return path
