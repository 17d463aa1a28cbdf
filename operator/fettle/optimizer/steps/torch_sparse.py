"""Sparse weights: the smallest are set to 0 (Han et al., 2015), or all but n of every m neighbours; the others are trained.

The graph keeps its shape. Whether it becomes faster depends on the runtime: the measurement shows it, and a note says so.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fettle.api.text import percent
from fettle.api.training import DEFAULT_SPARSITY, PruneStep
from fettle.api.vocabulary import Granularity
from fettle.errors import RecipeError
from fettle.optimizer.steps import Work
from fettle.optimizer.training.export import save
from fettle.optimizer.training.layers import LAYERS
from fettle.optimizer.training.program import Module

Masks = list[tuple[nn.Parameter, torch.Tensor]]


def magnitude(work: Work[PruneStep]) -> Path:
    """Set the smallest weights to 0. Raises RecipeError."""
    sparsity = work.step.sparsity or DEFAULT_SPARSITY
    student = work.trained.open(work.entry)
    weights = _weights(student)
    if work.step.granularity is Granularity.GLOBAL:
        bound = _bound(torch.cat([weight.detach().flatten() for weight in weights]), sparsity)
        masks = [(weight, weight.detach().abs() > bound) for weight in weights]
    else:
        masks = [(weight, weight.detach().abs() > _bound(weight, sparsity)) for weight in weights]
    work.notes.append(
        "runtimes without sparse kernels store and multiply zeros like other weights: only a compressed file gets smaller, and the measured "
        "speed-up shows whether the model gets faster"
    )
    return _trained(work, student, masks)


def n_of_m(work: Work[PruneStep]) -> Path:
    """Keep the n largest of every m neighbouring weights of an output. Raises RecipeError."""
    n, m = work.step.n, work.step.m
    if n >= m:
        raise RecipeError(f"prune NM keeps n of every m weights: n is {n}, so m must be greater, found {m}")
    student = work.trained.open(work.entry)
    masks = [(weight, _neighbours(weight, n, m)) for weight in _weights(student) if weight.shape[1] % m == 0]
    if not masks:
        raise RecipeError(f"no layer has a number of inputs that is a multiple of {m}")
    on_gpus = "GPUs may use sparse kernels; " if (n, m) == (2, 4) else ""
    work.notes.append(f"{n}:{m} sparsity: {on_gpus}no runtime on a CPU gains from it")
    return _trained(work, student, masks)


def _weights(student: Module) -> list[nn.Parameter]:
    found = {id(layer.weight): layer.weight for layer in student.modules() if isinstance(layer, LAYERS)}
    if not found:
        raise RecipeError("the model has no convolution and no dense layer whose weights could be 0")
    return list(found.values())


def _bound(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The magnitude up to which weights are set to 0."""
    flat = weight.detach().abs().flatten()
    return flat.kthvalue(max(int(flat.numel() * sparsity), 1)).values


def _neighbours(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """A mask of the n largest of every m neighbours along the inputs, as hardware requires; for a convolution, at one position of its kernel."""
    last = weight.detach().abs().movedim(1, -1)
    groups = last.reshape(*last.shape[:-1], -1, m)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.topk(n, dim=-1).indices, True)
    return kept.reshape(last.shape).movedim(-1, 1)


def _trained(work: Work[PruneStep], student: Module, masks: Masks) -> Path:
    def keep_out() -> None:
        with torch.no_grad():
            for weight, mask in masks:
                weight.mul_(mask)

    keep_out()
    work.trained.fit(student, prepared=keep_out)
    zeros = sum(int((~mask).sum()) for _, mask in masks)
    count = sum(mask.numel() for _, mask in masks)
    work.notes.append(f"{percent(zeros / count, 0)} of {count:,} weights are 0")
    return save(student, work.trained.example, work.trained.signature, work.folder / "model.pt2")
