"""What a run of an OptimizedModel does next: prepare, build, measure, choose, publish.

Level-triggered: every decision follows from the spec and from the results of the tasks, so a restart or a lost or duplicate event leads
to the same state. A failure that is not retried automatically stays until the spec changes or a retry is requested. Results for an
earlier spec are reused if they still apply, because equal tasks have equal hashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from fettle.api import catalog
from fettle.api.bounds import ORIGINAL, gain, is_exact, span
from fettle.api.optimizedmodel_status import ArtifactStatus, CandidateStatus, OptimizedModelStatus, ReportStatus
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport, PublishReport
from fettle.api.text import RETRY_COMMAND
from fettle.api.uris import Address
from fettle.api.vocabulary import CandidateState
from fettle.plan.commands import Command, command_line
from fettle.plan.run import retry
from fettle.plan.run.attempts import TaskProgress, notes_of, requests_of
from fettle.plan.run.choose import choose
from fettle.plan.run.context import RunContext, context_of
from fettle.plan.run.devices import device_kind, loading
from fettle.plan.run.figures import shown
from fettle.plan.run.held_back import held_back
from fettle.plan.run.planned import Finding, with_notes
from fettle.plan.run.preflight import locate
from fettle.plan.run.progress import RunProgress, advance
from fettle.plan.run.state import RunDecision, RunSnapshot, Stage
from fettle.plan.run.status import (
    RunOutcome,
    artifact_of,
    candidate_rows,
    closed_status,
    events,
    fault_conditions,
    is_settled,
    measured_condition,
    opened_status,
    settled_status,
    source_conditions,
)
from fettle.plan.run.targets import incumbent_of
from fettle.plan.run.tasks import answered_by, prepare_task, publish_task, selected


def decide(snapshot: RunSnapshot) -> RunDecision:
    """The tasks that should exist now, and the status. Pure: the same snapshot gives the same decision."""
    order = retry.read(snapshot)
    if is_settled(snapshot.status, snapshot.generation) and not order.acts:
        status = settled_status(snapshot, retry.noted(snapshot.status, order))
        return RunDecision((), status, order.events, finished=True)
    located = locate(snapshot, order)
    context = context_of(replace(snapshot, spec=located.spec), order, located.devices)
    if located.fault is not None:
        outcome = RunOutcome(Stage(located.fault.reason, located.fault.message, finished=True), opened_status(context))
    else:
        outcome = _in_time(context, _advance(context))
    status = closed_status(snapshot, outcome)
    emitted = (*order.events, *events(snapshot.status.conditions, outcome.stage, snapshot.generation))
    if outcome.stage.finished:
        return RunDecision((), status, emitted, finished=True)
    wake_seconds = context.attempts.wake_seconds(outcome.tasks)
    return RunDecision(requests_of(outcome.tasks), status, emitted, requeue_seconds=wake_seconds)


def _advance(context: RunContext) -> RunOutcome:
    """Go through the stages until one waits for a result or ends the run."""
    prepare = context.attempts.ask(
        prepare_task(context.snapshot.spec, context.store), PrepareReport, stage="prepare", label="prepare"
    )
    if prepare.report is None:
        return _not_prepared(context, prepare)
    report, conditions = prepare.report, source_conditions(prepare.report)
    status = opened_status(context).model_copy(update={"source": report.source})
    impossible = _unconverted(context.snapshot, report) or _batch_refused(context.snapshot, report)
    if impossible is not None:
        stage = Stage(impossible.reason, impossible.message, finished=True)
        return RunOutcome(stage, _stopped(status, impossible), conditions, (prepare,))
    progress = advance(context, report)
    tasks = (prepare, *progress.tasks)
    rows = candidate_rows(progress, report)
    status = status.model_copy(update={"candidates": rows, "baselines": progress.baselines})
    if progress.stage is not None:
        return RunOutcome(progress.stage, status, conditions, tasks)
    conditions = (*conditions, measured_condition(progress.targets))
    rows, problems = _choose(progress, status)
    status = status.model_copy(update={"candidates": rows})
    if not progress.baselines:
        return RunOutcome(_not_published(problems), status, conditions, tasks)
    task = publish_task(context.snapshot, rows, context.constraints, context.store, answered_by(tasks))
    task = task.model_copy(update={"held_back": _held_back(progress, rows) or None})
    publish = context.attempts.ask(task, PublishReport, stage="publish", label="publish")
    stage, status = _published(context, progress, publish, status, problems)
    return RunOutcome(stage, status, conditions, (*tasks, publish))


def _not_prepared(context: RunContext, prepare: TaskProgress[PrepareReport]) -> RunOutcome:
    """The outcome while prepare is in progress, or after it failed."""
    if prepare.fault is not None:
        fault = _with_command(context.snapshot, prepare.fault)
        stage = Stage(fault.reason, fault.message, finished=True)
        return RunOutcome(stage, _stopped(opened_status(context), fault), fault_conditions(fault), (prepare,))
    text = f"fetching, checking and converting {context.snapshot.spec.source.uri}"
    stage = Stage(Reason.PREPARING, with_notes(text, notes_of([prepare])))
    return RunOutcome(stage, opened_status(context), tasks=(prepare,))


def _with_command(snapshot: RunSnapshot, fault: Finding) -> Finding:
    """`fault` with the name of the object in the command that retries it."""
    command = command_line(Command.RETRY, snapshot.namespace, f"om/{snapshot.name}")
    return replace(fault, message=fault.message.replace(RETRY_COMMAND, command))


def _in_time(context: RunContext, outcome: RunOutcome) -> RunOutcome:
    """The outcome after the deadline: the run ends when none of its tasks runs any more, or after the same time again.

    Finished work is kept for a retry.
    """
    attempts, stage = context.attempts, outcome.stage
    if not attempts.late or (stage.finished and stage.reason != Reason.DEADLINE_EXCEEDED):
        return outcome
    seconds = context.snapshot.spec.search.deadline_seconds
    if attempts.works(requests_of(outcome.tasks)) and attempts.now < attempts.ends + timedelta(seconds=seconds):
        ending = f"search.deadlineSeconds = {seconds} s have passed: running Jobs may finish, no new ones start"
        return replace(outcome, stage=replace(stage, message=f"{stage.message} ({ending})"))
    where = stage.message if stage.finished else f"the stage was {stage.reason}: {stage.message}"
    todo = "a retry gets the whole deadline again and reuses finished work"
    text = f"not finished within search.deadlineSeconds = {seconds} s ({todo}); {where}"
    status = _stopped(outcome.status, Finding(Reason.DEADLINE_EXCEEDED, "the run's deadline had passed"))
    return replace(outcome, stage=Stage(Reason.DEADLINE_EXCEEDED, text, finished=True), status=status)


def _unconverted(snapshot: RunSnapshot, report: PrepareReport) -> Finding | None:
    """Why a source without a portable form cannot be served: a target lacks the runtime that runs it without conversion. None if it can."""
    fault = report.conversion_fault
    able = loading(report)
    others = [target for target in snapshot.spec.targets if not able.intersection(target.runtimes)]
    if fault is None or not others:
        return None
    devices = {device_kind(target) for target in others}
    rows = [row for row in catalog.RUNTIMES if row.runtime in able]
    own = " or ".join(row.runtime for row in [row for row in rows if row.device in devices] or rows)
    names = ", ".join(target.name for target in others)
    text = f"{fault.message}; {own} can run the model without conversion: add it to the runtimes of {names}"
    return Finding(fault.reason, text)


def _batch_refused(snapshot: RunSnapshot, report: PrepareReport) -> Finding | None:
    """Why the batch sizes are impossible: batches need a verified batch axis. None if they are possible."""
    if report.signature.batchable:
        return None
    for target in snapshot.spec.targets:
        if any(size != 1 for size in target.batch_sizes):
            text = (
                f"target {target.name} has batchSizes {list(target.batch_sizes)}, but this model cannot run "
                "several items at once (its batch axis could not be verified): set [1]"
            )
            return Finding(Reason.UNSUPPORTED_MODEL, text)
    return None


def _published(
    context: RunContext,
    progress: RunProgress,
    publish: TaskProgress[PublishReport],
    status: OptimizedModelStatus,
    problems: Sequence[Finding],
) -> tuple[Stage, OptimizedModelStatus]:
    """The stage of publishing, and `status` with the published artifacts. `problems`: why targets have no winner."""
    if not publish.over:
        text = with_notes("checking the artifacts and writing the report", notes_of([publish]))
        return Stage(Reason.PUBLISHING, text), status
    if publish.report is not None:
        report = ReportStatus(uri=publish.report.report_uri)
        artifacts = _artifacts(context, progress, status, publish.report.registry or {})
        status = status.model_copy(update={"report": report, "artifacts": artifacts})
    elif not problems and publish.fault is not None:
        problems = [publish.fault]
    if problems:
        return _not_published(problems), status
    summary = "; ".join([_summary(shown(status.candidates)), *_held_back(progress, status.candidates).values()])
    return Stage(Reason.PUBLISHED, summary, finished=True), status


def _choose(progress: RunProgress, status: OptimizedModelStatus) -> tuple[tuple[CandidateStatus, ...], list[Finding]]:
    """The candidates with their verdicts, and why targets have no winner."""
    rows: list[CandidateStatus] = []
    problems: list[Finding] = []
    published = {artifact.target: artifact.sha256 for artifact in status.artifacts}
    for target in progress.targets:
        name = target.target.name
        candidates = [row for row in status.candidates if row.target == name]
        choice = choose(candidates, target.rules, published.get(name))
        rows.extend(choice.rows)
        problem = choice.miss if target.measured else target.fault or choice.miss
        if choice.winner is None and problem is not None:
            problems.append(replace(problem, message=f"{name}: {problem.message}"))
    return tuple(rows), problems


def _artifacts(
    context: RunContext, progress: RunProgress, status: OptimizedModelStatus, registry: Mapping[str, str]
) -> tuple[ArtifactStatus, ...]:
    """The new winner of each target; if there is none, the artifact that was published before stays.

    `registry`: target -> address of its winner there.
    """
    published = {artifact.target: artifact for artifact in status.artifacts}
    for target in progress.targets:
        name = target.target.name
        winner = selected(status.candidates, name)
        if winner is not None:
            artifact = artifact_of(
                winner,
                target.target,
                Address(context.store, context.snapshot.store_secret),
                generation=context.snapshot.generation,
                incumbent=incumbent_of(context, target.plan),
                published=published.get(name),
            )
            published[name] = artifact.model_copy(update={"registry_uri": registry.get(name)})
    names = (target.target.name for target in progress.targets)
    return tuple(published[name] for name in names if name in published)


def _not_published(problems: Sequence[Finding]) -> Stage:
    """The final stage of a run in which at least one target has no winner."""
    return Stage(problems[0].reason, " | ".join(problem.message for problem in problems), finished=True)


def _held_back(progress: RunProgress, rows: Sequence[CandidateStatus]) -> dict[str, str]:
    """Target -> the candidate that would be faster than its winner, and why it is not published."""
    texts = {
        target.target.name: held_back(
            [row for row in rows if row.target == target.target.name], target.rules, target.baseline
        )
        for target in progress.targets
    }
    return {target: text for target, text in texts.items() if text is not None}


def _summary(rows: Sequence[CandidateStatus]) -> str:
    """'cpu: int8-openvino, 3.1 [2.9, 3.3] times as fast, drop 0.001 [-0.002, 0.004]'. If an exact candidate won because there are too few items
    to prove a lossy one, the text also says how many are needed."""
    parts = []
    for row in rows:
        if row.state != CandidateState.SELECTED:
            continue
        if row.name == ORIGINAL:
            parts.append(f"{row.target}: {row.name}, unchanged: no candidate is better")
            continue
        speed = f", {gain(row)}" if row.speedup is not None else ""
        drop = "same answers as the original" if row.exact else ""
        if not row.exact and row.accuracy_drop is not None:
            drop = f"accuracy drop {span(row.accuracy_drop)}"
        doubt = f" ({row.reason})" if row.reason else ""
        parts.append(f"{row.target}: {row.name}{speed}" + (f", {drop}" if drop else "") + doubt)
    exact = {row.target for row in rows if row.state == CandidateState.SELECTED and is_exact(row)}
    small = [row for row in rows if row.reason == Reason.EVALUATION_TOO_SMALL and row.target in exact]
    parts += dict.fromkeys(f"lossy candidates were not tried: {row.message}" for row in small)
    return "; ".join(parts)


def _stopped(status: OptimizedModelStatus, finding: Finding) -> OptimizedModelStatus:
    """The status of a run that ended before its candidates were finished."""
    unfinished = (CandidateState.PENDING, CandidateState.RUNNING)
    failed = {"state": CandidateState.FAILED, "reason": finding.reason, "message": finding.message}
    rows = (row.model_copy(update=failed) if row.state in unfinished else row for row in status.candidates)
    return status.model_copy(update={"candidates": tuple(rows)})
