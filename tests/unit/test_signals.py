"""A stop that comes while a process still imports its libraries is obeyed, also by the first process of a container."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest


@pytest.mark.parametrize("arguments", ["fettle.controller", "fettle.optimizer", "fettle.server serve"])
def test_a_stop_during_the_start_is_obeyed(arguments: str) -> None:
    # An inherited SIG_IGN stands for what the kernel does for PID 1: no handler, no signal.
    ignoring = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        process = subprocess.Popen([sys.executable, "-m", *arguments.split()], stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGTERM, ignoring)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, words
