"""Errors that name fields of a manifest, on a command line that has options instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.data import models

from fettle.cli.commands.optimize import optimize
from fettle.cli.local.option_hints import OPTIONS, option_hint
from fettle.cli.main import main


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("set source.trusted: true if you made this file", "on the command line, source.trusted is --trusted"),
        ("set source.factory to the code", "on the command line, source.factory is --factory"),
        ("data.npz and source.onnx were read", ""),
        ("in a cluster source.format: Keras selects the image", ""),
        ("no such file", ""),
    ],
)
def test_a_field_that_has_an_option_is_told_with_it(message: str, hint: str) -> None:
    assert option_hint(message) == hint


@pytest.mark.parametrize("message", ["if labels start at 1, set data.evaluation.labelOffset: 1", "set labelOffset: 1"])
def test_a_field_without_an_option_is_told_with_the_way_to_set_it(message: str) -> None:
    hint = option_hint(message)
    assert hint.startswith("data.evaluation.labelOffset has no option: add `-o yaml > model.yaml` to `fettle optimize`")
    assert "fettle optimize -f model.yaml" in hint


def test_every_option_that_is_told_exists_and_stands_for_a_field_that_exists() -> None:
    existing = {name for parameter in optimize.params for name in parameter.opts}
    assert set(OPTIONS.values()) <= existing
    for field, option in OPTIONS.items():
        assert option_hint(f"set {field}.") == f"on the command line, {field} is {option}"


@pytest.mark.parametrize("command", ["optimize", "init"])
def test_a_run_without_a_manifest_that_fails_says_once_why_and_which_option_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    models.save(models.dynamic_batch(), tmp_path / "model.onnx")
    images = np.zeros((40, 1, 16, 16), np.float32) + np.arange(40, dtype=np.float32)[:, None, None, None]
    np.savez(tmp_path / "items.npz", image=images, labels=np.arange(40) % 4 + 1)
    result = CliRunner().invoke(main, [command, "model.onnx", "--evaluation", "items.npz"])
    assert result.exit_code == 1
    assert result.output.count("if labels start at 1, set data.evaluation.labelOffset: 1") == 1, result.output
    assert "data.evaluation.labelOffset and data.evaluation.ignoreLabel have no options" in result.output
