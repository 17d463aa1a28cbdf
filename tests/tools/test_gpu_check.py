"""What `make check-gpu` does on a GPU, with the CPU in its place as far as that can stand in; and what it writes where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench.gpu import check as program
from bench.gpu import clock, models, server
from bench.gpu.check import Check
from bench.gpu.clock import BASELINE, EAGER
from bench.gpu.forms import FORMS, IN_PROFILES, Subject, quantized
from click.testing import CliRunner
from tests.unit.runtimes.fake_cuda import OUT_OF_MEMORY, FakeCuda

from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import RuntimeName
from fettle.errors import RecipeError, RuntimeFailure
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


def test_an_engine_with_profiles_is_asked_for_a_batch_of_each(digits: Subject) -> None:
    loaded = session(digits)
    expected = loaded.infer(digits.feed)
    asked: list[int] = []

    class Counting(Full):
        def infer(self, inputs: base.Arrays, interrupt: base.Interrupt | None = None) -> dict[str, base.Array]:
            asked.append(len(inputs["image"]))
            return loaded.infer(inputs)

    assert program.correct(digits, Counting(), expected, 1e-3, (1, 3, 4))["outcome"] == "ok"
    assert asked == [1, 3, 4]
    assert IN_PROFILES.lacking(RuntimeName.TENSORRT_RTX, "sm89") is None
    assert IN_PROFILES.lacking(RuntimeName.ONNXRUNTIME_CUDA, "sm89") == "onnxruntime-cuda has no optimization profiles"
    assert max(IN_PROFILES.batches) <= program.subject_of("digits", Path()).batch


def test_each_runtime_is_checked_in_every_form_that_it_and_the_gpu_have() -> None:
    def forms(runtime: RuntimeName, architecture: str) -> list[str]:
        return [form.name for form in FORMS if form.lacking(runtime, architecture) is None]

    everything = ["float32", "tf32", "float16", "bfloat16", "int8", "float8"]
    assert forms(RuntimeName.TENSORRT_RTX, "sm89") == forms(RuntimeName.TENSORRT, "sm90") == everything
    assert forms(RuntimeName.TENSORRT_RTX, "sm86") == everything[:-1]
    assert forms(RuntimeName.ONNXRUNTIME_CUDA, "sm89") == ["float32", "tf32", "float16", "int8"]
    assert forms(RuntimeName.ONNXRUNTIME_CUDA, "sm75") == ["float32", "float16", "int8"]


@pytest.mark.parametrize("name", ["int8", "float8"])
def test_a_quantized_form_is_made_of_what_a_subject_is_fed(name: str, digits: Subject, tmp_path: Path) -> None:
    form = next(form for form in FORMS if form.name == name)
    (logits,) = session(digits).infer(digits.feed).values()
    made = on_cpu(quantized(digits, form, tmp_path / "made")).run(None, digits.feed)[0]
    assert 0 < np.abs(made - logits).max() < form.tolerance * np.abs(logits).max()


def test_sessions_are_timed_in_turns_and_the_baseline_is_1(
    digits: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    check = Check(time.monotonic() + 60, tmp_path)
    sessions = {BASELINE: session(digits), EAGER: session(digits), "other": session(digits)}
    assert clock.timed(check, digits, sessions)["outcome"] == "ok"
    rows = {row["subject"]: row for row in check.rows}
    assert (rows[BASELINE]["speedup"], rows[BASELINE]["low"], rows[BASELINE]["high"]) == (1.0, 1.0, 1.0)
    assert rows["other"]["low"] <= rows["other"]["speedup"] <= rows["other"]["high"]
    assert (rows[EAGER]["overEager"], rows[EAGER]["overEagerLow"], rows[EAGER]["overEagerHigh"]) == (1.0, 1.0, 1.0)
    assert rows["other"]["overEagerLow"] <= rows["other"]["overEager"] <= rows["other"]["overEagerHigh"]
    assert clock.timed(check, digits, {"other": session(digits)})["outcome"] == "not run"


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "BLOCK_SECONDS", 0.002)
    monkeypatch.setattr(clock, "WARM_UP_SECONDS", 0.01)


def test_a_clock_that_is_begun_late_takes_fewer_rounds(
    digits: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    assert clock.timed(Check(0.0, tmp_path), digits, {BASELINE: session(digits)})["rounds"] == clock.LEAST_ROUNDS


class Full:
    """A session for which there is no room beside the others."""

    def infer(self, inputs: base.Arrays, interrupt: base.Interrupt | None = None) -> dict[str, base.Array]:
        raise OUT_OF_MEMORY

    def effective_settings(self) -> RuntimeSettings:
        return RuntimeSettings()

    def close(self) -> None:
        return


def test_a_session_that_fails_beside_others_is_a_row_and_the_others_are_timed(
    digits: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    check = Check(0.0, tmp_path)
    clock.timed(check, digits, {BASELINE: session(digits), "large": Full()})
    assert {row["subject"]: row["outcome"] for row in check.rows} == {"large": "failed", BASELINE: "ok"}


def test_what_a_machine_lacks_is_not_run_and_what_breaks_on_it_has_failed(tmp_path: Path) -> None:
    table = [
        (RecipeError("tensorrt is not installed here"), ("not run", "tensorrt is not installed here")),
        (ImportError("No module named 'torch'"), ("not run", "ImportError: No module named 'torch'")),
        (ValueError("a fault of ours"), ("failed", "ValueError: a fault of ours")),
        (cuda.ContextLost("the GPU's context is lost"), ("failed", "the GPU's context is lost")),
        (RuntimeFailure("running the model failed"), ("failed", "running the model failed")),
    ]
    check = Check(time.monotonic() + 60, tmp_path, tmp_path / "rows")
    for error, _ in table:

        def breaks(error: Exception = error) -> Mapping[str, object]:
            raise error

        check.attempt("correctness", "toy", "a", breaks)
    check.ends = 0.0
    check.attempt("correctness", "toy", "a", dict)
    expected = [*(told for _, told in table), ("not run", "the time was over")]
    assert [(row["outcome"], row["why"]) for row in check.rows] == expected
    assert [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()] == check.rows


def test_builds_leave_time_for_the_clock(tmp_path: Path) -> None:
    check = Check(time.monotonic() + 60, tmp_path, kept=70)
    check.attempt("correctness", "toy", "a", lambda: {"outcome": "ok"})
    check.attempt("clock", "toy", "all of them", lambda: {"outcome": "ok"})
    assert [row["outcome"] for row in check.rows] == ["not run", "ok"]


def program_that(does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `does` be what a model's own process does. It knows the file of its rows as `$rows`."""
    stub = tmp_path / "python"
    stub.write_text(f"#!/usr/bin/env bash\nrows=${{@: -1}}\n{does}\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("exit 0", None),
        ("kill -SEGV $$", "its process ended with the status -11"),
        ("exec sleep 600", "its process did not end within 1 s"),
    ],
    ids=["well", "a crash", "a hang"],
)
def test_a_library_that_crashes_or_hangs_costs_the_rest_of_its_model(
    does: str, why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"check": "correctness", "model": "digits", "subject": "a", "outcome": "ok"}
    monkeypatch.setattr(program, "GRACE_SECONDS", 0.0)
    program_that(f"echo '{json.dumps(row)}' > $rows\n{does}", tmp_path, monkeypatch)
    check = Check(time.monotonic() + 60, tmp_path)
    program.apart(check, "digits", 1.0)
    assert check.rows[0] == row
    assert [(row["outcome"], row["why"]) for row in check.rows[1:]] == ([("failed", why)] if why is not None else [])


