"""`kubectl fettle tensorboard`: what is copied, and what is started. The pod's program runs as a process of this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from tests.unit.cli.pipe import running

from fettle.cli.access.claim_files import ClaimFiles
from fettle.cli.access.claim_pod import Wire, parse_target
from fettle.cli.access.pull_files import pull_files
from fettle.cli.commands.tensorboard import curves_of, pull_curves, show
from fettle.cli.pods import send
from fettle.errors import UsageError

REPORT = "pvc://fettle-store/reports/team/digits/3.html"


def from_claim(pipe: Wire, uri: str, to: Path) -> None:
    """As a pod that mounts the claim would bring them."""
    pull_files(ClaimFiles(pipe), parse_target(uri).path, to, lambda number: None)


def test_the_curves_of_a_run_get_a_folder_of_its_number(tmp_path: Path) -> None:
    assert curves_of(REPORT) == "pvc://fettle-store/reports/team/digits/3.tensorboard"
    curves = tmp_path / "claim/reports/team/digits/3.tensorboard/lean-torchscript"
    curves.mkdir(parents=True)
    (curves / "events.out.tfevents.0.fettle").write_bytes(b"events")
    with running(send, tmp_path / "claim") as pipe:
        to = pull_curves(curves_of(REPORT), tmp_path / "curves", partial(from_claim, pipe))
    assert to == tmp_path / "curves/3"
    assert (to / "lean-torchscript/events.out.tfevents.0.fettle").read_bytes() == b"events"


def test_a_run_that_trained_nothing_is_said_to_have_no_curves(tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    with running(send, tmp_path / "claim") as pipe, pytest.raises(UsageError, match="the last run trained nothing"):
        pull_curves(curves_of(REPORT), tmp_path / "curves", partial(from_claim, pipe))
    assert not (tmp_path / "curves").exists()


def test_tensorboard_is_started_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tensorboard"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    show(Path("digits-tensorboard"))
    assert (tmp_path / "said").read_text() == "--logdir digits-tensorboard\n"


def test_without_tensorboard_one_is_told_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    show(Path("digits-tensorboard"))
    told = "TensorBoard is not installed: pip install tensorboard, then tensorboard --logdir digits-tensorboard\n"
    assert capsys.readouterr().err == told
