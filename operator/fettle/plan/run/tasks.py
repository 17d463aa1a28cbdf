"""The tasks of a run, from the spec and the results of earlier tasks. The same input gives the same hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fettle.api import catalog, metrics
from fettle.api.constraints import Constraints
from fettle.api.data import EvaluationSpec
from fettle.api.memory import build_bytes, job_bytes
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.report import BuildEntry, BuildReport, MeasureReport, PrepareReport
from fettle.api.task import (
    AnyTask,
    BuildPlan,
    BuildTask,
    BuiltCandidate,
    CandidateVerdict,
    MeasureTask,
    PrepareTask,
    PublishTask,
    StoredModel,
)
from fettle.api.vocabulary import AgreementMode, Basis, CandidateState, Metric, SearchStrategy, UnsureItems
from fettle.plan.run.applicable import allows_lossy
from fettle.plan.run.attempts import AnyTaskProgress
from fettle.plan.run.candidates import TargetPlan, possible_builds
from fettle.plan.run.constraints import describe, metric_of
from fettle.plan.run.planned import PlannedCandidate
from fettle.plan.run.state import AnyReport, RunSnapshot


def prepare_task(spec: OptimizedModelSpec, store: str) -> PrepareTask:
    """The task that fetches, converts and splits, and returns the cache key of every build that may be needed."""
    builds = possible_builds(spec)
    return PrepareTask(store=store, source=spec.source, data=spec.data, builds=builds, publish=spec.publish)


@dataclass(frozen=True)
class BuildInput:
    """The input of a build's segment: the portable form, or the result of the segment with the cache key `follows`."""

    model: StoredModel
    follows: str | None = None


def build_task(
    segment: BuildPlan, entry: BuildEntry, given: BuildInput, prepare: PrepareReport, store: str
) -> BuildTask:
    """The task of a build's segment. Items, bound and teacher are left out if no step needs them, so that its hash does not depend on them."""
    steps = [step for step in (catalog.step(step, segment.family) for step in segment.steps) if step is not None]
    calibrated = any(step.calibrates(prepare.training is not None) for step in steps)
    bounded = any(step.bounded for step in steps)
    loss = segment.loss if bounded else None
    training = segment.holding(prepare.loss_code).training if any(step.trains for step in steps) else None
    judging = loss or training
    evaluation = resolved(judging.evaluation, prepare) if judging is not None else None
    return BuildTask(
        store=store,
        plan=segment.model_copy(update={"loss": loss, "training": training}),
        cache_key=entry.cache_key,
        portable=given.model,
        signature=prepare.signature,
        calibration=prepare.calibration if calibrated else None,
        follows=given.follows,
        evaluation=_without_labels(evaluation, prepare) if training is None else evaluation,
        original=prepare.teacher if training is not None else None,
        training=prepare.training if training is not None else None,
        native=prepare.native if any(step.converts for step in steps) else None,
    )


def _without_labels(evaluation: EvaluationSpec | None, prepare: PrepareReport) -> EvaluationSpec | None:
    """How answers are compared without labels: by the decided class, in an output whose labels are classes. Every item counts, as with labels."""
    if evaluation is None or not prepare.items.labelled or not metrics.entry(evaluation.metric).names_classes:
        return evaluation
    agreement = evaluation.agreement.model_copy(update={"unsure": UnsureItems.COUNT})
    if agreement.mode == AgreementMode.AUTO:
        output = prepare.signature.judged_output(evaluation.output)
        agreement = agreement.model_copy(update={"mode": AgreementMode.TOP_ONE, "outputs": (output,)})
    return evaluation.model_copy(update={"agreement": agreement})


@dataclass(frozen=True)
class TargetFiles:
    """The input of a target's measurement: its candidates, their files by name, and the digest of the incumbent."""

    plan: TargetPlan
    candidates: Sequence[PlannedCandidate]
    files: Mapping[str, StoredModel]
    incumbent: str | None


