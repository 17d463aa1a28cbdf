"""The middle of a run: build what the candidates need, then measure them.

Each step takes the progress so far and returns the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fettle.api.optimizedmodel_status import BaselineStatus
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import MeasureReport, PrepareReport
from fettle.api.task import MeasureTask, StoredModel
from fettle.api.text import counted
from fettle.api.vocabulary import RuntimeName
from fettle.plan.run.attempts import AnyTaskProgress, notes_of
from fettle.plan.run.builds import BuildProgress, build_all, placed
from fettle.plan.run.candidates import plan_target
from fettle.plan.run.context import RunContext
from fettle.plan.run.planned import PlannedCandidate, with_notes
from fettle.plan.run.state import Stage
from fettle.plan.run.targets import TargetMeasurement, TargetProgress, incumbent_of, may_share_a_node, new_target
from fettle.plan.run.tasks import TargetFiles, measure_task, model_of


@dataclass(frozen=True)
class RunProgress:
    """The progress of builds and measurements. `tasks` are in the order of their requests; `stage`: the stage that is in progress, None if both
    are done."""

    targets: tuple[TargetProgress, ...]
    builds: Mapping[str, BuildProgress] = field(default_factory=dict)
    tasks: tuple[AnyTaskProgress, ...] = ()
    stage: Stage | None = None

    @property
    def models(self) -> dict[str, StoredModel]:
        """The files of every finished build, by the build's name."""
        return {name: build.model for name, build in self.builds.items() if build.model is not None}

    @property
    def baselines(self) -> tuple[BaselineStatus, ...]:
        """The measurement of the original on each measured target."""
        return tuple(target.baseline for target in self.targets if target.baseline is not None)


def advance(context: RunContext, prepare: PrepareReport) -> RunProgress:
    """Advance as far as the present results allow: to a stage in progress, or until every target is measured."""
    spec = context.snapshot.spec
    plans = [plan_target(spec, target, prepare, context.constraints) for target in spec.targets]
    progress = RunProgress(tuple(new_target(context, plan, prepare) for plan in plans))
    progress = _build(context, prepare, progress)
    return progress if progress.stage is not None else _measure(context, prepare, progress)


def _build(context: RunContext, prepare: PrepareReport, progress: RunProgress) -> RunProgress:
    """`progress` with the builds that the candidates need."""
    tried = [(candidate, target.target) for target in progress.targets for candidate in target.tried]
    plans = {build.plan.name: build for pair in tried if (build := placed(*pair)) is not None}
    builds = build_all(context, prepare, plans.values())
    tasks = tuple(task for build in builds.values() for task in build.tasks)
    done = sum(build.over for build in builds.values())
    stage = None
    if done < len(builds):
        stage = Stage(Reason.OPTIMIZING, with_notes(f"{done} of {len(builds)} builds done", notes_of(tasks)))
    return replace(progress, builds=builds, tasks=tasks, stage=stage)


def _measure(context: RunContext, prepare: PrepareReport, progress: RunProgress) -> RunProgress:
    """`progress` with the measurement of each target whose files exist.

    Targets that may share a node are measured one after the other, because concurrent measurements would disturb each other.
    """
    targets: list[TargetProgress] = []
    busy: list[TargetProgress] = []
    tasks: list[AnyTaskProgress] = []
    measured = 0
    for target in progress.targets:
        files = _files(target, prepare, progress.models)
        target = replace(target, twins=_twins(target, files))
        candidates = tuple(
            candidate for candidate in target.tried if candidate.name in files.keys() - target.twins.keys()
        )
        if not candidates:
            targets.append(target)
            continue
        asked = TargetFiles(target.plan, candidates, files, incumbent_of(context, target.plan))
        task = measure_task(context.snapshot, prepare, context.store, asked, context.constraints)
        over = False
        if context.attempts.made(task) or not any(may_share_a_node(target.target, other.target) for other in busy):
            measurement = _ask(context, task, target, candidates)
            target = replace(target, measurement=measurement)
            tasks.append(measurement.task)
            over = measurement.task.over
        targets.append(target)
        measured += over
        if not over:
            busy.append(target)
    stage = Stage(Reason.MEASURING, _describe(busy, measured)) if busy else None
    return replace(progress, targets=tuple(targets), tasks=(*progress.tasks, *tasks), stage=stage)


def _files(target: TargetProgress, prepare: PrepareReport, builds: Mapping[str, StoredModel]) -> dict[str, StoredModel]:
    """The files of the target's candidates, if they exist, by the candidate's name."""
    models = {candidate.name: model_of(candidate, prepare, builds) for candidate in target.tried}
    return {name: model for name, model in models.items() if model is not None}


def _twins(target: TargetProgress, files: Mapping[str, StoredModel]) -> dict[str, str]:
    """Name of a candidate -> name of an earlier one with the same file, runtime and settings: two recipes may give the same file."""
    first: dict[tuple[StoredModel, RuntimeName, RuntimeSettings], str] = {}
    twins: dict[str, str] = {}
    for candidate in target.tried:
        model, plan = files.get(candidate.name), candidate.plan
        if model is None or plan.untouched:
            continue
        name = first.setdefault((model, plan.runtime, plan.settings), candidate.name)
        if name != candidate.name:
            twins[candidate.name] = name
    return twins


def _ask(
    context: RunContext, task: MeasureTask, target: TargetProgress, candidates: tuple[PlannedCandidate, ...]
) -> TargetMeasurement:
    label = f"measure {target.target.name}"
    progress = context.attempts.ask(task, MeasureReport, stage="measure", label=label, target=target.target)
    return TargetMeasurement(candidates, progress)


def _describe(busy: Sequence[TargetProgress], measured: int) -> str:
    """'1 of 2 targets measured; measuring 9 candidates on cpu (Unschedulable: 0/1 nodes fit)'."""
    names = ", ".join(target.target.name for target in busy)
    count = sum(len(target.measuring) for target in busy)
    asked = len(busy) + measured
    done = f"{measured} of {asked} targets measured; " if asked > 1 else ""
    text = f"{done}measuring {counted(count, 'candidate')} on {names}"
    return with_notes(text, notes_of(target.measurement.task for target in busy if target.measurement is not None))
