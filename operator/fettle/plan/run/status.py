"""The status of a run, derived at every decision: candidates, conditions, published artifacts, and Events for changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fettle.api import catalog
from fettle.api.bounds import is_unsteady
from fettle.api.conditions import (
    CONVERTED,
    MEASURED,
    READY,
    RECONCILING,
    SOURCE_RESOLVED,
    STALLED,
    Condition,
    find,
    with_condition,
)
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.optimizedmodel_status import ArtifactStatus, CandidateStatus, OptimizedModelStatus, Placement
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport
from fettle.api.summary import size
from fettle.api.task import StoredModel
from fettle.api.text import clip, counted
from fettle.api.uris import Address
from fettle.api.vocabulary import CandidateState
from fettle.plan import timestamps
from fettle.plan.events import EventDraft
from fettle.plan.run.attempts import AnyTaskProgress
from fettle.plan.run.builds import BuildProgress
from fettle.plan.run.context import RunContext
from fettle.plan.run.devices import gpu_resources
from fettle.plan.run.figures import shown
from fettle.plan.run.planned import Finding, PlannedCandidate
from fettle.plan.run.progress import RunProgress
from fettle.plan.run.state import RunSnapshot, Stage
from fettle.plan.run.targets import TargetProgress
from fettle.plan.run.tasks import model_of

IN_PROGRESS = frozenset({Reason.PREPARING, Reason.OPTIMIZING, Reason.MEASURING, Reason.PUBLISHING})

CONVERSION_FAULTS = frozenset(
    {
        Reason.UNSUPPORTED_FORMAT,
        Reason.UNSUPPORTED_OPERATOR,
        Reason.UNSUPPORTED_OPSET,
        Reason.UNSUPPORTED_MODEL,
        Reason.NUMERICAL_MISMATCH,
        Reason.OUTPUTS_INVALID,
    }
)


def is_settled(status: OptimizedModelStatus, generation: int) -> bool:
    """Whether the run of this generation is over: published, or failed so that only a new spec or a retry can help."""
    ready = find(status.conditions, READY)
    if ready is None or ready.observed_generation != generation or status.observed_generation != generation:
        return False
    if ready.reason == Reason.PUBLISHED:
        return bool(status.artifacts)
    # InvalidSpec refers to a spec that could not be parsed; this one could.
    return ready.reason not in IN_PROGRESS and ready.reason != Reason.INVALID_SPEC


@dataclass(frozen=True)
class ConditionDraft:
    """The value of one condition after a decision; `holds` is None for Unknown."""

    kind: str
    holds: bool | None
    reason: Reason
    message: str = ""


def settled_status(snapshot: RunSnapshot, status: OptimizedModelStatus) -> OptimizedModelStatus:
    """The status of a run that is over, with the conditions that earlier versions of the operator did not write."""
    ready = find(status.conditions, READY)
    if ready is None or find(status.conditions, STALLED) is not None or ready.reason not in set(Reason):
        return status  # a reason that is not in the list was written by a newer version
    conditions = status.conditions
    for draft in settling(Reason(ready.reason), ready.message):
        conditions = _said(conditions, draft, snapshot)
    return status.model_copy(update={"conditions": conditions})


@dataclass(frozen=True)
class RunOutcome:
    """The result of a decision: the stage of the run, the status without its conditions, the conditions, and the requested tasks in their order."""

    stage: Stage
    status: OptimizedModelStatus
    conditions: tuple[ConditionDraft, ...] = ()
    tasks: tuple[AnyTaskProgress, ...] = ()


def opened_status(context: RunContext) -> OptimizedModelStatus:
    """The status that a decision starts from. The results of an earlier generation are dropped, except for what it published."""
    snapshot, order = context.snapshot, context.order
    earlier = snapshot.status
    same = snapshot.goes_on
    names = {target.name for target in snapshot.spec.targets}
    return OptimizedModelStatus(
        observed_generation=snapshot.generation,
        started_at=timestamps.write(context.started),
        retries=order.retries or None,
        last_handled_retry=order.handled,
        conditions=earlier.conditions,
        constraints=context.constraints,
        source=earlier.source if same else None,
        devices=context.devices,
        baselines=earlier.baselines if same else (),
        candidates=earlier.candidates if same else (),
        artifacts=tuple(artifact for artifact in earlier.artifacts if artifact.target in names),
        report=earlier.report,
    )


def closed_status(snapshot: RunSnapshot, outcome: RunOutcome) -> OptimizedModelStatus:
    """The status of an outcome with its conditions: Ready, the others that were decided, and Unknown for the rest.

    The two that summarize the object (Reconciling, Stalled) come last.
    """
    stage, said = outcome.stage, {draft.kind for draft in outcome.conditions}
    kinds = (READY, SOURCE_RESOLVED, CONVERTED, MEASURED)
    unknown = "the run ended before this stage" if stage.finished else "the run has not reached this stage"
    drafts = (
        *outcome.conditions,
        *(ConditionDraft(kind, None, stage.reason, unknown) for kind in kinds[1:] if kind not in said),
        ConditionDraft(READY, stage.reason == Reason.PUBLISHED, stage.reason, stage.message),
        *settling(stage.reason, stage.message),
    )
    conditions = outcome.status.conditions
    for draft in drafts:
        conditions = _said(conditions, draft, snapshot)
    places = {kind: place for place, kind in enumerate(kinds)}
    conditions = tuple(sorted(conditions, key=lambda condition: places.get(condition.type, len(places))))
    written = outcome.status
    return written.model_copy(
        update={
            "conditions": conditions,
            "baselines": shown(written.baselines),
            "candidates": shown(written.candidates),
            "artifacts": shown(written.artifacts),
        }
    )


def _said(conditions: tuple[Condition, ...], draft: ConditionDraft, snapshot: RunSnapshot) -> tuple[Condition, ...]:
    return with_condition(
        conditions,
        draft.kind,
        draft.holds,
        draft.reason,
        draft.message,
        generation=snapshot.generation,
        now=timestamps.write(snapshot.now),
    )


def settling(reason: Reason, message: str) -> tuple[ConditionDraft, ConditionDraft]:
    """Reconciling and Stalled for a Ready condition with that reason. Every reason means in progress, done or stalled."""
    runs, done = reason in IN_PROGRESS, reason == Reason.PUBLISHED
    stalled = not runs and not done
    return (
        ConditionDraft(RECONCILING, runs, reason, message if runs else ""),
        ConditionDraft(STALLED, stalled, reason, message if stalled else ""),
    )


def source_conditions(report: PrepareReport) -> tuple[ConditionDraft, ...]:
    """SourceResolved and Converted after a successful prepare, which may have continued without a portable form."""
    source, fault = report.source, report.conversion_fault
    resolved = f"{source.format}, {size(source.bytes, ' ')}, sha256 {source.sha256[:12]}…"
    converted = ConditionDraft(
        CONVERTED,
        True,
        Reason.COMPLETED,
        "; ".join(report.notes) or "the portable form gives the same outputs as the source",
    )
    if fault is not None:
        converted = ConditionDraft(CONVERTED, False, fault.reason, "; ".join((fault.message, *report.notes)))
    return ConditionDraft(SOURCE_RESOLVED, True, Reason.COMPLETED, resolved), converted


def fault_conditions(fault: Finding) -> tuple[ConditionDraft, ...]:
    """SourceResolved and Converted after prepare failed: the reason tells which of the two is False."""
    if fault.reason in CONVERSION_FAULTS:
        resolved = ConditionDraft(SOURCE_RESOLVED, True, Reason.COMPLETED, "the source was fetched")
        return resolved, ConditionDraft(CONVERTED, False, fault.reason, fault.message)
    return (ConditionDraft(SOURCE_RESOLVED, False, fault.reason, fault.message),)


def measured_condition(targets: Sequence[TargetProgress]) -> ConditionDraft:
    """Whether every target was measured, with the notes of the measurements: first how good the original is."""
    fault = next((target.fault for target in targets if target.fault is not None), None)
    if fault is not None:
        return ConditionDraft(MEASURED, False, fault.reason, fault.message)
    notes = [
        f"{target.target.name}: {_in_full(target)}; the original: {target.baseline.worth}"
        for target in targets
        if target.baseline is not None
    ]
    notes += [f"{target.target.name}: {note}" for target in targets for note in target.notes]
    return ConditionDraft(MEASURED, True, Reason.COMPLETED, "; ".join(notes) or "no candidate could be measured")


def _in_full(target: TargetProgress) -> str:
    """'3 of 16 candidates measured in full'. A candidate of the timing pre-test has times, but no speed-up."""
    names = {*target.measured, *(candidate.name for candidate in target.plan.candidates)}
    full = sum(row.speedup is not None for row in target.measured.values())
    return f"{full} of {counted(len(names), 'candidate')} measured in full"


def events(earlier: Sequence[Condition], stage: Stage, generation: int) -> tuple[EventDraft, ...]:
    """An Event if the run enters a stage other than that of the `earlier` conditions."""
    ready = find(earlier, READY)
    if ready is not None and ready.observed_generation == generation and ready.reason == stage.reason:
        return ()
    normal = stage.reason in IN_PROGRESS or stage.reason == Reason.PUBLISHED
    return (EventDraft("Normal" if normal else "Warning", stage.reason, stage.message),)


def candidate_rows(progress: RunProgress, prepare: PrepareReport) -> tuple[CandidateStatus, ...]:
    """Every candidate of every target in its present state, before the winner is chosen."""
    return tuple(row for target in progress.targets for row in _rows_of(progress, target, prepare))


def _rows_of(progress: RunProgress, target: TargetProgress, prepare: PrepareReport) -> list[CandidateStatus]:
    """The planned candidates, and the published artifact if it is not one of them."""
    measured, models = target.measured, progress.models
    rows = []
    for candidate in target.plan.candidates:
        row = measured.pop(candidate.name, None)
        if row is None:
            row = _unmeasured(target, candidate, progress.builds, model_of(candidate, prepare, models))
        rows.append(_with_training(row, candidate, progress.builds))
    return [*rows, *measured.values()]


def _with_training(
    row: CandidateStatus, candidate: PlannedCandidate, builds: Mapping[str, BuildProgress]
) -> CandidateStatus:
    """`row`; where nothing else is said of it, with how far its training has come, or with what was trained."""
    build = builds.get(candidate.build.name) if candidate.build is not None else None
    if build is None or row.message is not None:
        return row
    if build.training is not None:
        return row.model_copy(update={"training": build.training, "message": clip(build.training.words)})
    reports = (task.report for task in build.tasks)
    told = "; ".join(report.message for report in reports if report is not None and report.training is not None)
    return row.model_copy(update={"message": clip(told)}) if told else row


def _unmeasured(
    target: TargetProgress, candidate: PlannedCandidate, builds: Mapping[str, BuildProgress], model: StoredModel | None
) -> CandidateStatus:
    """A candidate without a measurement; `model` are its files, if they exist."""
    state, finding = _standing(target, candidate, builds)
    return CandidateStatus(
        name=candidate.name,
        target=target.target.name,
        runtime=candidate.plan.runtime,
        recipe=candidate.plan.recipe,
        settings=candidate.plan.settings,
        state=state,
        reason=finding.reason if finding is not None else None,
        message=clip(finding.message) if finding is not None else None,
        bytes=model.bytes if model is not None else None,
    )


def _standing(
    target: TargetProgress, candidate: PlannedCandidate, builds: Mapping[str, BuildProgress]
) -> tuple[CandidateState, Finding | None]:
    build = builds.get(candidate.build.name) if candidate.build is not None else None
    if candidate.refusal is not None:
        return CandidateState.REJECTED, candidate.refusal
    if build is not None and build.refusal is not None:
        return CandidateState.REJECTED, build.refusal
    if candidate.name in target.twins:
        return CandidateState.REJECTED, Finding(
            Reason.PRUNED, f"not measured: file and settings are identical to those of {target.twins[candidate.name]}"
        )
    fault = build.fault if build is not None and build.fault is not None else target.fault
    if fault is not None:
        return CandidateState.FAILED, fault
    if candidate.name in target.left_out:
        return CandidateState.FAILED, Finding(
            Reason.JOB_FAILED, "the measuring Job returned no result for this candidate"
        )
    if (build is not None and build.running) or candidate.name in target.measuring:
        return CandidateState.RUNNING, None
    return CandidateState.PENDING, None


def _architecture(winner: CandidateStatus, target: TargetSpec) -> str | None:
    """The GPU architecture that a winner needs, if it is an engine."""
    return target.device.architecture if target.device is not None and catalog.runs_engines(winner.runtime) else None


def artifact_of(
    winner: CandidateStatus,
    target: TargetSpec,
    store: Address,
    *,
    generation: int,
    incumbent: str | None,
    published: ArtifactStatus | None,
) -> ArtifactStatus:
    """The published artifact of a winner. Its digest and size are known, because `choose` selects no other candidate.

    An artifact that was published before keeps its name and the run that it came from. `incumbent`: the artifact that was published when
    the run began.
    """
    assert winner.artifact is not None
    assert winner.bytes is not None
    same = published if published is not None and published.sha256 == winner.artifact else None
    drop = winner.accuracy_drop.value if winner.accuracy_drop is not None else 0.0
    speedup = winner.speedup
    return ArtifactStatus(
        target=target.name,
        candidate=same.candidate if same is not None else winner.name,
        runtime=winner.runtime,
        uri=f"{store.uri.rstrip('/')}/artifacts/{winner.artifact}",
        secret_name=store.secret_name,
        sha256=winner.artifact,
        bytes=winner.bytes,
        threads=winner.settings.threads * winner.settings.streams,
        speedup=(speedup.low if is_unsteady(winner) else speedup.value) if speedup is not None else None,
        accuracy_drop=0.0 if winner.exact else drop,
        placement=Placement(
            node_selector=target.node_selector,
            tolerations=target.tolerations,
            runtime_class_name=target.runtime_class_name,
            architecture=_architecture(winner, target),
            limits=gpu_resources(target) or None,
        ),
        generation=same.generation if same is not None else generation,
        incumbent=incumbent,
    )
