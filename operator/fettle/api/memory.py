"""How much memory measuring is going to need: asked by the plan for the Job's request, and by the Job before it has seen a model."""

from __future__ import annotations

PROCESS_BYTES = 160 << 20  # a worker with its runtime and no model; 85 to 120 MiB were measured
COPIES = (
    3  # of a model's bytes while it loads: the file, the weights read from it, the weights as the kernels want them
)


def process_bytes(model: int) -> int:
    """Bytes of a process that has loaded a model whose files have that many."""
    return PROCESS_BYTES + COPIES * model
