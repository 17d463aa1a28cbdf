"""What the objective Throughput adds to a plan: candidates that run several inferences at a time."""

from __future__ import annotations

from dataclasses import replace

from fettle.api import catalog
from fettle.plan.run.planned import PlannedCandidate

GPU_STREAMS = 2


def with_streams(planned: PlannedCandidate, threads: int) -> tuple[PlannedCandidate, ...]:
    """The candidate, and a variant with as many concurrent inferences as there are threads, with one thread each.

    An engine has no threads: its variant copies one inference to and from the GPU while another is computed.
    """
    if catalog.runs_engines(planned.plan.runtime):
        return planned, _streaming(planned, GPU_STREAMS, planned.plan.settings.threads)
    if threads == 1 or planned.plan.settings.threads != threads:
        return (planned,)
    return planned, _streaming(planned, threads, 1)


def _streaming(planned: PlannedCandidate, streams: int, threads: int) -> PlannedCandidate:
    settings = planned.plan.settings.model_copy(update={"threads": threads, "streams": streams})
    update = {"name": f"{planned.name}-{streams}streams", "settings": settings}
    return replace(planned, plan=planned.plan.model_copy(update=update))
