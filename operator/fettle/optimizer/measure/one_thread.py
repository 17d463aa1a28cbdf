"""Whether the original is faster with one thread, where it is no candidate itself, as a source in PyTorch is for other runtimes.

Small models often are, above all while other work uses the cores: threads of a framework wait for each other. Candidates are tried with one thread
as well, so a speed-up over an original that had to use all of them would be a gain that anybody has for nothing.
"""

from __future__ import annotations

from statistics import median

from fettle.api import catalog
from fettle.api.task import BuiltCandidate
from fettle.api.vocabulary import DeviceKind
from fettle.optimizer.measure.clock import Clock

NAME = "the original with one thread"
FASTER = 1.05  # less is within the noise of a second of timing


def with_one_thread(original: BuiltCandidate) -> BuiltCandidate | None:
    """The original with one thread; None where it has one, or where threads mean nothing."""
    plan = original.plan
    if plan.settings.threads == 1 or catalog.runtime(plan.runtime).device is DeviceKind.NVIDIA:
        return None
    settings = plan.settings.model_copy(update={"threads": 1})
    return original.model_copy(update={"plan": plan.model_copy(update={"settings": settings})})


def gain(clock: Clock) -> float:
    """How many times as fast as the original it is with one thread (`NAME`); 0 if that cannot be timed. Raises RuntimeFailure."""
    (timed,) = clock.group([NAME])
    ratios = [ratio for start in timed.ratios for ratio in start]
    return median(ratios) if ratios and timed.failure is None else 0.0
