"""How much memory measuring is going to need: asked by the plan for the Job's request, and by the Job before it has seen a model."""

from __future__ import annotations

from collections.abc import Iterable

GROUP = 5  # candidates that are loaded at once beside the baseline, at most
JOB_BYTES = 400 << 20  # the measuring process itself, with what it computes intervals with
PROCESS_BYTES = 160 << 20  # a worker with its runtime and no model; 85 to 120 MiB were measured
COPIES = (
    3  # of a model's bytes while it loads: the file, the weights read from it, the weights as the kernels want them
)


def process_bytes(model: int) -> int:
    """Bytes of a process that has loaded a model whose files have that many."""
    return PROCESS_BYTES + COPIES * model


def job_bytes(baseline: int, candidates: Iterable[int], items: int) -> int:
    """Bytes that a measuring Job needs: itself, the items, the baseline and the largest candidates that are loaded at once."""
    loaded = [baseline, *sorted(candidates, reverse=True)[:GROUP]]
    return JOB_BYTES + items + sum(map(process_bytes, loaded))
