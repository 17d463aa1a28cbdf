"""How much of a model has to go for it to be so many times as fast, found by the clock before anything is trained.

The model runs in ONNX Runtime on this machine, with one item and one thread. What counts is the thread's time on the processor, so that other work
on the machine does not make a model slower. It is a first guess: what the step made is measured like every candidate.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from fettle.api.catalog import PORTABLE_RUNTIME
from fettle.api.recipe import RuntimeSettings
from fettle.errors import RecipeError, RuntimeFailure
from fettle.optimizer.training.export import as_onnx
from fettle.optimizer.training.program import Module
from fettle.optimizer.training.session import Training
from fettle.runtimes import base

LEAST, MOST = 0.05, 0.875  # with less than an eighth of its channels a layer has none left to round to
STEPS = 5
ROUNDS, SECONDS = 5, 0.1
# What the clock here says is no promise: the candidate is measured.
BEFORE_TRAINING = "in ONNX Runtime, before it was trained"
log = logging.getLogger(__name__)


def least_for(
    wanted: float, changed: Callable[[float], Module], original: Module, training: Training, folder: Path
) -> float:
    """The smallest share with which `changed` is `wanted` times as fast as `original`. Raises RecipeError where none is.

    Of several processes that train together, one looks at its clock.
    """
    return training.group.agreed(lambda: _found(wanted, changed, original, training, folder))


def _found(
    wanted: float, changed: Callable[[float], Module], original: Module, training: Training, folder: Path
) -> float:
    before = _seconds(original, training, folder / "original")

    def speedup(share: float) -> float:
        found = before / _seconds(changed(share), training, folder / f"{share:.4f}")
        log.info("share %.3f: %.2f times as fast", share, found)
        return found

    low, high = LEAST, MOST
    most = speedup(high)
    if most < wanted:
        raise RecipeError(
            f"targetSpeedup {wanted:g} cannot be reached: even with a share of {MOST:g} removed it is {most:.2f} times as fast"
        )
    for _ in range(STEPS):
        middle = (low + high) / 2
        if speedup(middle) >= wanted:
            high = middle
        else:
            low = middle
    return high


def _seconds(module: Module, training: Training, folder: Path) -> float:
    """Of one run: the median of rounds."""
    try:
        model = as_onnx(module.eval(), training.example, training.signature, folder)
        opened = base.get(PORTABLE_RUNTIME).load(model, RuntimeSettings(threads=1), training.signature)
    except RuntimeFailure as error:
        raise RecipeError(f"it cannot be timed: {error.message}") from error
    feed = training.seen.feed([0])
    opened.infer(feed)
    times = []
    for _ in range(ROUNDS):
        runs, started = 0, time.thread_time()
        while time.thread_time() - started < SECONDS:
            opened.infer(feed)
            runs += 1
        times.append((time.thread_time() - started) / runs)
    opened.close()
    return median(times)
