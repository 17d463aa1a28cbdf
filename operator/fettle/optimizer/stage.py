"""One task, from the environment to its answer: what every Job and every process of `fettle optimize` does.

docs/design/contracts.md names the variables. An answer that the store has already is given again, so that a Job whose pod or log was
lost costs nothing the second time.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, MeasureReport, PublishReport, Termination, frame
from fettle.api.secrets import without_secrets
from fettle.api.task import AnyTask, BuildTask, MeasureTask, PrepareTask, PublishTask, decode_task, task_hash
from fettle.api.text import clip
from fettle.api.vocabulary import CandidateState
from fettle.errors import FettleError, UsageError
from fettle.optimizer import gpu_caches, ranks
from fettle.runtimes import cpu, machine
from fettle.store.cache import Learned, build_key, own_code, read_trained, runtime_versions
from fettle.store.credentials import hidden_values
from fettle.store.files import DISK_FULL
from fettle.store.manifest import is_whole
from fettle.store.store import AnyReport, Store
from fettle.store.uris import Mounts

TERMINATION_LOG = Path("/dev/termination-log")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskAnswer:
    """What a task ended with: the termination message, and the framed line of its result if there is one."""

    termination: Termination
    line: str | None = None


def read_task(environment: Mapping[str, str]) -> AnyTask:
    """The task of this process. Raises UsageError."""
    text = environment.get("FETTLE_TASK", "")
    if not text:
        raise UsageError("FETTLE_TASK is not set: this program is started by the operator or by `fettle optimize`")
    try:
        return decode_task(text)
    except ValueError as error:
        detail = error.errors()[:3] if isinstance(error, ValidationError) else error
        raise UsageError(f"FETTLE_TASK is not a valid task for this version: {detail}") from error


def answer(task: AnyTask, mounts: Mounts) -> TaskAnswer:
    """Run `task`, or answer it from the store. Never raises: what goes wrong is the answer, its traceback in the log."""
    try:
        report = run(task, mounts)
        line, sha256 = frame(report)
        return TaskAnswer(Termination(outcome="Succeeded", result_sha256=sha256), line)
    except FettleError as error:
        log.info("failed", exc_info=True)
        return failed(error.reason, error.message, error.retryable)
    except OSError as error:
        log.exception("unexpected")
        if error.errno in DISK_FULL:
            message = f"{task.kind} filled the pod's own disk: raise ephemeral-storage in spec.jobs.resources.limits ({error})"
            return failed(Reason.JOB_FAILED, message)
        return unforeseen(task, error)
    except MemoryError:
        log.exception("out of memory")
        return failed(Reason.OUT_OF_MEMORY, f"{task.kind} ran out of memory; raise spec.jobs.resources.limits.memory")
    except Exception as error:
        log.exception("unexpected")
        return unforeseen(task, error)


def unforeseen(task: AnyTask, error: Exception) -> TaskAnswer:
    """The answer for an error that nobody gave words to."""
    return failed(Reason.JOB_FAILED, f"{task.kind} failed unexpectedly: {type(error).__name__}: {error}")


def crashed(environment: Mapping[str, str], killer: signal.Signals) -> TaskAnswer:
    """The answer for a process that `killer` ended while it ran the task: a native library crashed, or the kernel ended it."""
    task = read_task(environment)
    if killer == signal.SIGKILL:
        message = (
            f"{task.kind} was killed, most likely because it ran out of memory; raise spec.jobs.resources.limits.memory"
        )
        return failed(Reason.OUT_OF_MEMORY, message)
    if isinstance(task, PrepareTask):
        message = (
            f"a native library crashed ({killer.name}) on {task.source.uri}: the file is damaged, or contains something that the library cannot "
            "handle; the log shows the last operation. Check the file, or export the model again with other operators"
        )
        return failed(Reason.UNSUPPORTED_MODEL, message)
    return failed(
        Reason.JOB_FAILED,
        f"a native library crashed ({killer.name}) during {task.kind}; the log shows the last operation",
    )


def failed(reason: Reason, message: str, retryable: bool = False) -> TaskAnswer:
    """The answer of a task that failed; no secret of this process is in it."""
    short = clip(without_secrets(" ".join(message.split()), os.environ, hidden_values(os.environ)))
    return TaskAnswer(Termination(outcome="Failed", reason=reason, message=short, retryable=retryable))


def write_termination(answer: TaskAnswer, environment: Mapping[str, str]) -> None:
    """Leave the outcome where the kubelet, or `fettle optimize`, looks for it."""
    named = environment.get("FETTLE_TERMINATION_LOG")
    path = Path(named) if named else TERMINATION_LOG
    if named or path.exists():
        path.write_bytes(answer.termination.canonical())


def run(task: AnyTask, mounts: Mounts) -> AnyReport:
    """The report of `task`, kept in the store. Raises FettleError."""
    store = Store.open(task.store, mounts)
    key = task_hash(task)
    before = _earlier(task, store, store.result(key)) if ranks.leads() else None
    if before is not None:
        log.info("reusing the result from the store")
        if isinstance(task, BuildTask) and ranks.together():
            from fettle.optimizer import build

            build.dismiss(task.nodes)
        return before
    report = _dispatch(task, store, mounts)
    if ranks.leads():
        store.put_result(key, report)
        _clean(task, report, store)
    return report


def _clean(task: AnyTask, report: AnyReport, store: Store) -> None:
    """Remove what the task kept for another attempt. Raises StoreError."""
    if isinstance(report, BuildReport) and isinstance(task, BuildTask) and task.plan.trains:
        from fettle.optimizer import build

        build.forget_checkpoints(store, report.cache_key)


def _dispatch(task: AnyTask, store: Store, mounts: Mounts) -> AnyReport:
    """Each stage is imported only in the process that runs it: they need different toolchains."""
    if isinstance(task, PrepareTask):
        from fettle.optimizer.prepare import stage

        return stage.run(task, store, mounts)
    if isinstance(task, BuildTask):
        from fettle.optimizer import build

        return build.run(task, store)
    if isinstance(task, MeasureTask):
        from fettle.optimizer import measure

        return measure.run(task, store)
    from fettle.optimizer import publish

    return publish.run(task, store, mounts)


def _earlier(task: AnyTask, store: Store, report: AnyReport | None) -> AnyReport | None:
    """The earlier answer if it still holds, nothing in it failed, and the store has all that it wrote.

    Preparing decides for itself: the file behind the same address may be another one by now.
    """
    if isinstance(task, BuildTask) and isinstance(report, BuildReport):
        # Another class of CPU may build what this one could not, an engine is of no use to another release, and changed code is other code.
        learned = Learned(task.original, task.training)
        driver = gpu_caches.driver(task.plan)
        here = build_key(task.plan, task.portable, task.calibration, cpu.detect(), task.follows, learned, driver)
        carried_over = report.built is not None and task.plan.form is None and not own_code(task.plan)
        if report.cache_key != here and not carried_over:
            return None
        if report.built is None:
            return report
        whole = all(store.has_blob(file.sha256, file.bytes) for file in report.built.files)
        if task.plan.trains and read_trained(store, report.cache_key) is None:
            return None
        return report if whole else None
    if isinstance(task, MeasureTask) and isinstance(report, MeasureReport):
        holds = not any(row.state == CandidateState.FAILED for row in report.candidates)
        runtimes = [candidate.plan.runtime for candidate in (task.baseline, *task.candidates)]
        holds = holds and report.measured_on == machine.detect(runtimes)
        holds = holds and report.libraries == runtime_versions(runtimes)
        artifacts = {row.artifact for row in report.candidates if row.artifact is not None}
        return report if holds and all(is_whole(store, digest) for digest in artifacts) else None
    if isinstance(task, PublishTask) and isinstance(report, PublishReport):
        if task.publish is not None:
            return None  # whether the registry still has them is for it to say: what it has is not sent again
        written = store.exists(report.report_uri.removeprefix(f"{store.uri}/"))
        return report if written and all(is_whole(store, digest) for digest in report.artifacts.values()) else None
    return None
