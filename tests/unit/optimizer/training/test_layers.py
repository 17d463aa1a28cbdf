"""The graph that is trained: layers that train as those of the module did, and values that nothing changes in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.data import trainable
from tests.unit.optimizer.training.course import Course
from torch import nn

from fettle.optimizer.training.program import call, opened

EXAMPLE = (torch.from_numpy(trainable.digits()["training"]["image"][:2]),)


class Dropping(nn.Module):
    """A convolution of which some numbers are dropped."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Conv2d(1, 8, 3), dropout

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 1, 8, 8] -> [N, 8, 6, 6]"""
        found: torch.Tensor = self.dropout(self.layer(image))
        return found


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_every_kind_of_dropout_drops_while_it_trains_and_only_then(
    course: Course, tmp_path: Path, kind: Callable[[float], nn.Module]
) -> None:
    module = Dropping(kind(0.5)).eval()
    graph = opened(trainable.save(module, tmp_path / "model.pt2"), course.prepared.signature)
    with torch.no_grad():
        torch.testing.assert_close(call(graph, EXAMPLE)[0], module(*EXAMPLE))
        graph.train()
        assert not torch.equal(call(graph, EXAMPLE)[0], call(graph, EXAMPLE)[0])


class Seen(nn.Module):
    """A value that is changed between two looks at it, in each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 1, 8, 8] -> [N, 10]"""
        found: torch.Tensor = self.layer(image.flatten(1))
        before = found * 2
        found.sub_(0.5).relu_()
        return before + found


class Part(Seen):
    """A value of which a part is changed, by another name."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 1, 8, 8] -> [N, 10]"""
        found: torch.Tensor = self.layer(image.flatten(1))
        part = found[:, :5]
        part.relu_()
        return found


class Scaled(Seen):
    """A value in float32 that is scaled by numbers of another type, and stays in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scales", torch.linspace(0.1, 0.9, 10, dtype=torch.float64))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 1, 8, 8] -> [N, 10]"""
        found: torch.Tensor = self.layer(image.flatten(1))
        return found.masked_fill_(found < 0, 0.0).mul_(self.scales)


@pytest.mark.parametrize(("kind", "left"), [(trainable.InPlace, 0), (Seen, 0), (Part, 1), (Scaled, 1)])
def test_a_graph_answers_as_its_module_whatever_that_changes_in_place(
    course: Course, tmp_path: Path, kind: type[nn.Module], left: int
) -> None:
    module = kind().eval()
    graph = opened(trainable.save(module, tmp_path / "model.pt2"), course.prepared.signature)
    with torch.no_grad():
        torch.testing.assert_close(call(graph, EXAMPLE)[0], module(*EXAMPLE))
    operators = [node.target for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert sum(one._schema.is_mutable for one in operators) == left
