"""The tasks of a run, made from the spec and from what earlier tasks answered. The same input gives the same hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fettle.api import catalog
from fettle.api.catalog import Image
from fettle.api.constraints import Constraints
from fettle.api.memory import job_bytes
from fettle.api.optimizedmodel import EvaluationSpec, OptimizedModelSpec
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.report import BuildEntry, PrepareReport
from fettle.api.task import (
    AnyTask,
    BuildPlan,
    BuildTask,
    CandidateVerdict,
    MeasureCandidate,
    MeasureTask,
    PrepareTask,
    PublishTask,
    StoredModel,
)
from fettle.api.vocabulary import CandidateState, Metric
from fettle.plan.run.candidates import TargetPlan, allows_lossy, possible_builds
from fettle.plan.run.constraints import describe
from fettle.plan.run.planned import Row


def prepare_task(spec: OptimizedModelSpec, store: str) -> PrepareTask:
    """Fetch, convert, split; and ask for the cache key of every build that may be wanted."""
    return PrepareTask(store=store, source=spec.source, data=spec.data, builds=possible_builds(spec))


def build_task(build: BuildPlan, entry: BuildEntry, prepare: PrepareReport, store: str, calibrated: bool) -> BuildTask:
    """One recipe on the portable form. Without a step that needs them, no calibration items: its hash must not move with them."""
    return BuildTask(
        store=store,
        plan=build,
        cache_key=entry.cache_key,
        portable=prepare.portable,
        signature=prepare.signature,
        calibration=prepare.calibration if calibrated else None,
    )


def measure_task(
    spec: OptimizedModelSpec,
    plan: TargetPlan,
    prepare: PrepareReport,
    files: Mapping[str, StoredModel],
    rows: Sequence[Row],
    store: str,
    *,
    constraints: Constraints,
    places: int,
    incumbent: str | None,
    seconds_per_candidate: float,
) -> MeasureTask:
    """Screen, certify and time `rows` beside the baseline. `files`: candidate's name -> its files."""
    return MeasureTask(
        store=store,
        target=plan.target.name,
        threads=plan.target.threads,
        batch_sizes=plan.target.batch_sizes,
        source_sha256=prepare.source.sha256,
        signature=prepare.signature,
        baseline=MeasureCandidate(plan=plan.baseline, model=prepare.original),
        candidates=tuple(MeasureCandidate(plan=row.plan, model=files[row.name], steps=row.steps) for row in rows),
        items=prepare.items,
        generated=prepare.generated,
        allow_lossy=allows_lossy(spec),
        screening=prepare.screening,
        evaluation=evaluation_of(spec, prepare),
        labels=prepare.labels,
        constraints=constraints,
        objective=spec.objective,
        places=places,
        alpha=plan.alpha,
        incumbent=incumbent,
        seconds_per_candidate=seconds_per_candidate,
        calibration_sha256=prepare.calibration.sha256 if prepare.calibration is not None else None,
        basis=prepare.basis,
    )


def evaluation_of(spec: OptimizedModelSpec, prepare: PrepareReport) -> EvaluationSpec | None:
    """How items are judged, with the metric that Auto turned out to be."""
    evaluation = spec.data.evaluation
    if evaluation is None or evaluation.metric != Metric.AUTO:
        return evaluation
    return evaluation.model_copy(update={"metric": prepare.metric or Metric.ACCURACY})


def memory_of(task: MeasureTask) -> int:
    """Bytes of memory that a measuring task is going to need, predicted from its files and items."""
    return job_bytes(task.baseline, task.candidates, task.items.bytes)


def publish_task(
    spec: OptimizedModelSpec,
    constraints: Constraints,
    rows: Sequence[CandidateStatus],
    *,
    store: str,
    namespace: str,
    name: str,
    generation: int,
    prepare: str,
    builds: Sequence[str],
    measures: Sequence[str],
) -> PublishTask:
    """Check the winners and write the report. `prepare`, `builds` and `measures` are task hashes."""
    verdicts = tuple(
        CandidateVerdict(target=row.target, candidate=row.name, state=row.state, reason=row.reason, message=row.message)
        for row in rows
    )
    return PublishTask(
        store=store,
        namespace=namespace,
        name=name,
        generation=generation,
        objective=spec.objective,
        prepare=prepare,
        builds=tuple(builds),
        measures=tuple(measures),
        verdicts=verdicts,
        constraints=describe(constraints),
        bounds=constraints,
    )


def model_of(row: Row, prepare: PrepareReport, built: Mapping[str, StoredModel]) -> StoredModel | None:
    """The files a row runs: the source, the portable form, or its build's; None while that is not there.

    A runtime that does not load the portable form runs the source.
    """
    if row.plan.untouched or prepare.portable.format not in catalog.runtime(row.plan.runtime).loads:
        return prepare.original
    return prepare.portable if row.build is None else built.get(row.build.name)


def image_of(task: AnyTask) -> Image:
    """Image that has what `task` needs: a large one only where a framework of its own is needed."""
    if isinstance(task, PrepareTask):
        return catalog.source_image(task.source.uri, task.source.format)
    if isinstance(task, BuildTask):
        entries = [catalog.step(step, task.plan.family) for step in task.plan.steps]
        wanted = [entry.image for entry in entries if entry is not None]
    elif isinstance(task, MeasureTask):
        wanted = [catalog.runtime(one.plan.runtime).image for one in (task.baseline, *task.candidates)]
    else:
        wanted = []
    return next((image for image in wanted if image != Image.OPTIMIZER), Image.OPTIMIZER)


def selected(rows: Sequence[CandidateStatus], target: str) -> CandidateStatus | None:
    """The winner of a target, if it has one."""
    return next((row for row in rows if row.target == target and row.state == CandidateState.SELECTED), None)
