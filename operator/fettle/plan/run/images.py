"""Which image a task runs in, and which candidates no image can measure together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from fettle.api import catalog, formats
from fettle.api.images import Image, build_libraries, job_image
from fettle.api.reasons import Reason
from fettle.api.task import AnyTask, BuildTask, MeasureTask, PrepareTask
from fettle.api.vocabulary import FormatName, RuntimeName
from fettle.plan.run.planned import Finding, PlannedCandidate


def image_of(task: AnyTask) -> Image:
    """The smallest image with everything that `task` needs. The plan requests no task for which there is none."""
    entry = job_image(_libraries(task))
    if entry is None:
        raise LookupError(f"no image has {', '.join(sorted(_libraries(task)))} for {task.kind}")
    return entry.image


def _libraries(task: AnyTask) -> frozenset[str]:
    if isinstance(task, PrepareTask):
        return formats.source_libraries(task.source.uri, task.source.known_format)
    if isinstance(task, BuildTask):
        return build_libraries(task.plan.family, task.plan.steps)
    if isinstance(task, MeasureTask):
        return _of_runtimes(candidate.plan.runtime for candidate in (task.baseline, *task.candidates))
    return frozenset()


def _of_runtimes(names: Iterable[RuntimeName]) -> frozenset[str]:
    return frozenset[str]().union(*(catalog.runtime(name).libraries for name in names))


def measurable(
    candidates: Iterable[PlannedCandidate], baseline: RuntimeName, format: FormatName
) -> tuple[PlannedCandidate, ...]:
    """`candidates`, of which those are rejected that no image can measure together with the original and the candidates before them.

    All candidates of a target are timed in one Job, in the same rounds as the original, whose runtime is `baseline`.
    """
    together = [baseline]
    placed: list[PlannedCandidate] = []
    for candidate in candidates:
        runtime = candidate.plan.runtime
        refusal = candidate.refusal if candidate.refusal is not None else _no_image(runtime, together, format)
        if refusal is None and runtime not in together:
            together.append(runtime)
        placed.append(replace(candidate, refusal=refusal))
    return tuple(placed)


def measured_beside(runtime: RuntimeName, candidates: Iterable[PlannedCandidate], baseline: RuntimeName) -> bool:
    """Whether the image that measures `candidates` and the original also has `runtime`."""
    tried = (candidate.plan.runtime for candidate in candidates if candidate.refusal is None)
    entry = job_image(_of_runtimes((baseline, *tried)))
    return entry is not None and catalog.runtime(runtime).libraries <= entry.libraries


def _no_image(runtime: RuntimeName, together: Sequence[RuntimeName], format: FormatName) -> Finding | None:
    """Why no image measures `runtime` with all of `together`, the original's first, and what to do."""
    if job_image(_of_runtimes((runtime, *together))) is not None:
        return None
    original, *others = together
    if job_image(_of_runtimes((runtime, original))) is not None:
        text = (
            f"no image has {runtime} together with {' and '.join(others)}, and all candidates of a target are timed in one Job: "
            f"put {runtime} into a target of its own"
        )
        return Finding(Reason.RECIPE_NOT_APPLICABLE, text)
    forms = [
        entry.format
        for entry in formats.FORMATS
        if entry.format != format
        and not entry.converted
        and job_image(_of_runtimes((runtime, entry.runtime))) is not None
    ]
    advice = f"provide the source as {' or '.join(forms)}" if forms else f"remove {runtime} from the target's runtimes"
    text = (
        f"no image has {runtime} together with {original}, which runs the original ({format}) that every candidate is timed "
        f"against: {advice}"
    )
    return Finding(Reason.RECIPE_NOT_APPLICABLE, text)
