"""The status of a run, written down at every decision: rows, conditions, what is published, and the events of a change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from fettle.api.conditions import Condition, find, with_condition
from fettle.api.constraints import Constraints
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.optimizedmodel_status import ArtifactStatus, CandidateStatus, OptimizedModelStatus, Placement
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport
from fettle.api.text import clip
from fettle.api.vocabulary import CandidateState
from fettle.plan import timestamps
from fettle.plan.events import EventDraft
from fettle.plan.run.planned import Finding, Row
from fettle.plan.run.rounds import Rounds, Stage, TargetRun
from fettle.plan.run.state import RetryOrder, RunSnapshot
from fettle.plan.run.tasks import model_of

READY, SOURCE_RESOLVED, CONVERTED, MEASURED = "Ready", "SourceResolved", "Converted", "Measured"
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
    """Whether this generation has its word: published, or a fault that only a new spec or an ordered retry can mend."""
    ready = find(status.conditions, READY)
    if ready is None or ready.observed_generation != generation or status.observed_generation != generation:
        return False
    if ready.reason == Reason.PUBLISHED:
        return bool(status.artifacts)
    # InvalidSpec was said of a spec that did not parse; this one did.
    return ready.reason not in IN_PROGRESS and ready.reason != Reason.INVALID_SPEC


class Draft:
    """The status being written. What an earlier generation found is dropped, except what it published."""

    def __init__(self, snapshot: RunSnapshot, constraints: Constraints, order: RetryOrder) -> None:
        before = snapshot.status
        same = before.observed_generation == snapshot.generation
        names = {target.name for target in snapshot.spec.targets}
        self._snapshot = snapshot
        self._said: set[str] = set()
        self._started = _began(before.started_at if same and not order.acts else None, snapshot.now)
        self.status = OptimizedModelStatus(
            observed_generation=snapshot.generation,
            started_at=timestamps.write(self._started),
            retries=order.retries or None,
            last_handled_retry=order.handled,
            conditions=before.conditions,
            constraints=constraints,
            source=before.source if same else None,
            baselines=before.baselines if same else (),
            candidates=before.candidates if same else (),
            artifacts=tuple(artifact for artifact in before.artifacts if artifact.target in names),
            report=before.report,
        )

    @property
    def ends(self) -> datetime:
        """The run's deadline."""
        return self._started + timedelta(seconds=self._snapshot.spec.search.deadline_seconds)

    def set(self, **fields: object) -> None:
        """Replace fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def condition(self, kind: str, holds: bool | None, reason: Reason, message: str = "") -> None:
        """Set one condition."""
        self._said.add(kind)
        conditions = with_condition(
            self.status.conditions,
            kind,
            holds,
            reason,
            message,
            generation=self._snapshot.generation,
            now=timestamps.write(self._snapshot.now),
        )
        self.set(conditions=conditions)

    def prepared(self, report: PrepareReport) -> None:
        """The source is known, and its portable form is there, or why it goes on without one."""
        source = report.source
        self.set(source=source)
        size = f"{source.format}, {source.bytes} bytes, sha256 {source.sha256[:12]}"
        self.condition(SOURCE_RESOLVED, True, Reason.COMPLETED, size)
        fault = report.conversion_fault
        if fault is not None:
            self.condition(CONVERTED, False, fault.reason, "; ".join((fault.message, *report.notes)))
        else:
            self.condition(CONVERTED, True, Reason.COMPLETED, "; ".join(report.notes))

    def not_prepared(self, fault: Finding) -> None:
        """Preparing failed: which of its two promises is broken follows from the reason."""
        if fault.reason in CONVERSION_FAULTS:
            self.condition(SOURCE_RESOLVED, True, Reason.COMPLETED)
            self.condition(CONVERTED, False, fault.reason, fault.message)
        else:
            self.condition(SOURCE_RESOLVED, False, fault.reason, fault.message)

    def close(self, stage: Stage) -> OptimizedModelStatus:
        """Write Ready, and what no one spoke of as Unknown."""
        for kind in (SOURCE_RESOLVED, CONVERTED, MEASURED):
            if kind not in self._said:
                self.condition(kind, None, stage.reason)
        self.condition(READY, stage.reason == Reason.PUBLISHED, stage.reason, stage.message)
        order = {kind: place for place, kind in enumerate((READY, SOURCE_RESOLVED, CONVERTED, MEASURED))}
        self.set(conditions=tuple(sorted(self.status.conditions, key=lambda one: order.get(one.type, len(order)))))
        return self.status


def _began(told: str | None, now: datetime) -> datetime:
    """When the run began, in whole seconds. A moment that lies ahead is taken for now: the clock was set back, and the deadline counts anew."""
    before = timestamps.read(told)
    return before if before is not None and before <= now else now.replace(microsecond=0)


def events(before: Sequence[Condition], stage: Stage, generation: int) -> tuple[EventDraft, ...]:
    """One event where the run enters another stage."""
    ready = find(before, READY)
    if ready is not None and ready.observed_generation == generation and ready.reason == stage.reason:
        return ()
    normal = stage.reason in IN_PROGRESS or stage.reason == Reason.PUBLISHED
    return (EventDraft("Normal" if normal else "Warning", stage.reason, stage.message),)


def candidate_rows(rounds: Rounds) -> tuple[CandidateStatus, ...]:
    """Every row of every target as it stands now, before a choice."""
    return tuple(row for run in rounds.targets for row in _rows_of(rounds, run))


def _rows_of(rounds: Rounds, run: TargetRun) -> list[CandidateStatus]:
    """The plan's rows, and the published artifact's where no candidate is the same."""
    planned = {row.name for row in run.plan.rows}
    return [
        *(_row(rounds, run, row) for row in run.plan.rows),
        *(row for name, row in run.measured.items() if name not in planned),
    ]


def _row(rounds: Rounds, run: TargetRun, row: Row) -> CandidateStatus:
    if row.name in run.measured:
        return run.measured[row.name]
    state, finding = _standing(rounds, run, row)
    model = model_of(row, rounds.prepare, rounds.built)
    return CandidateStatus(
        name=row.name,
        target=run.target.name,
        runtime=row.plan.runtime,
        recipe=row.plan.recipe,
        settings=row.plan.settings,
        state=state,
        reason=finding.reason if finding is not None else None,
        message=clip(finding.message) if finding is not None else None,
        bytes=model.bytes if model is not None else None,
    )


def _standing(rounds: Rounds, run: TargetRun, row: Row) -> tuple[CandidateState, Finding | None]:
    """Where a row stands that no measurement speaks of yet."""
    build = row.build.name if row.build is not None else ""
    if row.refusal is not None:
        return CandidateState.REJECTED, row.refusal
    if row.name in run.skipped:
        return CandidateState.REJECTED, Finding(Reason.PRUNED, run.skipped[row.name])
    if build in rounds.refused:
        return CandidateState.REJECTED, rounds.refused[build]
    if build in rounds.failed:
        return CandidateState.FAILED, rounds.failed[build]
    if run.fault is not None:
        return CandidateState.FAILED, run.fault
    if row.name in run.left_out:
        return CandidateState.FAILED, Finding(Reason.JOB_FAILED, "the measurement left it out")
    if build in rounds.running or row.name in run.measuring:
        return CandidateState.RUNNING, None
    return CandidateState.PENDING, None


def artifact_of(
    winner: CandidateStatus,
    target: TargetSpec,
    store: str,
    *,
    generation: int,
    incumbent: str | None,
    before: ArtifactStatus | None,
) -> ArtifactStatus:
    """What is published of a winner. Its digest and size are known: `choose` lets nothing else win.

    One that was published before keeps the name it had then, and the run that it came from. `incumbent`: what it was
    measured beside.
    """
    assert winner.artifact is not None
    assert winner.bytes is not None
    same = before if before is not None and before.sha256 == winner.artifact else None
    drop = winner.accuracy_drop.value if winner.accuracy_drop is not None else 0.0
    return ArtifactStatus(
        target=target.name,
        candidate=same.candidate if same is not None else winner.name,
        runtime=winner.runtime,
        uri=f"{store.rstrip('/')}/artifacts/{winner.artifact}",
        sha256=winner.artifact,
        bytes=winner.bytes,
        threads=winner.settings.threads * winner.settings.streams,
        speedup=winner.speedup.value if winner.speedup is not None else None,
        accuracy_drop=0.0 if winner.exact else drop,
        placement=Placement(
            node_selector=target.node_selector,
            tolerations=target.tolerations,
            runtime_class_name=target.runtime_class_name,
        ),
        generation=same.generation if same is not None else generation,
        incumbent=same.incumbent if same is not None else incumbent,
    )
