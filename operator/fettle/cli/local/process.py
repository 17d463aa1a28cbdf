"""One task as a local process: `python -m fettle.optimizer` with the environment that a Job would have."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from fettle.api.progress import PROGRESS, TrainingStatus, progress_in
from fettle.api.reasons import Reason
from fettle.api.report import Termination, unframe
from fettle.api.task import encode_task
from fettle.api.text import clip
from fettle.plan.run.state import TaskPhase, TaskRequest, TaskState

GRACE_SECONDS = 5.0  # between the polite and the other signal
TAIL = 32 << 10  # bytes of a log, among which its last figures are
OWN_LINE = re.compile(r"\S+ \S+ fettle[\w.]*: (.+)")  # of a log: date, time, name of a module of ours
SAID = 160  # characters of it that are shown
COMMAND = (sys.executable, "-m", "fettle.optimizer")


def last_words(lines: Iterable[str]) -> str:
    """What the first of `lines` that a module of ours wrote says, in brief; empty if there is none."""
    found = map(OWN_LINE.match, lines)
    return next((_brief(match[1]) for match in found if match is not None), "")


def _brief(said: str) -> str:
    """A long list ends after a whole entry."""
    listed, comma, _ = said[:SAID].rpartition(", ")
    return f"{listed}, …" if comma and len(said) > SAID else clip(said, SAID)


@dataclass(frozen=True)
class Processes:
    """Runs tasks as processes. Each task's log goes to a separate file in `logs`."""

    environment: Mapping[str, str]
    logs: Path
    command: tuple[str, ...] = COMMAND

    def log_of(self, request: TaskRequest) -> Path:
        """The file of that attempt's log."""
        label = re.sub(r"[^a-z0-9.-]+", "-", request.label.lower())
        return self.logs / f"{label}-{request.task_hash[:8]}-{request.attempt}.log"

    def progress(self, request: TaskRequest) -> TrainingStatus | None:
        """What a training said last in its log; None where it has said nothing yet."""
        lines = reversed(self._end_of_log(request))
        return next((told for line in lines if (told := progress_in(line)) is not None), None)

    def said(self, request: TaskRequest) -> str:
        """What a task said last in its log, in its own words; empty where it has said nothing yet."""
        lines = (line for line in reversed(self._end_of_log(request)) if PROGRESS not in line)
        return last_words(lines)

    def _end_of_log(self, request: TaskRequest) -> list[str]:
        try:
            with self.log_of(request).open("rb") as log:
                log.seek(max(log.seek(0, os.SEEK_END) - TAIL, 0))
                return log.read().decode(errors="replace").splitlines()
        except FileNotFoundError:  # it has only just begun
            return []

    async def run(self, request: TaskRequest) -> TaskState:
        """Run the task to its end or its deadline. If it is cancelled, the process and its children are ended too."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fettle-") as folder, self.log_of(request).open("wb") as log:
            outcome = Path(folder) / "termination"
            process = await asyncio.create_subprocess_exec(
                *self.command,
                env={
                    **self.environment,
                    **request.environment,
                    "FETTLE_TASK": encode_task(request.task),
                    "FETTLE_TERMINATION_LOG": str(outcome),
                },
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a group of its own, so that it ends with all its children
            )
            try:
                out, _ = await asyncio.wait_for(process.communicate(), request.deadline_seconds)
            except TimeoutError:
                message = f"not finished within the {request.deadline_seconds} s that the run had left"
                return _failed(request, Reason.DEADLINE_EXCEEDED, message)
            finally:
                await _end(process)
            return _state(
                request, _termination(outcome), out.decode(errors="replace"), process.returncode, self.log_of(request)
            )


def _termination(path: Path) -> Termination | None:
    try:
        return Termination.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _state(request: TaskRequest, termination: Termination | None, out: str, status: int | None, log: Path) -> TaskState:
    if termination is None:
        how = (
            f"was killed by signal {-status} (out of memory?)"
            if status is not None and status < 0
            else f"exited with status {status}"
        )
        return _failed(request, Reason.JOB_FAILED, f"the process {how} without a result; its log: {log}")
    if termination.outcome == "Failed":
        reason = termination.reason or Reason.JOB_FAILED
        return _failed(request, reason, termination.message, termination.retryable)
    report = unframe(out, termination.result_sha256 or "")
    return TaskState(request.task_hash, TaskPhase.SUCCEEDED, request.attempt, report, finished_at=datetime.now(UTC))


def _failed(request: TaskRequest, reason: Reason, message: str, retryable: bool = False) -> TaskState:
    return TaskState(
        request.task_hash,
        TaskPhase.FAILED,
        request.attempt,
        reason=reason,
        message=message,
        retryable=retryable,
        finished_at=datetime.now(UTC),
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process and all its children, including stopped ones."""
    if process.returncode is None:
        _signal(process.pid, signal.SIGTERM)
        _signal(process.pid, signal.SIGCONT)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE_SECONDS)
    # Children may outlive their parent, stopped or not.
    _signal(process.pid, signal.SIGKILL)
    await process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
