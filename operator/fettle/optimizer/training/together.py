"""Processes that train one student together, each on its part of every batch (torch.distributed, gloo).

All of them run the same steps and hold the same weights. The first, the leader, judges the epochs and writes to the store. A process that is
alone does nothing of what is here.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from fettle.api.task import LEADER_VARIABLE
from fettle.api.text import quoted
from fettle.errors import RecipeError, RuntimeFailure, WorkerLostError
from fettle.optimizer import ranks

TIMEOUT = timedelta(minutes=30)  # until all pods are there; and while the leader judges an epoch or exports the model
log = logging.getLogger(__name__)
JsonT = TypeVar("JsonT")
MadeT = TypeVar("MadeT")


@dataclass(frozen=True)
class Group:
    """The process `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that judges and writes."""
        return self.rank == 0

    def part(self, places: Sequence[int]) -> Sequence[int]:
        """Its part of a batch."""
        return places[self.rank :: self.size]

    def add(self, weights: Sequence[torch.nn.Parameter], loss: float) -> float:
        """Add up the gradients of all processes, in place, and their losses."""
        if self.size == 1:
            return loss
        given = torch.tensor([float(weight.grad is not None) for weight in weights])
        own = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        whole = torch.cat([given, torch.tensor([loss]), *(gradient.flatten() for gradient in own)])
        with _reaching():
            distributed.all_reduce(whole)
        known, total, *rest = whole.split([len(weights), 1, *(weight.numel() for weight in weights)])
        for weight, some, gradient in zip(weights, known, rest, strict=True):
            weight.grad = gradient.view_as(weight).to(weight.dtype) if some else None
        return float(total)

    def any(self, here: bool) -> bool:
        """Whether it holds in any process."""
        if self.size == 1:
            return here
        found = torch.tensor([float(here)])
        with _reaching():
            distributed.all_reduce(found)
        return bool(found)

    def share(self, tensors: Iterable[torch.Tensor], source: int = 0) -> None:
        """Give every process what the leader, or another, has in these tensors: sums of floats are not the same on every machine."""
        if self.size > 1:
            with torch.no_grad(), _reaching():
                for tensor in tensors:
                    flat = tensor.detach().contiguous().reshape(-1)
                    distributed.broadcast(flat.view(torch.uint8), source)  # gloo knows few types of numbers
                    tensor.detach().copy_(flat.view_as(tensor))

    def agreed(self, make: Callable[[], JsonT]) -> JsonT:
        """What `make` returns in the leader, as JSON has it: only there it is called. Raises RecipeError everywhere if it does there."""
        if self.size == 1:
            return make()
        told: dict[str, Any] = {}
        if self.leads:
            try:
                told = {"value": make()}
            except (RecipeError, RuntimeFailure) as error:
                told = {"refused": error.message}
        told = json.loads(self._said(json.dumps(told).encode(), 0))
        if "refused" in told:
            raise RecipeError(told["refused"])
        value: JsonT = told["value"]
        return value

    def every(self, make: Callable[[], MadeT]) -> MadeT:
        """What `make` returns here, once it has returned in all processes. Raises RecipeError in all of them if it does in any."""
        if self.size == 1:
            return make()
        made, refused = [], ""
        try:
            made.append(make())
        except RecipeError as error:
            refused = error.message
        self.refuse(refused)
        return made[0]

    def refuse(self, here: str) -> None:
        """Raises RecipeError in all processes if any has a reason; `here`: that of this one, or empty. The leader's answer counts."""
        for rank in range(self.size if self.size > 1 else 0):
            reason: str = json.loads(self._said(json.dumps(here).encode(), rank))
            if reason:
                raise RecipeError(reason)

    def _said(self, text: bytes, source: int) -> bytes:
        """What one process says: its length first. No pickle goes from one pod to another."""
        size = torch.tensor([len(text)])
        self.share([size], source)
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == source:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self.share([content], source)
        return bytes(content.numpy())


ALONE = Group()


@contextmanager
def joined(nodes: int) -> Iterator[Group]:
    """The group of `nodes` processes, which this process has joined. Raises RecipeError outside of a cluster, WorkerLostError."""
    if nodes == 1:
        yield ALONE
        return
    leader = os.environ.get(LEADER_VARIABLE)
    if leader is None:
        raise RecipeError(
            f"train.nodes: {nodes} needs a cluster, where each node is a pod: set it to 1 to train on this machine"
        )
    group = Group(ranks.rank(), nodes)
    log.info("process %d of %d, waiting for the others at %s", group.rank, nodes, leader)
    with _reaching():
        distributed.init_process_group(
            "gloo", init_method=f"tcp://{leader}", rank=group.rank, world_size=nodes, timeout=TIMEOUT
        )
    try:
        yield group
    finally:
        distributed.destroy_process_group()


@contextmanager
def _reaching() -> Iterator[None]:
    """What is said to other processes arrives, or the attempt ends."""
    try:
        yield
    except RuntimeError as error:  # whatever gloo, or the store of the rendezvous, is told by the network
        message = (
            "another process of this training cannot be reached; the next attempt goes on from the last checkpoint"
        )
        raise WorkerLostError(f"{message} ({quoted(error)})") from error