def measure_task(
    snapshot: RunSnapshot, prepare: PrepareReport, store: str, asked: TargetFiles, constraints: Constraints
) -> MeasureTask:
    """The task that screens, evaluates and times the candidates of a target together with the baseline."""
    spec, target = snapshot.spec, asked.plan.target
    # On a GPU the portable form may stand in for a source that its framework would run on the CPU.
    as_it_came = asked.plan.baseline.untouched or prepare.basis == Basis.PORTABLE_FORM
    baseline = prepare.original if as_it_came else prepare.portable
    exhaustive = spec.search.strategy is SearchStrategy.EXHAUSTIVE
    trained = any(catalog.trains(step) for candidate in asked.candidates for step in candidate.steps)
    return MeasureTask(
        store=store,
        target=target.name,
        threads=target.threads,
        batch_sizes=target.batch_sizes,
        source_sha256=prepare.source.sha256,
        signature=prepare.signature,
        baseline=BuiltCandidate(plan=asked.plan.baseline, model=baseline),
        candidates=tuple(
            BuiltCandidate(plan=candidate.plan, model=asked.files[candidate.name], steps=candidate.steps)
            for candidate in asked.candidates
        ),
        items=prepare.items,
        generated=prepare.generated,
        allow_lossy=allows_lossy(spec),
        screening=prepare.screening,
        evaluation=resolved(spec.data.evaluation.judging if spec.data.evaluation is not None else None, prepare),
        labels=prepare.labels,
        constraints=constraints,
        objective=spec.objective,
        places=asked.plan.places,
        exhaustive=exhaustive,
        deadline_seconds=spec.search.deadline_seconds if exhaustive else None,
        alpha=asked.plan.alpha,
        incumbent=asked.incumbent,
        seconds_per_candidate=snapshot.seconds_per_candidate,
        calibration_sha256=prepare.calibration.sha256 if prepare.calibration is not None else None,
        training_sha256=prepare.training.sha256 if trained and prepare.training is not None else None,
        tokenizer=prepare.tokenizer,
        basis=prepare.basis if as_it_came else Basis.PORTABLE_FORM,
    )


def resolved(evaluation: EvaluationSpec | None, prepare: PrepareReport) -> EvaluationSpec | None:
    """How items are judged, with the metric that Auto chose, and with the code that was fetched for a custom metric."""
    if evaluation is not None and evaluation.custom is not None and prepare.custom_code is not None:
        return evaluation.model_copy(update={"custom": evaluation.custom.holding(prepare.custom_code)})
    if evaluation is None or evaluation.metric != Metric.AUTO:
        return evaluation
    return evaluation.model_copy(update={"metric": prepare.metric or Metric.ACCURACY})


def memory_of(task: AnyTask) -> int:
    """The predicted memory of a task on its target's nodes, in bytes, from its files and items; 0 if it cannot be predicted."""
    if isinstance(task, MeasureTask):
        return job_bytes(task.baseline, task.candidates, task.items.bytes)
    return build_bytes(task) if isinstance(task, BuildTask) else 0


@dataclass(frozen=True)
class AnsweredTasks:
    """The hashes of the tasks whose results are in the report."""

    prepare: str
    builds: Sequence[str]
    measures: Sequence[str]


def answered_by(tasks: Sequence[AnyTaskProgress]) -> AnsweredTasks:
    """The tasks with results, in the order of their requests. Failed tasks have nothing to report."""
    prepare, *_ = _hashes(tasks, PrepareReport)
    return AnsweredTasks(prepare, _hashes(tasks, BuildReport), _hashes(tasks, MeasureReport))


def _hashes(tasks: Sequence[AnyTaskProgress], answer: type[AnyReport]) -> list[str]:
    return [task.task_hash for task in tasks if isinstance(task.report, answer)]


def publish_task(
    snapshot: RunSnapshot,
    rows: Sequence[CandidateStatus],
    constraints: Constraints,
    store: str,
    answered: AnsweredTasks,
) -> PublishTask:
    """The task that verifies the winners and writes the report."""
    verdicts = tuple(
        CandidateVerdict(target=row.target, candidate=row.name, state=row.state, reason=row.reason, message=row.message)
        for row in rows
    )
    return PublishTask(
        store=store,
        namespace=snapshot.namespace,
        name=snapshot.name,
        generation=snapshot.generation,
        objective=snapshot.spec.objective,
        prepare=answered.prepare,
        builds=tuple(answered.builds),
        measures=tuple(answered.measures),
        verdicts=verdicts,
        constraints=describe(constraints, metric_of(snapshot.spec)),
        bounds=constraints,
        publish=snapshot.spec.publish,
    )


def model_of(
    candidate: PlannedCandidate, prepare: PrepareReport, built: Mapping[str, StoredModel]
) -> StoredModel | None:
    """The files a row runs: the source, the portable form, or its build's; None while that is not there.

    A runtime that does not load the portable form runs the source.
    """
    if candidate.build is not None:
        return built.get(candidate.build.name)
    portable = prepare.portable.format in catalog.runtime(candidate.plan.runtime).loads
    return prepare.portable if portable and not candidate.plan.untouched else prepare.original


def selected(rows: Sequence[CandidateStatus], target: str) -> CandidateStatus | None:
    """The winner of a target, if it has one."""
    return next((row for row in rows if row.target == target and row.state == CandidateState.SELECTED), None)