def test_every_model_gets_its_part_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "connect", FakeCuda)
    program_that('echo "{\\"told\\": \\"$*\\"}" > $rows', tmp_path, monkeypatch)
    check = Check(time.monotonic() + 600, tmp_path)
    program.every_model(check, time.monotonic(), 600.0)
    words = [row["told"].split() for row in check.rows]
    assert [each[each.index("--only") + 1] for each in words] == list(program.MODELS)
    given = [float(each[each.index("--seconds") + 1]) for each in words]
    assert 250 < given[0] < given[1] < given[2] < 600, "these take no time, which is left to the next"
    check.rows.clear()
    program.every_model(check, time.monotonic() - 700, 600.0)
    assert [row["why"] for row in check.rows] == ["the time was over"] * 3


def test_a_models_own_process_writes_its_rows_one_a_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(program.main, ["--only", "digits", "--seconds", "0", "--output", str(rows)])
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert {(row["check"], row["outcome"]) for row in found} == {("correctness", "not run"), ("server", "not run")}
    subjects = [row["subject"] for row in found]
    assert subjects.index(BASELINE) < subjects.index("torchscript-cuda original") < subjects.index(EAGER)
    assert subjects.index(EAGER) < subjects.index("tensorrt-rtx float32"), (
        "engines, which take long to build, come last"
    )


