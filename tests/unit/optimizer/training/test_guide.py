"""The guide of the techniques: what it shows is taken by the API, and each step that it shows trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.data import trainable
from tests.docs.pages import ROOT
from tests.docs.test_snippets import LEAST, faults
from tests.unit.optimizer.training.course import Course

from fettle.api.training import CustomLossSpec
from fettle.optimizer.training import pace
from fettle.optimizer.training.losses import OwnLoss
from fettle.optimizer.training.program import Module
from fettle.optimizer.training.session import parameters

TEXT = (ROOT / "docs/guides/training.md").read_text()
SHOWN = [yaml.safe_load(line) for line in re.findall(r"(?m)^    ((?:steps|train|training): [\[{].*)$", TEXT)]
RECIPES: list[list[dict[str, Any]]] = [shown["steps"] for shown in SHOWN if "steps" in shown]
FIRST = {str(steps[0]): steps[0] for steps in RECIPES}
TECHNIQUES = {"prune", "distill", "lowRank", "replace", "quantize"}


def simple() -> torch.nn.Module:
    """A net with channels enough for every technique, in which a few directions of each layer are all that counts."""
    torch.manual_seed(0)
    net = trainable.Net(width=32)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.ndim > 1:
                left, size, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
                weight.copy_((left[:, :4] * size[:4] @ right[:4]).view_as(weight))
    return net.eval()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Course:
    return Course.of(tmp_path_factory.mktemp("shown"), simple(), judged=False)


@pytest.fixture(scope="module")
def attentive(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A net with attention."""
    return Course.of(tmp_path_factory.mktemp("attentive"), trainable.Attentive().eval(), judged=False)


def test_the_guide_shows_every_technique() -> None:
    assert {name for steps in RECIPES for step in steps for name in step} == TECHNIQUES
    assert {"train", "training"} < {key for shown in SHOWN for key in shown}


@pytest.mark.parametrize("step", FIRST.values(), ids=list(FIRST))
def test_a_step_of_the_guide_trains(
    shown: Course, attentive: Course, step: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_models.py").write_text("from tests.data.trainable import student as small\n")
    monkeypatch.syspath_prepend(tmp_path)

    def work(module: Module, *_: object) -> float:
        """What a model costs on a clock that nothing disturbs."""
        return float(parameters(module))

    monkeypatch.setattr(pace, "_seconds", work)
    report = (attentive if "Heads" in str(step) else shown).build(step, epochs=1)
    assert report.built is not None, report.message
    assert report.training is not None


@pytest.mark.parametrize("steps", RECIPES, ids=str)
def test_a_recipe_of_the_guide_is_taken(steps: list[dict[str, Any]]) -> None:
    assert faults("OptimizedModel", {"recipes": [{"name": "shown", "steps": steps}]}) == []


@pytest.mark.parametrize("part", [shown for shown in SHOWN if "steps" not in shown], ids=str)
def test_parameters_of_the_guide_are_taken(part: dict[str, Any]) -> None:
    spec: dict[str, Any] = {"data": {**LEAST["OptimizedModel"]["data"], **part}}
    if "train" in part:
        spec = {"recipes": [{"name": "shown", "steps": [{"prune": {}}], **part}]}
    assert faults("OptimizedModel", spec) == []


def test_the_loss_of_the_guide_falls_where_answers_are_nearer() -> None:
    (code,) = re.findall(r"(?s)```python\n(.*?)```", TEXT)
    labels = np.arange(12) % 3
    loss = OwnLoss.of(CustomLossSpec(code=code), ("scores",), labels)
    near = torch.from_numpy(np.eye(3, dtype=np.float32)[labels]).requires_grad_()
    places = range(12)
    assert float(loss.loss((near * 4,), places).detach()) < float(loss.loss((near,), places).detach())
