"""How much memory measuring is going to need: asked by the plan for the Job's request, and by the Job before it has seen a model."""

from __future__ import annotations

from collections.abc import Iterable

from fettle.api import catalog
from fettle.api.task import BuildTask, BuiltCandidate

GROUP = 5  # candidates that are loaded at once beside the baseline, at most
JOB_BYTES = 400 << 20  # the measuring process itself, with what it computes intervals with
COMPILER_BYTES = 1 << 30  # of PyTorch's compiler and the C++ compiler, beside the model
# Copies of a model's bytes while it loads: the file, the weights read from it, and the weights as the kernels want them.
COPIES = 3


def process_bytes(candidate: BuiltCandidate) -> int:
    """Bytes of a process that has loaded this candidate's model in its runtime. Each further stream may have weights of its own."""
    copies = COPIES + candidate.plan.settings.streams - 1
    return catalog.runtime(candidate.plan.runtime).process_bytes + copies * candidate.model.bytes


def build_bytes(task: BuildTask) -> int:
    """Bytes that a Job needs which builds for the device that it runs on: itself, and a process that has loaded the model."""
    row = catalog.runtime(task.plan.family)
    compiling = COMPILER_BYTES if row.compiled else 0
    return JOB_BYTES + row.process_bytes + compiling + COPIES * task.portable.bytes


def job_bytes(baseline: BuiltCandidate, candidates: Iterable[BuiltCandidate], items: int) -> int:
    """Bytes that a measuring Job needs: itself, the items, the baseline and the largest candidates that are loaded at once."""
    loaded = sorted(map(process_bytes, candidates), reverse=True)[:GROUP]
    return JOB_BYTES + items + process_bytes(baseline) + sum(loaded)
