"""`status --watch` as a process: what stands in a terminal, and what a program reads."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from tests.unit.cli.api_server import ApiServer, api_server
from tests.unit.cli.terminal import PATIENCE, Terminal, hear_ctrl_c, terminal
from tests.unit.cli.test_look import on_trial
from tests.unit.cli.test_watching import DEPLOYMENT, MODEL, PODS, listed

from fettle.cli.commands.status import DRAW_SECONDS
from fettle.plan import timestamps

PROGRAM = ("fettle.cli.kubectl", "status", "digits", "--watch")


def digits(version: int, *, weight: int = 10, kind: str = "ModelDeployment") -> dict[str, Any]:
    """A rollout in the middle of a pause of 60 s, as it was at a version."""
    found = on_trial()
    found["kind"] = kind
    found["metadata"] |= {"resourceVersion": str(version), "managedFields": [{"manager": "kubectl"}]}
    found["status"]["canary"] |= {
        "weight": weight,
        "stepStartedAt": timestamps.write(datetime.now(UTC) - timedelta(seconds=9)),
    }
    return found


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A ModelDeployment in the middle of a rollout, and nothing else."""
    with api_server() as found:
        found.objects = {DEPLOYMENT: listed(1, digits(1)), MODEL: listed(1), PODS: listed(1)}
        yield found


def change(server: ApiServer, kind: str, found: dict[str, Any], path: str = DEPLOYMENT) -> None:
    """What the API server tells of it."""
    server.watches[path].put({"type": kind, "object": found})


# ---------------------------------------------------------------------------------------------------------------- a person


@contextmanager
def watching(server: ApiServer, folder: Path, width: int = 80) -> Iterator[Terminal]:
    """The command in a terminal, its first picture drawn."""
    with terminal(*PROGRAM, "--kubeconfig", str(server.kubeconfig(folder)), width=width) as found:
        found.until(lambda screen: "reached: 10 %" in screen)
        yield found


def test_a_terminal_shows_one_picture_that_is_drawn_again_where_it_stands(server: ApiServer, tmp_path: Path) -> None:
    with watching(server, tmp_path) as shown:
        assert not shown.screen.cursor_shown
        change(server, "MODIFIED", digits(2, weight=50))
        screen = shown.until(lambda screen: "reached: 50 %" in screen)
        assert screen.count("modeldeployment/digits") == 1, "in place"
        assert "reached: 10 %" not in screen
        change(server, "DELETED", digits(3, weight=50))
        assert shown.ended() == 0
        assert shown.screen.text.strip() == "modeldeployments/digits was deleted"
        assert shown.screen.cursor_shown


def test_the_time_that_a_pause_still_lasts_moves_without_any_change(server: ApiServer, tmp_path: Path) -> None:
    def left(screen: str) -> int:
        found = re.findall(r"60 s \((\d+) s left\)", screen)  # none while the picture is being drawn
        return int(found[0]) if found else 60

    with watching(server, tmp_path) as shown:
        before = left(shown.screen.text)
        shown.until(lambda screen: left(screen) < before)


def test_below_the_picture_stands_what_is_wrong_for_as_long_as_it_is(server: ApiServer, tmp_path: Path) -> None:
    with watching(server, tmp_path) as shown:
        server.refuse[DEPLOYMENT] = (503, "etcd is away")
        server.watches[DEPLOYMENT].put(None)
        screen = shown.until(lambda screen: "etcd is away; retrying" in screen)
        assert screen.index("reached: 10 %") < screen.index("etcd is away"), "what is known stays"
        del server.refuse[DEPLOYMENT]
        shown.until(lambda screen: "etcd is away" not in screen and "reached: 10 %" in screen)


def test_ctrl_c_leaves_the_last_picture_and_the_cursor_and_is_no_error(server: ApiServer, tmp_path: Path) -> None:
    with watching(server, tmp_path) as shown:
        time.sleep(DRAW_SECONDS / 3)  # a person's hand: not within the millisecond in which it is written
        shown.process.send_signal(signal.SIGINT)
        assert shown.ended() == 0
        assert shown.screen.cursor_shown
        assert shown.screen.text.count("modeldeployment/digits") == 1
        assert "Traceback" not in shown.screen.text


