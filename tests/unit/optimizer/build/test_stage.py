"""A task from the environment to its answer: every failure is one clear line with a reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tests.data import models
from tests.pod_environment import POD_ENVIRONMENT
from tests.unit.optimizer.prepare.workbench import Workbench
from tests.unit.plan.optimize.world import World

from fettle.api.data import EvaluationSpec
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.recipe import QuantizeStep, RecipeStep
from fettle.api.report import MeasureReport, Termination
from fettle.api.task import COMPRESSED, JUDGING, BuildPlan, BuildTask, MeasureTask, PrepareTask, encode_task, task_hash
from fettle.api.text import MESSAGE_LIMIT
from fettle.api.vocabulary import CandidateState, RuntimeName
from fettle.errors import UsageError
from fettle.optimizer import stage
from fettle.runtimes import cpu
from fettle.store.cache import runtime_versions
from fettle.store.manifest import Manifest


def process(bench: Workbench, **environment: str) -> tuple[int, str, Termination | None]:
    log = bench.folder / "termination"
    done = subprocess.run(
        [sys.executable, "-m", "fettle.optimizer"],
        env={**POD_ENVIRONMENT, "FETTLE_TERMINATION_LOG": str(log), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    termination = Termination.model_validate_json(log.read_text()) if log.exists() else None
    return done.returncode, done.stdout, termination


def test_a_large_task_is_compressed_and_read_back(bench: Workbench) -> None:
    task = bench.task()
    assert not encode_task(task).startswith(COMPRESSED)
    packed = encode_task(task, limit=10)
    assert packed.startswith(COMPRESSED)
    for text in (packed, encode_task(task)):
        assert stage.read_task({"FETTLE_TASK": text}) == task


@pytest.mark.parametrize("text", ["", "{", "{}", '{"kind": "dance"}', "zlib:AAAA", "zlib:%%%"])
def test_what_is_no_task_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="FETTLE_TASK"):
        stage.read_task({"FETTLE_TASK": text})


def test_a_process_without_a_task_says_so(bench: Workbench) -> None:
    code, out, termination = process(bench)
    assert (code, out) == (1, "")
    assert termination is not None and "started by the operator" in termination.message


def test_a_failure_is_told_with_its_reason(bench: Workbench) -> None:
    bench.put(models.custom_operator())
    code, out, termination = process(bench, FETTLE_TASK=encode_task(bench.task()), **bench.mounts.to_environment())
    assert (code, out) == (1, "")
    assert termination is not None
    assert (termination.outcome, termination.reason) == ("Failed", Reason.UNSUPPORTED_OPERATOR)
    assert "SecretSauce" in termination.message
    assert len(termination.message) <= MESSAGE_LIMIT


def test_a_failure_is_never_kept(bench: Workbench) -> None:
    bench.put(models.custom_operator())
    answer = stage.answer(bench.task(), bench.mounts)
    assert answer.termination.outcome == "Failed"
    assert not list(bench.folder.glob("store/results/*"))
    bench.put(models.dynamic_batch())
    assert stage.answer(bench.task(), bench.mounts).termination.outcome == "Succeeded"


@pytest.mark.parametrize(("state", "outcome"), [("Measured", "Succeeded"), ("Failed", "Failed")])
def test_a_measurement_is_answered_from_the_store_unless_a_candidate_failed(
    bench: Workbench, state: str, outcome: str
) -> None:
    """Measured again it fails here: the models that it names are in no store."""
    task, report = settled(bench)
    plain = [row.model_copy(update={"artifact": None}) for row in report.candidates]
    rows = (plain[0].model_copy(update={"state": CandidateState(state)}), *plain[1:])
    bench.store.put_result(task_hash(task), measured_here(task, report, rows))
    assert stage.answer(task, bench.mounts).termination.outcome == outcome


def settled(bench: Workbench) -> tuple[MeasureTask, MeasureReport]:
    """What a whole run measured, in this store, and the answer."""
    world = World()
    world.settle()
    (made,) = [wanted.task for wanted in world.started if isinstance(wanted.task, MeasureTask)]
    task = made.model_copy(update={"store": bench.store.uri})
    report = world.report(task)
    assert isinstance(report, MeasureReport)
    return task, report


def measured_here(task: MeasureTask, report: MeasureReport, rows: Sequence[CandidateStatus]) -> MeasureReport:
    """`report` as if this machine had answered, with the libraries that it has."""
    runtimes = [candidate.plan.runtime for candidate in (task.baseline, *task.candidates)]
    here = {"measured_on": cpu.detect(), "libraries": runtime_versions(runtimes)}
    return report.model_copy(update={"candidates": tuple(rows), **here})


def test_a_measurement_in_another_release_of_a_runtime_is_not_given_again(bench: Workbench) -> None:
    task, report = settled(bench)
    kept = measured_here(task, report, [row.model_copy(update={"artifact": None}) for row in report.candidates])
    bench.store.put_result(task_hash(task), kept)
    assert stage.answer(task, bench.mounts).termination.outcome == "Succeeded"
    before = {**kept.libraries, "onnxruntime": "1.0.0"}
    bench.store.put_result(task_hash(task), kept.model_copy(update={"libraries": before}))
    assert stage.answer(task, bench.mounts).termination.outcome == "Failed", (
        "it is measured: the models are in no store"
    )


def test_an_answer_that_was_judged_by_other_rules_is_not_given_again(bench: Workbench) -> None:
    """The same task of a version whose rules were other ones has another hash; what is built and published does not move with them."""
    world = World()
    world.settle()
    (made,) = [wanted.task for wanted in world.started if isinstance(wanted.task, MeasureTask)]
    now = made.model_copy(update={"store": bench.store.uri})
    before = now.model_copy(update={"judging": JUDGING - 1})
    report = world.report(before)
    assert isinstance(report, MeasureReport)
    plain = tuple(row.model_copy(update={"artifact": None}) for row in report.candidates)
    bench.store.put_result(task_hash(before), measured_here(before, report, plain))
    assert stage.answer(before, bench.mounts).termination.outcome == "Succeeded"
    assert stage.answer(now, bench.mounts).termination.outcome == "Failed", (
        "it is measured, and the models are in no store"
    )
    prepare = bench.task()
    assert task_hash(prepare) != task_hash(prepare.model_copy(update={"judging": JUDGING - 1}))
    assert "judging" not in BuildTask.model_fields | Manifest.model_fields


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError(), Reason.OUT_OF_MEMORY), (KeyError("x" * 9000), Reason.JOB_FAILED)],
)
def test_what_nobody_foresaw_is_one_line_with_a_reason(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: Reason
) -> None:
    def fail(task: PrepareTask, *_: object) -> None:
        raise error

    monkeypatch.setattr("fettle.optimizer.prepare.stage.run", fail)
    termination = stage.answer(bench.task(), bench.mounts).termination
    assert (termination.outcome, termination.reason) == ("Failed", reason)
    assert len(termination.canonical()) <= 4096


# Put where Python looks at its start: the import of a stage is the moment at which its libraries could do the same.
HOOK = """
import os, signal, sys, time
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "fettle.optimizer.prepare.stage":
            {act}
