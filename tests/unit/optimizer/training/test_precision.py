"""Mixed precision: layers compute in bfloat16 while they learn, and nothing else does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests.unit.optimizer.training.course import Course

from fettle.api.report import CpuClass
from fettle.optimizer.training import loop
from fettle.optimizer.training.program import Module, call
from fettle.runtimes import cpu


def claims(monkeypatch: pytest.MonkeyPatch, *, bf16: bool) -> None:
    """This machine's CPU has bfloat16, or has it not. PyTorch computes with it anywhere, if slowly."""
    monkeypatch.setattr(cpu, "detect", lambda: CpuClass(vendor="GenuineIntel", avx2=True, bf16=bf16))


@pytest.mark.parametrize("asked", [True, False])
def test_only_a_student_that_learns_computes_in_bfloat16(
    course: Course, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    claims(monkeypatch, bf16=True)
    seen: set[tuple[bool, bool, torch.dtype]] = set()

    def watched(module: Module, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        answers = call(module, inputs)
        seen.add((module.training, torch.is_autocast_enabled("cpu"), answers[0].dtype))
        return answers

    monkeypatch.setattr(loop, "call", watched)
    report = course.build({"distill": {"student": {"width": 0.5}}}, epochs=2, mixedPrecision=asked)
    assert report.built is not None, report.message
    learns = (True, asked, torch.bfloat16 if asked else torch.float32)
    assert seen == {learns, (False, False, torch.float32)}, "the teacher, and whoever is judged, computes in float32"
    types = {tensor.data_type for tensor in course.onnx(report.built).graph.initializer}
    assert 16 not in types, "no bfloat16 (onnx.TensorProto.BFLOAT16) is handed on"


def test_training_for_int8_goes_with_mixed_precision(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    claims(monkeypatch, bf16=True)
    report = course.build({"quantize": {"mode": "Aware"}}, epochs=2, mixedPrecision=True)
    assert report.training is not None, report.message
    assert report.training.score > 0.9


def test_a_cpu_without_bfloat16_is_refused_with_what_it_is(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    claims(monkeypatch, bf16=False)
    report = course.build({"distill": {}}, epochs=1, mixedPrecision=True)
    assert report.built is None
    assert "needs a CPU with bfloat16 instructions" in report.message
    assert "found GenuineIntel x86_64 avx2: leave it out" in report.message


def test_a_model_that_does_not_run_in_bfloat16_is_refused(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    claims(monkeypatch, bf16=True)
    step = {"distill": {"student": {"callable": "tests.data.trainable:precise"}}}
    report = course.build(step, epochs=1, mixedPrecision=True)
    assert report.built is None
    assert "train.mixedPrecision: the model does not run in bfloat16: " in report.message
    assert course.build(step, epochs=1).built is not None