def test_each_model_is_served_from_a_folder_of_its_own(
    digits: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "connect", FakeCuda)
    monkeypatch.setattr(server, "requests_per_second", lambda *given: {"requestsPerSecond": 1.0})
    check = Check(time.monotonic() + 60, tmp_path)
    for name in ("small", "large"):
        program.served(check, replace(digits, name=name))
    served = [row for row in check.rows if row["subject"].startswith("onnxruntime-cuda")]
    assert [(row["model"], row["outcome"]) for row in served] == [("small", "ok"), ("large", "ok")]


# ---------------------------------------------------------------------------------------------------------- the installation

PYTHON = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
while (($#)); do [[ $1 == -r ]] && cat "$2" >> "$LOG.locked"; shift; done
exit 0
"""


def installed(tmp_path: Path) -> tuple[list[str], set[str]]:
    """The calls of Python in an environment that check.sh finds, and the names of what it is told to install."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / "python").write_text(PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)
    log = tmp_path / "log"
    told = {"FETTLE_GPU_ENVIRONMENT": str(tmp_path), "FETTLE_PYTHON": sys.executable, "LOG": str(log)}
    words = ["bash", str(models.ROOT / "bench" / "gpu" / "check.sh"), "--seconds", "5"]
    subprocess.run(words, env={"PATH": "/usr/bin:/bin", **told}, check=True, capture_output=True)
    lines = (tmp_path / "log.locked").read_text().splitlines()
    return log.read_text().splitlines(), {line.split("==")[0] for line in lines if "==" in line and line[0].isalpha()}


def test_the_script_installs_what_is_locked_and_never_two_builds_of_one_library(tmp_path: Path) -> None:
    if list((models.ROOT / "bench" / "gpu" / "wheels").glob("*.whl")):
        pytest.skip("wheels were carried here, and nothing else is installed")
    for _ in range(2):  # as on a second run
        calls, names = installed(tmp_path)
        assert {"onnxruntime-gpu", "tensorrt-rtx-cu12", "tensorrt-rtx-cu12-libs", "torch", "onnx", "httpx"} <= names
        assert "onnxruntime" not in names, "its files are those of onnxruntime-gpu"
        assert not [call for call in calls if "uninstall" in call]
        assert all("--require-hashes" in call for call in calls if "install" in call)
        assert calls[-1] == "-m bench.gpu.check --seconds 5"


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
        expected = session(each).infer(each.feed)
        assert program.correct(each, twin, expected, 1e-3)["outcome"] == "ok"
        with torch.inference_mode():
            answers = torch_twin.twin(each.entry)(torch.from_numpy(each.feed["image"]))
        np.testing.assert_allclose(answers["logits"].numpy(), expected["logits"], atol=1e-3)


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

    monkeypatch.setattr(clock, "BLOCK_SECONDS", 0.002)
    assert clock.block(OnGpu(session(digits)), digits.feed)[1] == 0.5
    assert clock.block(session(digits), digits.feed)[1] == 0.0