sys.meta_path.insert(0, Hook())
"""


def hooked(bench: Workbench, act: str) -> dict[str, str]:
    """The environment of a task that does `act` where its stage would be imported."""
    hook = bench.folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK.format(act=act))
    task = {"FETTLE_TASK": encode_task(bench.task()), **bench.mounts.to_environment()}
    return {**task, "PYTHONPATH": os.pathsep.join([str(hook), *sys.path])}


@contextmanager
def running_until(said: bytes, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Job's process, once its log says `said`."""
    with subprocess.Popen(
        [sys.executable, "-m", "fettle.optimizer"], env={**POD_ENVIRONMENT, **environment}, stderr=subprocess.PIPE
    ) as running:
        assert running.stderr is not None
        assert any(said in line for line in running.stderr)
        yield running


@pytest.mark.parametrize(
    ("killer", "reason", "words"),
    [
        (signal.SIGSEGV, Reason.UNSUPPORTED_MODEL, "crashed (SIGSEGV) on pvc://claim/model/model.onnx"),
        (signal.SIGABRT, Reason.UNSUPPORTED_MODEL, "crashed (SIGABRT)"),
        (signal.SIGKILL, Reason.OUT_OF_MEMORY, "resources.limits.memory"),
    ],
)
def test_a_library_that_crashes_leaves_an_answer(
    bench: Workbench, killer: signal.Signals, reason: Reason, words: str
) -> None:
    """The task's own process is killed where the native library would be at work: in the import of its stage."""
    code, out, termination = process(bench, **hooked(bench, f"os.kill(os.getpid(), {int(killer)})"))
    assert (code, out) == (128 + killer, "")
    assert termination is not None
    assert (termination.outcome, termination.reason) == ("Failed", reason)
    assert words in termination.message


