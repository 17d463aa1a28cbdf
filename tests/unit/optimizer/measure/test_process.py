"""A worker's process: what its parent learns of its end, and that it never stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.unit.optimizer.measure.models import SIGNATURE

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.vocabulary import RuntimeName
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure.process import WorkerDied, WorkerProcess
from fettle.optimizer.measure.protocol import Judge, Load

ORPHAN = """
import time
from fettle.optimizer.measure.process import WorkerProcess
worker = WorkerProcess("orphan")
worker.peak_memory()
worker.stop()
print("stopped", flush=True)
time.sleep(600)
"""


def child(name: str, parent: int | None = None) -> psutil.Process:
    """The living worker of that name; children that another test has not reaped yet have no command line."""
    living = (one for one in psutil.Process(parent).children() if one.status() != psutil.STATUS_ZOMBIE)
    return next(one for one in living if name in one.cmdline())


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until `holds`; the test's own timeout is the limit."""
    while not holds():
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("deadly", "reason", "message"),
    [
        (signal.SIGSEGV, Reason.JOB_FAILED, "SIGSEGV"),
        (signal.SIGABRT, Reason.JOB_FAILED, "SIGABRT"),
        (signal.SIGKILL, Reason.OUT_OF_MEMORY, "memory"),
    ],
)
def test_a_death_says_what_killed_it(deadly: signal.Signals, reason: Reason, message: str) -> None:
    with WorkerProcess("victim") as worker:
        assert worker.peak_memory() > 0
        child("victim").send_signal(deadly)
        with pytest.raises(WorkerDied, match=message) as caught:
            worker.answers(Judge((0,)))
    assert caught.value.reason == reason


def test_a_failure_leaves_the_process_alive_for_the_next_request(tmp_path: Path) -> None:
    with WorkerProcess("asked") as worker:
        with pytest.raises(RuntimeFailure, match="nothing is loaded"):
            worker.answers(Judge((0,)))
        request = Load(tmp_path / "no.onnx", RuntimeName.ONNXRUNTIME, RuntimeSettings(), SIGNATURE, {})
        with pytest.raises(RuntimeFailure, match="no array for the inputs"):
            worker.load(request)
        assert worker.peak_memory() > 0


def test_a_stopped_process_answers_when_it_is_asked_and_can_be_closed_as_it_stands() -> None:
    worker = WorkerProcess("sleeper")
    assert worker.peak_memory() > 0
    process = child("sleeper")
    worker.stop()
    eventually(lambda: process.status() == psutil.STATUS_STOPPED)
    assert worker.peak_memory() > 0
    worker.stop()
    worker.close()
    worker.close()
    assert not process.is_running()


def test_a_stopped_worker_does_not_outlive_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, env=dict(os.environ))
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"stopped\n"
        worker = child("orphan", parent.pid)
    finally:
        parent.kill()
        parent.wait()
    eventually(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
