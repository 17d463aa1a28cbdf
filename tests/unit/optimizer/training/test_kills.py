"""Whatever the technique and wherever it is killed, a training ends with the file of an undisturbed one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.optimizer.training.course import Course

from fettle.optimizer import build
from fettle.optimizer.training.checkpoints import Checkpoints
from fettle.store.cache import read_trained

STEPS: dict[str, dict[str, Any]] = {
    "structured": {"prune": {"ratio": 0.5, "iterations": 2, "importance": "Taylor"}},
    "magnitude": {"prune": {"method": "Magnitude", "sparsity": 0.6, "granularity": "Global"}},
    "two of four": {"prune": {"method": "NM"}},
    "low rank": {"lowRank": {"rank": 0.4}},
    "separable": {"replace": {"depthwiseSeparable": {"minChannels": 8}}},
    "narrow": {"distill": {"student": {"width": 0.5}}},
    "shallow": {"distill": {"student": {"depth": 0.5}}},
    "features": {"distill": {"student": {"width": 0.5}, "features": {}}},
    "for int8": {"quantize": {"mode": "Aware"}},
}
EPOCHS = 2


def killing(kept: bool) -> Callable[[Checkpoints, int, dict[str, Any]], None]:
    """What takes the place of `Checkpoints.save`: the process ends before the next checkpoint is written, or when it is `kept`."""
    save = Checkpoints.save

    def killed(checkpoints: Checkpoints, number: int, state: dict[str, Any]) -> None:
        if kept:
            save(checkpoints, number, state)
        raise KeyboardInterrupt

    return killed


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_training_killed_in_and_after_each_epoch_ends_with_the_file_of_an_undisturbed_one(
    course: Course, step: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = course.build(step, epochs=EPOCHS)
    assert undisturbed.built is not None, undisturbed.message
    for kept in (False, True) * EPOCHS:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Checkpoints, "save", killing(kept))
            course.build(step, epochs=EPOCHS)
    resumed = course.build(step, epochs=EPOCHS)
    assert resumed.built == undisturbed.built, resumed.message
    assert resumed.training is not None and undisturbed.training is not None
    assert resumed.training.curve == undisturbed.training.curve


def test_a_training_killed_while_its_model_is_kept_ends_with_the_file_of_an_undisturbed_one(
    course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = STEPS["narrow"]
    undisturbed = course.build(step, epochs=EPOCHS, seed=3)
    assert undisturbed.built is not None, undisturbed.message

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for before in ("write_trained", "write_build"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(build, before, killed)
            course.build(step, epochs=EPOCHS, seed=3)
    resumed = course.build(step, epochs=EPOCHS, seed=3)
    assert resumed.built == undisturbed.built, resumed.message
    assert resumed.training is not None and undisturbed.training is not None
    assert resumed.training.curve == undisturbed.training.curve
    kept = read_trained(course.store, resumed.cache_key)
    assert kept is not None and kept.training == resumed.training, "for the report of a run that takes it as it is"
