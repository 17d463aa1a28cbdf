"""Which runtimes load the portable form: each is asked, once, where it should be installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api import images
from fettle.api.images import Image, ImageEntry
from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer.onnx import model
from fettle.optimizer.prepare import earlier, probe, stage
from fettle.store import cache


def signature(path: Path) -> Signature:
    return model.signature(model.read(path))


@pytest.mark.parametrize(("name", "words"), [("dynamic_batch", None), ("texts", "ai.onnx.ml.LabelEncoder")])
def test_a_runtime_is_asked_in_a_process_of_its_own(tmp_path: Path, name: str, words: str | None) -> None:
    path = models.save(models.BY_NAME[name](), tmp_path / "model.onnx")
    refusal = probe.refusal(RuntimeName.OPENVINO, path, signature(path))
    assert (refusal is None) if words is None else (refusal is not None and words in refusal)


def test_a_crash_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.save(models.dynamic_batch(), tmp_path / "model.onnx")
    # What is run instead of the interpreter ends itself by a signal, as a library that overruns its memory does.
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(crashing))
    refusal = probe.refusal(RuntimeName.OPENVINO, path, signature(path))
    assert refusal == "it crashed while it loaded the model (exit status -11)"


def test_a_runtime_of_another_image_is_not_asked_here(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.put(models.texts())
    task = bench.task(inputs=[])
    assert RuntimeName.OPENVINO not in bench.prepare(task).portable_runtimes
    slim = ImageEntry(Image.OPTIMIZER, frozenset({"numpy", "onnx", "onnxruntime"}))
    large = ImageEntry(Image.OPTIMIZER_TORCH, slim.libraries | {"openvino"})
    monkeypatch.setattr(images, "IMAGES", (slim, large))
    # As in the slim image; that the runtime's version moved is also why the earlier answer does not hold.
    monkeypatch.setattr(cache, "version", lambda name: cache.ABSENT if name == "openvino" else "1.0")
    monkeypatch.setattr(stage, "version", cache.version)
    monkeypatch.setattr(earlier, "version", cache.version)
    report = bench.prepare(task)
    assert RuntimeName.OPENVINO in report.portable_runtimes, "the measuring Job will tell"
    assert not any("openvino" in note for note in report.notes)


def test_what_loads_the_model_is_asked_again_when_a_runtime_has_another_version(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put(models.dynamic_batch())
    report = bench.prepare()
    assert bench.prepare() == report, "answered from the store"
    monkeypatch.setattr(earlier, "version", lambda name: "next" if name == "openvino" else cache.version(name))
    again = bench.prepare()
    assert again.preparation != report.preparation
    assert again.model_copy(update={"preparation": report.preparation, "traits": report.traits}) == report


def test_a_portable_form_of_other_steps_is_made_again(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.put(models.dynamic_batch())
    report = bench.prepare()
    assert bench.prepare().traits == report.traits, "the clock's too: the report is the earlier one"
    monkeypatch.setattr("fettle.optimizer.prepare.earlier.REVISION", 0)
    assert bench.prepare().preparation != report.preparation
