"""Low-rank factorization of layers: SVD of dense layers, weighted by their inputs; Tucker decomposition of convolutions.

y = W x ≈ U V x, where U V minimizes the error on the layer's real inputs: with their second moments C = S Sᵀ, the singular values of W S
rank the directions (data-aware SVD). Convolutions get a 1x1 convolution on each side of a smaller core (Kim et al., 2016).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import fx, nn

from fettle.api.training import DEFAULT_ENERGY, LowRankStep
from fettle.errors import RecipeError
from fettle.optimizer.steps import Work
from fettle.optimizer.steps.torch_replace import put
from fettle.optimizer.training.export import save
from fettle.optimizer.training.pace import BEFORE_TRAINING, least_for
from fettle.optimizer.training.program import Module, call
from fettle.optimizer.training.session import Phase, Training, parameters
from fettle.runtimes.torchscript import to_tensor

LOOKED_AT = 256  # items whose inputs to a layer are gathered
ROUNDED = 4
DAMPING = 1e-4  # of the mean variance: directions that no item brings must not be infinitely cheap


def low_rank(work: Work[LowRankStep]) -> Path:
    """Factorize every layer that becomes smaller, and train the model if there is training data. Raises RecipeError."""
    training, step = work.trained, work.step
    student = training.open(work.entry)
    dense = {name: layer for name, layer in student.named_modules() if isinstance(layer, nn.Linear)}
    moments = _moments(student, dense, training)
    if step.target_speedup is not None:
        step = _resumed(training) or _for_speedup(work, student, moments)
    changed = _factorized(student, moments, step)
    if not changed:
        raise RecipeError(f"{step.words}: no layer gets smaller at that rank; lower rank or energy")
    before = parameters(training.teacher)
    work.notes.append(f"{changed} layers are factorized: {parameters(student):,} of {before:,} parameters")
    if training.items is not None:
        training.fit(student, phase=Phase(architecture={"rank": step.rank}))
    return save(student, training.example, training.signature, work.folder / "model.pt2")


def _resumed(training: Training) -> LowRankStep | None:
    """The step with the rank of an earlier attempt that began to train; None if there is none. Timing again could choose another rank, whose
    weights have other shapes."""
    return LowRankStep(rank=training.resumed["architecture"]["rank"]) if training.resumed is not None else None


def _for_speedup(work: Work[LowRankStep], student: fx.GraphModule, moments: dict[str, torch.Tensor]) -> LowRankStep:
    """The step with the highest rank that reaches the requested speed-up. Raises RecipeError."""
    wanted, training = work.step.target_speedup or 1.0, work.trained

    def changed(share: float) -> Module:
        trial = copy.deepcopy(student)
        _factorized(trial, moments, LowRankStep(rank=1 - share))
        return trial

    rank = 1 - least_for(wanted, changed, student, training, work.folder / "timed")
    work.notes.append(f"{rank:.2f} of the full rank is the highest that was {wanted:g} times as fast {BEFORE_TRAINING}")
    return LowRankStep(rank=rank)


def _factorized(student: fx.GraphModule, moments: dict[str, torch.Tensor], step: LowRankStep) -> int:
    """Factorize layers in place, and return how many."""
    changed = 0
    for name, layer in list(student.named_modules()):
        made = None
        if isinstance(layer, nn.Linear):
            made = _dense(layer, moments[name], step)
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups == 1:
            made = _convolution(layer, step)
        if made is not None:
            put(student, name, made)
            changed += 1
    return changed


def _moments(student: Module, layers: dict[str, nn.Linear], training: Training) -> dict[str, torch.Tensor]:
    """E[x xᵀ] of the inputs of each dense layer."""
    sums = {
        name: torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64) for name, layer in layers.items()
    }
    counts = dict.fromkeys(layers, 0)

    def watch(name: str) -> object:
        def hook(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            flat = given[0].detach().reshape(-1, given[0].shape[-1]).double()
            sums[name] += flat.T @ flat
            counts[name] += len(flat)

        return layers[name].register_forward_pre_hook(hook)

    hooks = [watch(name) for name in layers]
    items = training.seen
    with torch.no_grad():
        for place in range(min(LOOKED_AT, len(items))):
            feed = items.feed([place])
            call(student, [to_tensor(feed[tensor.name]) for tensor in training.signature.inputs])
    for hook in hooks:
        hook.remove()  # type: ignore[attr-defined]
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def _rank(values: Iterable[float], full: int, step: LowRankStep) -> int:
    """How many of these singular values to keep."""
    energies = np.square(np.asarray(list(values), np.float64))
    enough = int(np.searchsorted(np.cumsum(energies), (step.energy or DEFAULT_ENERGY) * energies.sum())) + 1
    rank = enough if step.rank is None else step.rank * full
    return min(max(math.ceil(rank / ROUNDED) * ROUNDED, 1), full)


def _dense(layer: nn.Linear, moment: torch.Tensor, step: LowRankStep) -> nn.Module | None:
    """Two dense layers with fewer weights in total; None if that is not possible."""
    weight = layer.weight.detach().double()
    outputs, inputs = weight.shape
    damped = moment + DAMPING * (moment.diagonal().mean() + 1e-12) * torch.eye(inputs, dtype=torch.float64)
    root = torch.linalg.cholesky(damped)
    left, size, right = torch.linalg.svd(weight @ root, full_matrices=False)
    rank = _rank(size.tolist(), min(outputs, inputs), step)
    if rank * (outputs + inputs) >= outputs * inputs:
        return None
    first, second = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=layer.bias is not None)
    half = size[:rank].sqrt()
    narrow = torch.linalg.solve_triangular(root, half[:, None] * right[:rank], upper=False, left=False)
    with torch.no_grad():
        first.weight.copy_(narrow)
        second.weight.copy_(left[:, :rank] * half)
        if layer.bias is not None and second.bias is not None:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).to(layer.weight.dtype)


def _convolution(layer: nn.Module, step: LowRankStep) -> nn.Module | None:
    """A 1x1 convolution, a smaller core and a 1x1 convolution; None if these do not have fewer weights."""
    weight = layer.weight.detach().double()
    outputs, inputs = weight.shape[:2]
    places = weight[0, 0].numel()
    if places == 1:
        return None
    ranks = [
        _rank(torch.linalg.svdvals(weight.movedim(mode, 0).flatten(1)).tolist(), weight.shape[mode], step)
        for mode in (0, 1)
    ]
    if inputs * ranks[1] + ranks[0] * ranks[1] * places + ranks[0] * outputs >= outputs * inputs * places:
        return None
    with tensorly.backend_context("pytorch"):
        (core, factors), _ = partial_tucker(
            weight, rank=ranks, modes=[0, 1], init="svd", svd="truncated_svd", n_iter_max=50
        )
    kind = type(layer)
    first = kind(inputs, ranks[1], 1, bias=False)
    middle = kind(
        ranks[1],
        ranks[0],
        tuple(weight.shape[2:]),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        bias=False,
    )
    last = kind(ranks[0], outputs, 1, bias=layer.bias is not None)
    with torch.no_grad():
        first.weight.copy_(factors[1].T.reshape(first.weight.shape))
        middle.weight.copy_(core)
        last.weight.copy_(factors[0].reshape(last.weight.shape))
        if layer.bias is not None and last.bias is not None:
            last.bias.copy_(layer.bias)
    return nn.Sequential(first, middle, last).to(layer.weight.dtype)
