"""A command that has the cluster to itself: its exit status, its end by a signal, and nobody else in its cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from tools.cluster import cli, fresh
from tools.cluster.errors import InUseError
from tools.cluster.paths import TEST, Paths

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137)])
def test_the_exit_status_is_the_commands(script: str, status: int) -> None:
    assert fresh.play(["sh", "-c", script]) == status


CHILD = """
import signal, sys, time
def end(number, _):
    print("ended by", number, flush=True)
    sys.exit(5)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, end)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("through", [(), ("sh", "-c", '"$@"; exit 7', "sh")], ids=["itself", "a shell"])
def test_a_command_is_told_to_end_and_waited_for(number: signal.Signals, through: tuple[str, ...]) -> None:
    command = [*through, sys.executable, "-c", CHILD]
    program = f"import sys; from tools.cluster import fresh; sys.exit(fresh.play({command!r}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Whoever starts the tests may have it ignored (nohup), which children inherit.
    heard = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=heard
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == f"ended by {int(number)}\n"
    assert process.returncode == (128 + number if through else 5)


def test_one_command_at_a_time_has_the_cluster(tmp_path: Path) -> None:
    paths = Paths(tmp_path, TEST)
    with (
        fresh.in_use(paths),
        pytest.raises(InUseError, match=rf"fettle-test is in use .*pid {os.getpid()}\)"),
        fresh.in_use(paths),
    ):
        pass
    with fresh.in_use(paths):
        pass


def test_another_commands_end_is_not_hastened_by_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "checkout", lambda cluster: Paths(tmp_path, cluster))
    with fresh.in_use(Paths(tmp_path, TEST)):
        done = CliRunner().invoke(cli.main, ["down", "--name", TEST.name])
    assert done.exit_code == 1
    assert "is in use by a command that stops it when it ends" in done.output
