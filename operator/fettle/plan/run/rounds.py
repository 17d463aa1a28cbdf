"""The middle of a run: build, measure, and where a first answer asks for it, a second round of both.

A value that says how far the run has come goes from step to step; each returns the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fettle.api.optimizedmodel_status import BaselineStatus
from fettle.api.reasons import Reason
from fettle.api.report import MeasureReport, PrepareReport
from fettle.api.task import MeasureTask, StoredModel
from fettle.plan.run.attempts import AnyTaskProgress, notes_of
from fettle.plan.run.builds import BuildProgress, build_all
from fettle.plan.run.candidates import plan_target
from fettle.plan.run.context import RunContext
from fettle.plan.run.planned import with_notes
from fettle.plan.run.state import Stage
from fettle.plan.run.targets import (
    RoundMeasurement,
    TargetProgress,
    begin_first_round,
    begin_second_round,
    incumbent_of,
    may_share_a_node,
    new_target,
)
from fettle.plan.run.tasks import RoundPlan, measure_task, model_of


@dataclass(frozen=True)
class RunProgress:
    """How far builds and measurements have come. `tasks` in the order they were asked for; `stage`: the one that waits,
    None where nothing does."""

    targets: tuple[TargetProgress, ...]
    builds: Mapping[str, BuildProgress] = field(default_factory=dict)
    tasks: tuple[AnyTaskProgress, ...] = ()
    stage: Stage | None = None

    @property
    def models(self) -> dict[str, StoredModel]:
        """The files of every build that is made, by the build's name."""
        return {name: build.model for name, build in self.builds.items() if build.model is not None}

    @property
    def baselines(self) -> tuple[BaselineStatus, ...]:
        """The original as it was measured, on each target where it was."""
        return tuple(target.baseline for target in self.targets if target.baseline is not None)


def advance(context: RunContext, prepare: PrepareReport) -> RunProgress:
    """Go on as far as the answers reach: to the stage that waits, or until both rounds are over."""
    spec = context.snapshot.spec
    plans = [plan_target(spec, target, prepare, context.constraints) for target in spec.targets]
    progress = RunProgress(tuple(new_target(context, plan, prepare) for plan in plans))
    progress = replace(progress, targets=tuple(begin_first_round(target) for target in progress.targets))
    progress = _round(context, prepare, progress)
    if progress.stage is not None:
        return progress
    items = prepare.items.items
    second = tuple(begin_second_round(target, progress.builds, items) for target in progress.targets)
    return _round(context, prepare, replace(progress, targets=second))


def _round(context: RunContext, prepare: PrepareReport, progress: RunProgress) -> RunProgress:
    """Build and measure what the targets try."""
    progress = _build(context, prepare, progress)
    return progress if progress.stage is not None else _measure(context, prepare, progress)


def _build(context: RunContext, prepare: PrepareReport, progress: RunProgress) -> RunProgress:
    """`progress` with the builds that this round needs."""
    tried = [candidate for target in progress.targets for candidate in target.tried]
    plans = {candidate.build.name: candidate.build for candidate in tried if candidate.build is not None}
    builds = build_all(context, prepare, plans.values())
    tasks = [task for build in builds.values() for task in build.tasks]
    done = sum(build.over for build in builds.values())
    stage = None
    if done < len(builds):
        stage = Stage(Reason.OPTIMIZING, with_notes(f"{done} of {len(builds)} builds done", notes_of(tasks)))
    return RunProgress(progress.targets, {**progress.builds, **builds}, (*progress.tasks, *tasks), stage)


def _measure(context: RunContext, prepare: PrepareReport, progress: RunProgress) -> RunProgress:
    """`progress` with this round's measurement of each target whose files are there.

    Targets that may share a node are measured one after the other: two clocks on one node would time each other.
    """
    targets: list[TargetProgress] = []
    busy: list[TargetProgress] = []
    tasks: list[AnyTaskProgress] = []
    measured = 0
    for target in progress.targets:
        asked = _round_of(context, prepare, target, progress.models)
        if asked is None:
            targets.append(target)
            continue
        task = measure_task(context.snapshot, prepare, context.store, asked)
        over = False
        if context.attempts.made(task) or not any(may_share_a_node(target.target, other.target) for other in busy):
            measurement = _ask(context, task, target, asked)
            target = replace(target, measurements=(*target.measurements, measurement))
            tasks.append(measurement.task)
            over = measurement.task.over
        targets.append(target)
        measured += over
        if not over:
            busy.append(target)
    stage = Stage(Reason.MEASURING, _describe(busy, measured)) if busy else None
    return RunProgress(tuple(targets), progress.builds, (*progress.tasks, *tasks), stage)


def _round_of(
    context: RunContext, prepare: PrepareReport, target: TargetProgress, builds: Mapping[str, StoredModel]
) -> RoundPlan | None:
    """What this round's measurement of a target is asked; None where there is nothing to measure, or nothing comes of it."""
    models = {candidate.name: model_of(candidate, prepare, builds) for candidate in target.tried}
    files = {name: model for name, model in models.items() if model is not None}
    candidates = [candidate for candidate in target.tried if candidate.name in files]
    if not candidates or target.fault is not None:
        return None
    return RoundPlan(
        plan=target.plan,
        candidates=candidates,
        files=files,
        constraints=target.rules.constraints,
        places=target.places,
        incumbent=incumbent_of(context, target.plan) if target.round == 1 else None,
    )


def _ask(context: RunContext, task: MeasureTask, target: TargetProgress, asked: RoundPlan) -> RoundMeasurement:
    label = f"measure {target.target.name}"
    progress = context.attempts.ask(task, MeasureReport, stage="measure", label=label, target=target.target)
    return RoundMeasurement(tuple(asked.candidates), progress)


def _describe(busy: Sequence[TargetProgress], measured: int) -> str:
    """'1 of 2 targets measured; measuring 9 candidates on cpu (Unschedulable: 0/1 nodes fit)'."""
    names = ", ".join(target.target.name for target in busy)
    count = sum(len(target.measuring) for target in busy)
    asked = len(busy) + measured
    done = f"{measured} of {asked} targets measured; " if asked > 1 else ""
    text = f"{done}measuring {count} candidate{'' if count == 1 else 's'} on {names}"
    return with_notes(text, notes_of(measurement.task for target in busy for measurement in target.measurements))
