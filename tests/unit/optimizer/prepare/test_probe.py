"""A runtime that crashes on a model is one that does not load it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data import models

from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer.onnx import model
from fettle.optimizer.prepare import probe


def signature(path: Path) -> Signature:
    return model.signature(model.read(path))


@pytest.mark.parametrize(("name", "words"), [("dynamic_batch", None), ("texts", "ai.onnx.ml.LabelEncoder")])
def test_a_runtime_is_asked_in_a_process_of_its_own(tmp_path: Path, name: str, words: str | None) -> None:
    path = models.save(models.BY_NAME[name](), tmp_path / "model.onnx")
    found = probe.refusal(RuntimeName.OPENVINO, path, signature(path))
    assert (found is None) if words is None else (found is not None and words in found)


def test_a_crash_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.save(models.dynamic_batch(), tmp_path / "model.onnx")
    # What is run instead of the interpreter ends itself by a signal, as a library that overruns its memory does.
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(crashing))
    found = probe.refusal(RuntimeName.OPENVINO, path, signature(path))
    assert found == "it crashed while it loaded the model (exit status -11)"