def test_a_stop_reaches_the_process_that_runs_the_task(bench: Workbench) -> None:
    environment = hooked(bench, 'print("at work", flush=True); time.sleep(600)')
    with running_until(b"at work", environment) as running:
        (child,) = psutil.Process(running.pid).children()
        running.terminate()
        assert running.wait(60) == 128 + signal.SIGTERM
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


# A Python process that ends gives its signals back first; with large libraries, it takes seconds from there.
LEAVING = """
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            open(os.environ["FETTLE_TERMINATION_LOG"], "w").write("its own words")
            print("leaving", flush=True)
            time.sleep(600)
"""


def test_a_stop_of_a_process_that_has_answered_leaves_it_its_answer(bench: Workbench) -> None:
    """The Job of several pods stops the others when one is lost, which they have just found out themselves."""
    log = bench.folder / "termination"
    environment = {**hooked(bench, LEAVING.strip()), "FETTLE_TERMINATION_LOG": str(log)}
    with running_until(b"leaving", environment) as running:
        running.terminate()
        assert running.wait(60) == 128 + signal.SIGTERM
    assert log.read_text() == "its own words"


def test_help_names_the_environment() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fettle.optimizer", "--help"], capture_output=True, text=True, check=True
    )
    for name in ("FETTLE_TASK", "FETTLE_MOUNTS", "FETTLE_TERMINATION_LOG"):
        assert name in done.stdout


def test_a_store_that_is_not_mounted_is_named(bench: Workbench, tmp_path: Path) -> None:
    task = bench.task().model_copy(update={"store": "pvc://elsewhere"})
    termination = stage.answer(task, bench.mounts).termination
    assert termination.reason == Reason.STORE_NOT_FOUND
    assert "elsewhere" in termination.message


WITHOUT_NETWORK = """
import runpy, socket, sys
def refuse(*arguments, **keywords):
    print("CONNECTS", arguments[1:], file=sys.stderr, flush=True)
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
runpy.run_module("fettle.optimizer", run_name="__main__")
"""


def test_nothing_that_a_job_runs_connects_out(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    evaluation = EvaluationSpec(uri=bench.data("items", image=models.images(40)))
    report = bench.prepare(bench.task(evaluation=evaluation))
    # NNCF sends telemetry unless it is told not to.
    plan = BuildPlan(name="int8", family=RuntimeName.OPENVINO, steps=(RecipeStep(quantize=QuantizeStep()),))
    task = BuildTask(
        store=bench.task().store,
        plan=plan,
        cache_key="0" * 64,
        portable=report.portable,
        signature=report.signature,
        calibration=report.calibration,
    )
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK],
        env={**POD_ENVIRONMENT, "FETTLE_TASK": encode_task(task), **bench.mounts.to_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "CONNECTS" not in done.stderr
