"""Daemons are known by pid and start time."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tools.cluster import process


@pytest.fixture
def daemon(tmp_path: Path) -> process.Record:
    command = [sys.executable, "-c", "import time; print('hello'); time.sleep(600)"]
    return process.start(tmp_path / "pids", "sleeper", command, "f", tmp_path / "sleeper.log", tmp_path)


def test_a_daemon_is_found_again_and_stopped(daemon: process.Record, tmp_path: Path) -> None:
    assert process.records(tmp_path / "pids") == {"sleeper": daemon}
    assert process.alive(daemon)
    process.stop([daemon])
    assert not process.alive(daemon)


def test_a_pid_that_changed_hands_is_neither_alive_nor_stopped(daemon: process.Record) -> None:
    somebody_else = replace(daemon, started=daemon.started - 1)
    process.stop([somebody_else])
    assert process.alive(daemon)
    assert not process.alive(somebody_else)
    assert not process.alive(replace(daemon, boot="another"))
    process.stop([daemon])


def test_half_a_pid_file_is_no_daemon(daemon: process.Record, tmp_path: Path) -> None:
    (tmp_path / "pids" / "broken.json").write_text('{"name": "br')
    assert list(process.records(tmp_path / "pids")) == ["sleeper"]
    process.stop([daemon])


def test_the_start_time_of_this_process_is_known() -> None:
    assert process.start_time(os.getpid())
    assert process.start_time(2**22 + 1) is None
