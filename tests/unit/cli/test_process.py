"""A task as a real process: what it answers, how it fails, and that nothing of it is left behind."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest
from tests.unit.plan.optimize.world import World

from fettle.api.progress import TrainingStatus, progress_line
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport
from fettle.cli.local.process import Processes, last_words
from fettle.plan.run.state import TaskPhase, TaskRequest

PREAMBLE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from fettle.api.report import PublishReport, Termination, frame
from fettle.optimizer.stage import read_task
task = read_task(os.environ)
outcome = Path(os.environ["FETTLE_TERMINATION_LOG"])
def end(**fields):
    outcome.write_bytes(Termination(**fields).canonical())
"""
SUCCEEDS = """
from fettle.api.report import REPORT
line, digest = frame(REPORT.validate_json(Path(os.environ["ANSWER"]).read_bytes()))
print("libraries talk too", file=sys.stderr)
end(outcome="Succeeded", result_sha256=digest)
print(line)
"""


def wanted() -> TaskRequest:
    """The first task of a run."""
    return World().look().requests[0]


def processes(folder: Path, script: str, **environment: str) -> Processes:
    """A runner of `script` instead of the optimizer."""
    path = folder / "task.py"
    path.write_text(PREAMBLE + script)
    return Processes({**os.environ, **environment}, folder / "logs", (sys.executable, str(path)))


async def test_a_task_that_succeeds_is_answered_with_its_report(tmp_path: Path) -> None:
    task = wanted()
    report = World().report(task.task)
    answer = tmp_path / "answer.json"
    answer.write_bytes(report.canonical())
    runner = processes(tmp_path, SUCCEEDS, ANSWER=str(answer))
    state = await runner.run(task)
    assert state.phase == TaskPhase.SUCCEEDED
    assert isinstance(state.report, PrepareReport)
    assert state.report == report
    assert "libraries talk too" in runner.log_of(task).read_text()


FAILURES = [
    (
        "a failure says why",
        'end(outcome="Failed", reason="SourceNotFound", message="no model", retryable=True); sys.exit(1)',
        Reason.SOURCE_NOT_FOUND,
        "no model",
    ),
    ("a crash names its log", "sys.exit(3)", Reason.JOB_FAILED, "status 3 without a result; its log:"),
    ("a kill is named", "os.kill(os.getpid(), signal.SIGKILL)", Reason.JOB_FAILED, "killed by signal 9"),
]


@pytest.mark.parametrize(("sentence", "script", "reason", "message"), FAILURES, ids=[line[0] for line in FAILURES])
async def test_a_task_that_fails(tmp_path: Path, sentence: str, script: str, reason: Reason, message: str) -> None:
    state = await processes(tmp_path, script).run(wanted())
    assert (state.phase, state.reason) == (TaskPhase.FAILED, reason)
    assert message in state.message
    assert state.retryable == (reason == Reason.SOURCE_NOT_FOUND)


async def test_an_answer_that_is_not_whole_is_no_answer(tmp_path: Path) -> None:
    script = 'end(outcome="Succeeded", result_sha256="0" * 64); print("FETTLE-RESULT {}")'
    state = await processes(tmp_path, script).run(wanted())
    assert state.phase == TaskPhase.SUCCEEDED
    assert state.report is None


HANGS = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
os.kill(child.pid, signal.SIGSTOP)
Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""


async def test_an_interrupted_task_leaves_no_process_behind(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    work = asyncio.ensure_future(processes(tmp_path, HANGS, PIDS=str(pids)).run(wanted()))
    while not pids.exists() or not pids.read_text():  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.05)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    for pid in pids.read_text().split():
        for _ in range(1200):
            if not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(f"{pid} still lives")


async def test_what_a_training_said_last_is_read_from_its_log(tmp_path: Path) -> None:
    task = wanted()
    runner = processes(tmp_path, "")
    assert runner.progress(task) is None, "its log is not there yet"
    come = [
        TrainingStatus(epoch=epoch, epochs=9, validation_loss=0.5, validation_score=0.9, best_epoch=1, seconds=epoch)
        for epoch in (1, 2)
    ]
    runner.logs.mkdir()
    lines = [*(f"12:00:00 fettle.loop: {progress_line(each)}" for each in come), "x" * 40_000]
    runner.log_of(task).write_text("\n".join(lines[:2]) + "\nsaving\n")
    assert runner.progress(task) == come[1]
    runner.log_of(task).write_text("\n".join(lines))
    assert runner.progress(task) is None, "only the end of a long log is read"


def test_the_last_own_line_of_a_tasks_log_is_what_it_said_last(tmp_path: Path) -> None:
    task, runner = wanted(), processes(tmp_path, "")
    assert runner.said(task) == "", "its log is not there yet"
    runner.logs.mkdir()
    trained = TrainingStatus(epoch=1, epochs=9, validation_loss=0.5, validation_score=0.9, best_epoch=1, seconds=1)
    lines = [
        "2026-01-01 12:00:00,001 fettle.optimizer.measure.clock: process start 1, round 2: baseline 1.2 ms",
        "2026-01-01 12:00:01,001 nncf.common: INFO: not implemented",
        f"2026-01-01 12:00:02,001 fettle.loop: {progress_line(trained)}",
        "a library without a format",
    ]
    runner.log_of(task).write_text("\n".join(lines))
    assert runner.said(task) == "process start 1, round 2: baseline 1.2 ms"


def test_of_a_long_list_whole_entries_are_shown() -> None:
    figures = [f"int8-openvino-{number} 0.425 ms (12.56x)" for number in range(9)]
    line = "2026-01-01 12:00:00,001 fettle.optimizer.measure.clock: process start 1, round 2: baseline 5.39 ms, "
    shown = f"process start 1, round 2: baseline 5.39 ms, {figures[0]}, {figures[1]}, {figures[2]}"
    assert last_words([line + ", ".join(figures)]) == f"{shown}, …"
    assert last_words([line + ", ".join(figures[:3])]) == shown
