"""What `make check-gpu` does on a GPU, with the CPU in its place as far as that can stand in; and what it writes where there is none."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from bench.gpu import check as program
from bench.gpu import models, server
from bench.gpu.check import BASELINE, Check, Subject
from click.testing import CliRunner

from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import RuntimeName
from fettle.errors import RuntimeFailure
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx.sparse import sparse_products
from fettle.optimizer.steps.onnx_precision import on_cpu
from fettle.runtimes import base, cuda


def subject(entry: Path, feed: np.ndarray, classes: int) -> Subject:
    image = Tensor(name="image", dtype="FP32", shape=(-1, *feed.shape[1:]), batch_axis=0)
    logits = Tensor(name="logits", dtype="FP32", shape=(-1, classes), batch_axis=0)
    return Subject("toy", entry, Signature(inputs=(image,), outputs=(logits,)), {"image": feed})


@pytest.fixture
def digits() -> Subject:
    entry, images = models.digits()
    return subject(entry, images[:4], 10)


def session(of: Subject) -> base.Session:
    return base.get(RuntimeName.ONNXRUNTIME).load(of.entry, RuntimeSettings(), of.signature)


def test_without_a_gpu_every_row_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> cuda.Cuda:
        raise cuda.no_device("no driver")

    monkeypatch.setattr(cuda, "connect", connect)
    result = CliRunner().invoke(program.main, ["--output", str(tmp_path / "gpu.json")])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["check"] for row in rows} == {"correctness", "speed", "server"}
    assert {row["outcome"] for row in rows} == {"not run"}
    assert all("no NVIDIA GPU" in row["why"] for row in rows)


def test_the_committed_figures_are_those_of_a_gpu_or_say_that_there_are_none() -> None:
    content = json.loads(program.RESULTS.read_text())
    ran = [row for row in content["rows"] if row["outcome"] != "not run"]
    assert bool(ran) == bool(content["machine"]["gpu"])
    assert all(row["why"] for row in content["rows"] if row["outcome"] == "not run")


def test_resnet50_has_the_size_of_the_original_and_answers_that_do_not_blow_up(tmp_path: Path) -> None:
    pictures = np.random.default_rng(3).standard_normal((2, 3, 64, 64)).astype(np.float32)
    made = subject(models.resnet50(tmp_path / "model.onnx", 64), pictures, 1000)
    assert 100e6 < made.entry.stat().st_size < 105e6, "25.5 million weights"
    (answers,) = session(made).infer(made.feed).values()
    assert np.isfinite(answers).all()
    assert 1e-3 < np.abs(answers).max() < 1e3, "float16 holds them"


def test_equal_answers_are_right_and_others_are_not(digits: Subject) -> None:
    loaded = session(digits)
    expected = loaded.infer(digits.feed)
    assert program.correct(digits, loaded, expected, 1e-3) == {"outcome": "ok", "worst": 0.0, "alike": 1.0}
    moved = {name: array + 0.1 * np.abs(array).max() for name, array in expected.items()}
    assert program.correct(digits, loaded, moved, 3e-2)["outcome"] == "differs"


def test_each_runtime_is_checked_in_every_form_that_it_and_the_gpu_have() -> None:
    def forms(runtime: RuntimeName, architecture: str) -> list[str]:
        return [form.name for form in program.FORMS if form.lacking(runtime, architecture) is None]

    everything = ["float32", "tf32", "float16", "bfloat16", "int8", "float8"]
    assert forms(RuntimeName.TENSORRT_RTX, "sm89") == forms(RuntimeName.TENSORRT, "sm90") == everything
    assert forms(RuntimeName.TENSORRT_RTX, "sm86") == everything[:-1]
    assert forms(RuntimeName.ONNXRUNTIME_CUDA, "sm89") == ["float32", "tf32", "float16", "int8"]
    assert forms(RuntimeName.ONNXRUNTIME_CUDA, "sm75") == ["float32", "float16", "int8"]


@pytest.mark.parametrize("name", ["int8", "float8"])
def test_a_quantized_form_is_made_of_what_a_subject_is_fed(name: str, digits: Subject, tmp_path: Path) -> None:
    form = next(form for form in program.FORMS if form.name == name)
    (logits,) = session(digits).infer(digits.feed).values()
    made = on_cpu(program.quantized(digits, form, tmp_path / "made")).run(None, digits.feed)[0]
    assert 0 < np.abs(made - logits).max() < form.tolerance * np.abs(logits).max()


def test_sessions_are_timed_in_turns_and_the_baseline_is_1(
    digits: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "BLOCK_SECONDS", 0.002)
    monkeypatch.setattr(program, "WARM_UP_SECONDS", 0.01)
    check = Check(time.monotonic() + 60, tmp_path)
    assert program.timed(check, digits, {BASELINE: session(digits), "other": session(digits)})["outcome"] == "ok"
    rows = {row["subject"]: row for row in check.rows}
    assert (rows[BASELINE]["speedup"], rows[BASELINE]["low"], rows[BASELINE]["high"]) == (1.0, 1.0, 1.0)
    assert rows["other"]["low"] <= rows["other"]["speedup"] <= rows["other"]["high"]
    assert program.timed(check, digits, {"other": session(digits)})["outcome"] == "not run"


def test_a_check_that_fails_is_a_row_and_none_begins_when_the_time_is_over(tmp_path: Path) -> None:
    def refuses() -> dict[str, object]:
        raise RuntimeFailure("tensorrt is not installed here")

    def breaks() -> dict[str, object]:
        raise ValueError("a fault of ours")

    check = Check(time.monotonic() + 60, tmp_path)
    check.attempt("correctness", "toy", "a", refuses)
    check.attempt("correctness", "toy", "b", breaks)
    check.ends = 0.0
    check.attempt("correctness", "toy", "c", breaks)
    assert [(row["outcome"], row["why"]) for row in check.rows] == [
        ("not run", "tensorrt is not installed here"),
        ("failed", "ValueError: a fault of ours"),
        ("not run", "the time was over"),
    ]


def test_the_server_is_put_under_load(digits: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SECONDS", 0.5)
    monkeypatch.setattr(server, "CONNECTIONS", 2)
    (tmp_path / "model").mkdir()
    entry = tmp_path / "model" / "model.onnx"
    entry.write_bytes(digits.entry.read_bytes())
    found = server.requests_per_second(entry, RuntimeName.ONNXRUNTIME, RuntimeSettings(), digits, tmp_path)
    assert found["failed"] == 0
    assert found["requestsPerSecond"] > 0


@pytest.mark.parametrize("frozen", [False, True])
def test_the_twin_in_pytorch_answers_as_the_subject_does(digits: Subject, frozen: bool, tmp_path: Path) -> None:
    import torch
    from bench.gpu import torch_twin

    pictures = np.random.default_rng(3).standard_normal((1, 3, 64, 64)).astype(np.float32)
    large = subject(models.resnet50(tmp_path / "model.onnx", 64), pictures, 1000)
    for each in (digits,) if frozen else (digits, large):
        entry = torch_twin.script(each.entry, each.feed["image"], tmp_path / f"{len(each.feed)}.pt")
        settings = RuntimeSettings(graph_optimization=frozen, threads=torch.get_num_threads())
        twin = base.get(RuntimeName.TORCHSCRIPT).load(entry, settings, each.signature)
        assert program.correct(each, twin, session(each).infer(each.feed), 1e-3)["outcome"] == "ok"


def test_of_the_sparse_subject_every_product_but_the_first_is_2_to_4_sparse(tmp_path: Path) -> None:
    dense = models.resnet50(tmp_path / "dense" / "model.onnx", 64)
    sparse = models.two_of_four(dense, tmp_path / "sparse" / "model.onnx")
    assert sparse_products(onnx_model.load(dense), dense.parent)[0] == 0
    assert sparse_products(onnx_model.load(sparse), sparse.parent) == (53, 54), "pictures have three channels"


def test_times_between_events_stand_beside_the_clocks(digits: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        def __init__(self, inner: base.Session) -> None:
            self.infer, self.effective_settings, self.close = inner.infer, inner.effective_settings, inner.close

        def time_on_gpu(self) -> None:
            return

        def gpu_milliseconds(self) -> float:
            return 0.5

    monkeypatch.setattr(program, "BLOCK_SECONDS", 0.002)
    assert program.block(OnGpu(session(digits)), digits.feed)[1] == 0.5
    assert program.block(session(digits), digits.feed)[1] == 0.0
