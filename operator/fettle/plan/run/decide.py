"""What a run of an OptimizedModel does next: prepare, build, measure, choose, publish.

Level-triggered: every decision is made anew from the spec and from what the tasks have answered, so a restart, a lost or
a doubled event end in the same state. A failure that trying again by itself cannot mend stays until the spec changes or a
retry is ordered; what still holds of an earlier spec is reused, because equal tasks have equal hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from fettle.api.bounds import is_exact, span
from fettle.api.constraints import Constraints
from fettle.api.optimizedmodel_status import ArtifactStatus, CandidateStatus, ReportStatus
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport, PublishReport
from fettle.api.vocabulary import CandidateState
from fettle.plan.run import retry
from fettle.plan.run.attempts import Attempts
from fettle.plan.run.candidates import plan_target
from fettle.plan.run.choose import choose
from fettle.plan.run.constraints import in_force
from fettle.plan.run.planned import Finding, with_notes
from fettle.plan.run.rounds import Rounds, Stage, TargetRun, rules_of
from fettle.plan.run.state import RunDecision, RunSnapshot
from fettle.plan.run.status import MEASURED, Draft, artifact_of, candidate_rows, events, is_settled
from fettle.plan.run.tasks import Answered, prepare_task, publish_task, selected


def decide(snapshot: RunSnapshot) -> RunDecision:
    """The tasks that shall exist now, and the status. Pure: the same snapshot gives the same decision."""
    order = retry.read(snapshot)
    if is_settled(snapshot.status, snapshot.generation) and not order.acts:
        return RunDecision((), retry.noted(snapshot.status, order), order.events, finished=True)
    constraints = in_force(snapshot.spec)
    draft = Draft(snapshot, constraints, order)
    attempts = Attempts(snapshot.tasks, snapshot.now, draft.ends, order.retries)
    stage = _advance(snapshot, draft, attempts, constraints)
    if attempts.late and (not stage.finished or stage.reason == Reason.DEADLINE_EXCEEDED):
        stage = _late(snapshot, draft, attempts, stage)
    emitted = (*order.events, *events(snapshot.status.conditions, stage, snapshot.generation))
    if stage.finished:
        return RunDecision((), draft.close(stage), emitted, finished=True)
    return RunDecision(attempts.wanted, draft.close(stage), emitted, requeue_seconds=attempts.wake_seconds)


def store_of(snapshot: RunSnapshot) -> str:
    """URI of the store this run writes to."""
    return snapshot.spec.store.uri if snapshot.spec.store is not None else snapshot.default_store


def _late(snapshot: RunSnapshot, draft: Draft, attempts: Attempts, stage: Stage) -> Stage:
    """What becomes of a run past its deadline: it ends once nothing of it works any more, or after as long again.

    What was done is kept for a retry.
    """
    seconds = snapshot.spec.search.deadline_seconds
    if attempts.works and snapshot.now < draft.ends + timedelta(seconds=seconds):
        ending = f"search.deadlineSeconds = {seconds} s are over: what runs may end, nothing else begins"
        return replace(stage, message=f"{stage.message} ({ending})")
    where = stage.message if stage.finished else f"it was at {stage.reason}: {stage.message}"
    todo = "a retry has as long again, and does nothing again that is done"
    text = f"not done after search.deadlineSeconds = {seconds} s ({todo}); {where}"
    draft.set(candidates=tuple(_stopped(row) for row in draft.status.candidates))
    return Stage(Reason.DEADLINE_EXCEEDED, text, finished=True)


def _advance(snapshot: RunSnapshot, draft: Draft, attempts: Attempts, constraints: Constraints) -> Stage:
    store = store_of(snapshot)
    prepare = attempts.want(prepare_task(snapshot.spec, store), PrepareReport, stage="prepare", label="prepare")
    if prepare.fault is not None:
        draft.not_prepared(prepare.fault)
        return Stage(prepare.fault.reason, prepare.fault.message, finished=True)
    if prepare.report is None:
        text = f"fetching, checking and converting {snapshot.spec.source.uri}"
        return Stage(Reason.PREPARING, with_notes(text, [prepare.note] if prepare.note is not None else []))
    report = prepare.report
    draft.prepared(report)
    impossible = _unconverted(snapshot, report) or _batch_refused(snapshot, report)
    if impossible is not None:
        return Stage(impossible.reason, impossible.message, finished=True)
    plans = [plan_target(snapshot.spec, target, report, constraints) for target in snapshot.spec.targets]
    targets = [TargetRun(plan, rules_of(snapshot, plan, constraints, report)) for plan in plans]
    rounds = Rounds(snapshot, attempts, store, report, targets)
    waiting = rounds.advance()
    rows = candidate_rows(rounds)
    draft.set(candidates=rows, baselines=tuple(run.baseline for run in targets if run.baseline is not None))
    if waiting is not None:
        return waiting
    return _finish(snapshot, draft, rounds, constraints, prepare.task_hash)


def _unconverted(snapshot: RunSnapshot, report: PrepareReport) -> Finding | None:
    """A source without a portable form needs, on every target, the runtime that runs it as it came."""
    fault = report.conversion_fault
    others = [
        target.name for target in snapshot.spec.targets if not set(target.runtimes) & set(report.portable_runtimes)
    ]
    if fault is None or not others:
        return None
    own = " or ".join(report.portable_runtimes)
    text = f"{fault.message}; {own} runs the model as it came: add it to the runtimes of {', '.join(others)}"
    return Finding(fault.reason, text)


def _batch_refused(snapshot: RunSnapshot, report: PrepareReport) -> Finding | None:
    """A batch of several items needs a batch axis that was proved."""
    if report.signature.batchable:
        return None
    for target in snapshot.spec.targets:
        if any(size != 1 for size in target.batch_sizes):
            text = (
                f"target {target.name} asks for batchSizes {list(target.batch_sizes)}, but this model does not take "
                "several items in one run (no batch axis could be proved): ask for [1]"
            )
            return Finding(Reason.UNSUPPORTED_MODEL, text)
    return None


def _finish(snapshot: RunSnapshot, draft: Draft, rounds: Rounds, constraints: Constraints, prepare_hash: str) -> Stage:
    """Choose, publish, and say what came of it."""
    rows, problems = _choose(snapshot, draft, rounds)
    draft.set(candidates=rows)
    _say_measured(draft, rounds)
    if not any(run.baseline is not None for run in rounds.targets):
        return _not_published(problems)
    answered = Answered(prepare_hash, rounds.build_hashes, rounds.measure_hashes)
    task = publish_task(snapshot, rows, constraints, rounds.store, answered)
    publish = rounds.attempts.want(task, PublishReport, stage="publish", label="publish")
    if not publish.over:
        waits = [publish.note] if publish.note is not None else []
        return Stage(Reason.PUBLISHING, with_notes("checking the artifacts and writing the report", waits))
    if publish.report is not None:
        draft.set(report=ReportStatus(uri=publish.report.report_uri), artifacts=_artifacts(draft, rounds, rows))
    elif not problems and publish.fault is not None:
        problems = [publish.fault]
    return _not_published(problems) if problems else Stage(Reason.PUBLISHED, _summary(rows), finished=True)


def _choose(snapshot: RunSnapshot, draft: Draft, rounds: Rounds) -> tuple[tuple[CandidateStatus, ...], list[Finding]]:
    """The rows with their verdicts, and for each target without a winner why."""
    rows: list[CandidateStatus] = []
    problems: list[Finding] = []
    published = {artifact.target: artifact.sha256 for artifact in snapshot.status.artifacts}
    for run in rounds.targets:
        name = run.target.name
        mine = [row for row in draft.status.candidates if row.target == name]
        choice = choose(mine, run.rules, published.get(name))
        rows.extend(choice.rows)
        problem = choice.miss if run.measured else run.fault or choice.miss
        if choice.winner is None and problem is not None:
            problems.append(replace(problem, message=f"{name}: {problem.message}"))
    return tuple(rows), problems


def _say_measured(draft: Draft, rounds: Rounds) -> None:
    fault = next((run.fault for run in rounds.targets if run.fault is not None), None)
    said = [
        (run.target.name, f"the original: {run.baseline.worth}") for run in rounds.targets if run.baseline is not None
    ]
    said += [(run.target.name, note) for run in rounds.targets for note in run.notes]
    notes = "; ".join(f"{target}: {text}" for target, text in said)
    if fault is not None:
        draft.condition(MEASURED, False, fault.reason, fault.message)
    else:
        draft.condition(MEASURED, True, Reason.COMPLETED, notes)


def _artifacts(draft: Draft, rounds: Rounds, rows: Sequence[CandidateStatus]) -> tuple[ArtifactStatus, ...]:
    """The new winner of each target; where there is none, what was published before stays."""
    published = {artifact.target: artifact for artifact in draft.status.artifacts}
    for run in rounds.targets:
        winner = selected(rows, run.target.name)
        if winner is not None:
            published[run.target.name] = artifact_of(
                winner,
                run.target,
                rounds.store,
                generation=rounds.snapshot.generation,
                incumbent=rounds.incumbent(run),
                before=published.get(run.target.name),
            )
    return tuple(published[run.target.name] for run in rounds.targets if run.target.name in published)


def _not_published(problems: Sequence[Finding]) -> Stage:
    """The run is over, and at least one target has no winner."""
    return Stage(problems[0].reason, " | ".join(problem.message for problem in problems), finished=True)


def _summary(rows: Sequence[CandidateStatus]) -> str:
    """'cpu: int8-openvino, 3.1 [2.9, 3.3] times as fast, drop 0.001 [-0.002, 0.004]'; and where what is exact won because there are
    too few items to prove anything else, how many are needed."""
    parts = []
    for row in rows:
        if row.state != CandidateState.SELECTED:
            continue
        speed = f", {span(row.speedup)} times as fast as the original" if row.speedup is not None else ""
        drop = "answers as the original" if row.exact else ""
        if not row.exact and row.accuracy_drop is not None:
            drop = f"accuracy drop {span(row.accuracy_drop)}"
        doubt = f" ({row.reason})" if row.reason else ""
        parts.append(f"{row.target}: {row.name}{speed}" + (f", {drop}" if drop else "") + doubt)
    exact = {row.target for row in rows if row.state == CandidateState.SELECTED and is_exact(row)}
    small = [row for row in rows if row.reason == Reason.EVALUATION_TOO_SMALL and row.target in exact]
    parts += dict.fromkeys(f"lossy candidates are out: {row.message}" for row in small)
    return "; ".join(parts)


def _stopped(row: CandidateStatus) -> CandidateStatus:
    """A row that the deadline cut off."""
    if row.state not in (CandidateState.PENDING, CandidateState.RUNNING):
        return row
    update = {"state": CandidateState.FAILED, "reason": Reason.DEADLINE_EXCEEDED, "message": "the run's time was over"}
    return row.model_copy(update=update)
