"""Quantization-aware training (Jacob et al., 2018): layers compute as in int8 while the weights are trained.

The result is a model in float32, which the next step, static quantization, converts to int8. Its weights lie on the grid that every quantizer
uses: symmetric, one scale per output channel, the largest weight at 127. Folding batch normalization keeps them on that grid, because it
scales whole channels. So one training is enough for all runtimes, each with its own quantizer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fettle.api.recipe import QuantizeStep
from fettle.api.text import percent
from fettle.errors import RecipeError
from fettle.optimizer.steps import Work
from fettle.optimizer.steps.torch_replace import put
from fettle.optimizer.training.export import save
from fettle.optimizer.training.layers import LAYERS
from fettle.optimizer.training.program import Module, call
from fettle.optimizer.training.session import LOOKED_AT, Training

WEIGHTS, ACTIVATIONS = 127, 255  # the largest number of each in int8
INERTIA = 0.99  # of the range of activations from one step to the next
RATE_SHARE = 0.1  # of the usual learning rate: the weights are nearly right


class AwareLayer(nn.Module):
    """A layer that rounds its inputs and weights to int8; gradients pass through the rounding unchanged.

    `low` and `high` are the range of its inputs. In training mode they are updated from the items; at first they are unknown.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        """The layer's output, computed as in int8."""
        if self.training:
            self._follow(data.detach())
        if self.high > self.low:
            data = self._rounded(data)
        weights = {"weight": rounded(self.layer.weight, _axis(self.layer))}
        answer: torch.Tensor = torch.func.functional_call(self.layer, weights, (data,))
        return answer

    def _follow(self, data: torch.Tensor) -> None:
        low, high = data.amin().clamp(max=0.0), data.amax().clamp(min=0.0)
        known = bool(self.high > self.low)
        self.low.copy_(INERTIA * self.low + (1 - INERTIA) * low if known else low)
        self.high.copy_(INERTIA * self.high + (1 - INERTIA) * high if known else high)

    def _rounded(self, data: torch.Tensor) -> torch.Tensor:
        scale = (self.high - self.low) / ACTIVATIONS
        zero = torch.round(-self.low / scale).clamp(0, ACTIVATIONS).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(data.float(), scale, zero, 0, ACTIVATIONS).to(data.dtype)


def rounded(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """`weight` on the grid of int8, with a scale for each channel along `axis`. PyTorch rounds float32 only."""
    kind, weight = weight.dtype, weight.float()
    others = [each for each in range(weight.ndim) if each != axis]
    scale = weight.detach().abs().amax(dim=others).clamp(min=torch.finfo(weight.dtype).tiny) / WEIGHTS
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -WEIGHTS, WEIGHTS).to(kind)


def _axis(layer: nn.Module) -> int:
    """The axis of the output channels in the layer's weight."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


def aware(work: Work[QuantizeStep]) -> Path:
    """Train with every convolution and dense layer computing as in int8. Raises RecipeError."""
    training = work.trained
    student = training.open(work.entry)
    names = [name for name, layer in student.named_modules() if isinstance(layer, LAYERS)]
    if not names:
        raise RecipeError("the model has no convolution and no dense layer to be quantized")
    for name in names:
        put(student, name, AwareLayer(student.get_submodule(name)))
    _look(student, training)
    _require_loss(student, training)
    training.fit(student, rate_share=RATE_SHARE)
    for name in names:
        layer = student.get_submodule(name).layer
        with torch.no_grad():
            layer.weight.copy_(rounded(layer.weight, _axis(layer)))
        put(student, name, layer)
    work.notes.append(f"{len(names)} layers were trained as in int8")
    return save(student, training.example, training.signature, work.folder / "model.pt2")


def _require_loss(student: Module, training: Training) -> None:
    """Raises RecipeError where nobody asked for this training, and int8 without it is good enough."""
    most = training.tolerated
    if most is None:
        return
    changed = training.group.agreed(lambda: training.changed(student))
    if changed <= most:
        raise RecipeError(
            f"int8 without training changes {percent(max(changed, 0.0))} of the original's answers to training items, and the default plan trains "
            f"only if it changes more than {percent(most)}: a recipe with quantize mode Aware always trains"
        )


def _look(student: Module, training: Training) -> None:
    """Set the range of each layer's inputs before the first evaluation, without changing anything else that training mode updates."""
    layers = [layer for layer in student.modules() if isinstance(layer, AwareLayer)]
    student.eval()
    for layer in layers:
        layer.training = True
    with torch.no_grad():
        for run in training.taught.runs(training.taught.teaching[:LOOKED_AT]):
            call(student, training.taught.tensors(run))
    student.eval()