def test_a_narrow_terminal_is_drawn_in_place_too(server: ApiServer, tmp_path: Path) -> None:
    with watching(server, tmp_path, width=48) as shown:  # what is wider than its terminal is an error there
        change(server, "MODIFIED", digits(2, weight=50))
        screen = shown.until(lambda screen: "reached: 50 %" in screen)
        assert screen.count("modeldeployment/digits") == 1


# --------------------------------------------------------------------------------------------------------------- a program


@contextmanager
def reading(server: ApiServer, folder: Path, form: str) -> Iterator[subprocess.Popen[str]]:
    """The command with its output in pipes."""
    words = [*PROGRAM, "-o", form, "--kubeconfig", str(server.kubeconfig(folder))]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment, preexec_fn=hear_ctrl_c) as process:
        try:
            yield process
        finally:
            process.kill()


def next_document(stream: IO[str]) -> Any:
    """The next JSON document of a stream, without waiting for anything after it."""
    lines = [stream.readline()]
    while lines[-1] not in ("}\n", ""):
        lines.append(stream.readline())
    return json.loads("".join(lines))


def test_a_program_gets_a_document_at_each_change_as_it_comes(server: ApiServer, tmp_path: Path) -> None:
    with reading(server, tmp_path, "json") as process:
        assert process.stdout is not None and process.stderr is not None
        first = next_document(process.stdout)
        assert (first["kind"], first["metadata"]["resourceVersion"]) == ("ModelDeployment", "1")
        assert "managedFields" not in first["metadata"], "as kubectl"
        change(server, "MODIFIED", digits(2, weight=50))
        assert next_document(process.stdout)["status"]["canary"]["weight"] == 50
        change(server, "ADDED", digits(3, kind="OptimizedModel"), MODEL)
        assert next_document(process.stdout)["kind"] == "OptimizedModel", "each by itself, never a List"
        server.watches[PODS].put({"type": "ADDED", "object": {"metadata": {"name": "p", "resourceVersion": "4"}}})
        change(server, "DELETED", digits(5, kind="OptimizedModel"), MODEL)
        assert process.stderr.readline() == "optimizedmodels/digits was deleted\n"
        change(server, "DELETED", digits(6))
        assert process.wait(PATIENCE) == 0
        assert process.stdout.read() == "", "pods and deletions are no documents"
        assert process.stderr.read() == "modeldeployments/digits was deleted\n"


@pytest.mark.parametrize("moment", ["at once", "later"])
def test_an_interrupt_ends_it_at_any_moment(server: ApiServer, tmp_path: Path, moment: str) -> None:
    with reading(server, tmp_path, "json") as process:
        assert process.stdout is not None and process.stderr is not None
        next_document(process.stdout)
        if moment == "later":
            change(server, "MODIFIED", digits(2, weight=50))
            next_document(process.stdout)  # so the watch is open
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""


def test_yaml_documents_are_apart(server: ApiServer, tmp_path: Path) -> None:
    with reading(server, tmp_path, "yaml") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        change(server, "MODIFIED", digits(2, weight=50))
        while lines[-1] != "---\n":
            lines.append(process.stdout.readline())
        change(server, "DELETED", digits(3))
        assert process.wait(PATIENCE) == 0
        found = list(yaml.safe_load_all("".join(lines) + process.stdout.read()))
    assert [one["status"]["canary"]["weight"] for one in found] == [10, 50]


def test_what_is_not_there_cannot_be_watched(server: ApiServer, tmp_path: Path) -> None:
    server.objects[DEPLOYMENT] = listed(1)
    with reading(server, tmp_path, "json") as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (1, "")
    assert "no modeldeployment or optimizedmodel 'digits'" in errors
