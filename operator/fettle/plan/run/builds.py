"""The builds of a run: each goes through its segments one after the other, so many builds at once as the search may run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fettle.api import catalog
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.progress import TrainingStatus
from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, PrepareReport
from fettle.api.task import BuildPlan, StoredModel
from fettle.plan.run.attempts import TaskProgress
from fettle.plan.run.context import RunContext
from fettle.plan.run.planned import Finding, PlannedCandidate
from fettle.plan.run.tasks import BuildInput, build_task


@dataclass(frozen=True)
class BuildProgress:
    """How far a build has come: made (`model`), not to be made (`refusal`: its recipe does not apply), failed for good
    (`fault`), or none of them yet. `tasks`: those of its segments that were asked for."""

    tasks: tuple[TaskProgress[BuildReport], ...] = ()
    model: StoredModel | None = None
    refusal: Finding | None = None

    @property
    def fault(self) -> Finding | None:
        """Why a segment failed for good."""
        return next((task.fault for task in self.tasks if task.fault is not None), None)

    @property
    def running(self) -> bool:
        """Whether it occupies a place."""
        return any(task.running for task in self.tasks)

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.model is not None or self.refusal is not None or self.fault is not None

    @property
    def training(self) -> TrainingStatus | None:
        """How far the segment that trains now has come."""
        return next((task.training for task in self.tasks if task.training is not None), None)


@dataclass(frozen=True)
class PlacedBuild:
    """A build; `target`: where those of its segments run that build for the device at hand."""

    plan: BuildPlan
    target: TargetSpec | None = None


def placed(candidate: PlannedCandidate, target: TargetSpec) -> PlacedBuild | None:
    """The build of a candidate of `target`: on its nodes where a step builds for the device at hand. None for the portable form."""
    if candidate.build is None:
        return None
    return PlacedBuild(candidate.build, target if _on_device(candidate.build) else None)


def _on_device(plan: BuildPlan) -> bool:
    entries = (catalog.step(step, plan.family) for step in plan.steps)
    return any(entry is not None and entry.on_device for entry in entries)


def build_all(context: RunContext, prepare: PrepareReport, plans: Iterable[PlacedBuild]) -> dict[str, BuildProgress]:
    """How far each of `plans` has come, by name. Those in front get the places that `search.parallelism` gives."""
    builds: dict[str, BuildProgress] = {}
    for each in plans:
        running = sum(build.running for build in builds.values())
        builds[each.plan.name] = _build(context, prepare, each, running < context.snapshot.spec.search.parallelism)
    return builds


def _build(context: RunContext, prepare: PrepareReport, placed_build: PlacedBuild, has_place: bool) -> BuildProgress:
    """Ask for the segments of a build, one after the other, from the first behind all that the store has.

    Without a place only what was begun goes on, and what has answered before is asked whether the store still has it: with those that
    found the loss running again, nothing would tell of it later.
    """
    entries = {entry.name: entry for entry in prepare.builds}
    chain = [(segment, entries[segment.name]) for segment in placed_build.plan.segments]
    given, behind = BuildInput(prepare.portable), 0
    for place, (_, entry) in enumerate(chain, 1):
        if entry.built is not None:
            given, behind = BuildInput(entry.built, entry.cache_key), place
    tasks: tuple[TaskProgress[BuildReport], ...] = ()
    for segment, entry in chain[behind:]:
        task = build_task(segment, entry, given, prepare, context.store)
        if not (has_place or context.attempts.made(task) or context.attempts.answered(task)):
            return BuildProgress(tasks)
        there = placed_build.target if _on_device(segment) else None
        progress = context.attempts.ask(task, BuildReport, stage="build", label=f"build {segment.name}", target=there)
        tasks = (*tasks, progress)
        report = progress.report
        if report is None:
            return BuildProgress(tasks)
        if report.built is None:
            reason = report.reason or Reason.RECIPE_NOT_APPLICABLE
            return BuildProgress(tasks, refusal=Finding(reason, report.message or "the recipe does not apply"))
        given = BuildInput(report.built, report.cache_key)
    return BuildProgress(tasks, model=given.model)
