"""Everything that only a GPU can show, in at most eight minutes: `make check-gpu`. What could not run is a row that says why.

Answers are held against ONNX Runtime on the CPU. Times are of `Session.infer`, so copies to the GPU and back are in them; subjects take turns
in blocks of a quarter of a second, in another order each round, and a speed-up is the median over rounds of the ratio to the baseline in
the same round, with a bootstrap interval over the rounds. Times between CUDA events stand beside them where a runtime tells them. Not measured:
several streams, several GPUs.

Each model has a process of its own: a library that crashes, or a kernel that leaves the GPU's context unusable, costs the rest of one model. Rows
are in its file as soon as they are known.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench.gpu import models
from bench.gpu.clock import EAGER, NOT_RUN, timed
from bench.gpu.forms import FLOAT16, FORMS, IN_PROFILES, Form, Subject, build

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import FettleError
from fettle.runtimes import base, cuda
from fettle.runtimes.base import Array, Session
from fettle.store.cache import versions

RESULTS = models.ROOT / "bench" / "results" / "gpu.json"
GRACE_SECONDS = 50.0  # what was begun in time may take so much longer
CLOCK_SHARE = 0.35  # of a model's time, which builds leave to the clock and the server
LARGE_SHARE = 1.5  # of an equal part of the time that is left, which a model may take
MODELS = ("digits", "resnet50-384", "resnet50-384-2:4")
LACKING = (
    Reason.NODE_INCOMPATIBLE,
    Reason.RECIPE_NOT_APPLICABLE,
    Reason.UNSUPPORTED_MODEL,
    Reason.UNSUPPORTED_OPERATOR,
)
ON_GPUS = (RuntimeName.ONNXRUNTIME_CUDA, RuntimeName.TENSORRT_RTX, RuntimeName.TENSORRT)


@dataclass
class Check:
    """The rows so far, which are also in the file `written`, and when it must be over. `kept`: seconds before that which builds leave to others."""

    ends: float
    folder: Path
    written: Path | None = None
    kept: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(self, check: str, subject: str, what: str, **found: Any) -> None:
        """Keep and print a row."""
        self.rows.append({"check": check, "model": subject, "subject": what, **found})
        if self.written is not None:
            with self.written.open("a") as stream:
                stream.write(json.dumps(self.rows[-1]) + "\n")
        click.echo(f"{check:12} {subject:16} {what:32} " + "  ".join(f"{key} {value}" for key, value in found.items()))

    def attempt(self, check: str, subject: str, what: str, run: Callable[[], Mapping[str, Any]]) -> bool:
        """Run one check; a failure is its row, and nobody else's."""
        if time.monotonic() > self.ends - (self.kept if check == "correctness" else 0):
            self.row(check, subject, what, outcome=NOT_RUN, why="the time was over")
            return False
        try:
            found = run()
        except Exception as error:  # noqa: BLE001  libraries raise what they like
            self.failed(check, subject, what, error)
        else:
            self.row(check, subject, what, **found)
            return True
        return False

    def failed(self, check: str, subject: str, what: str, error: Exception) -> None:
        """Keep an error's row: `not run` is what this machine lacks, and anything else is wrong."""
        lacks = isinstance(error, ImportError) or (isinstance(error, FettleError) and error.reason in LACKING)
        why = error.message if isinstance(error, FettleError) else f"{type(error).__name__}: {error}"[:300]
        self.row(check, subject, what, outcome=NOT_RUN if lacks else "failed", why=why)


def correct(
    subject: Subject, session: Session, expected: Mapping[str, Array], tolerance: float, batches: tuple[int, ...] = ()
) -> dict[str, Any]:
    """How far the answers lie from the CPU's, in units of the largest, and how many decide alike. `batches`: of runs; none: all items in one."""
    (name,) = expected
    sizes = batches or (subject.batch,)
    answers = np.concatenate([session.infer(subject.first(size))[name] for size in sizes])
    right = np.concatenate([expected[name][:size] for size in sizes])
    worst = float(np.abs(answers - right).max() / np.abs(right).max())
    alike = float((answers.argmax(-1) == right.argmax(-1)).mean())
    outcome = "ok" if worst <= tolerance else "differs"
    return {"outcome": outcome, "worst": float(f"{worst:.3g}"), "alike": alike}


def eager(subject: Subject) -> Session:
    """The subject in eager PyTorch on the GPU, in float32 without TF32; batch norms are folded as in its file. Raises ImportError."""
    import torch
    from bench.gpu import torch_twin

    for switch in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
        switch.fp32_precision = "ieee"
    model = torch_twin.twin(subject.entry).cuda()
    (given,) = subject.feed

    class Eager:
        def infer(self, inputs: Mapping[str, Array], interrupt: object = None) -> dict[str, Array]:
            with torch.inference_mode():
                found = model(torch.from_numpy(inputs[given]).cuda())
                return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    made: Any = Eager()
    session: Session = made
    return session


def examine(check: Check, subject: Subject) -> None:
    """Correctness of every runtime and form, then their times."""
    cpu = base.get(RuntimeName.ONNXRUNTIME).load(subject.entry, RuntimeSettings(threads=1), subject.signature)
    expected = cpu.infer(subject.feed)
    sessions: dict[str, Session] = {}
    for runtime in ON_GPUS:
        for form in subject.forms:
            name = f"{runtime} {form.name}"

            def run(runtime: RuntimeName = runtime, form: Form = form, name: str = name) -> dict[str, Any]:
                began = time.monotonic()
                entry, settings = build(subject, runtime, form, check.folder / subject.name / name)
                built = round(time.monotonic() - began, 1)
                session = base.get(runtime).load(entry, settings, subject.signature)
                found = correct(subject, session, expected, form.tolerance, form.batches)
                sessions[name] = session
                return {**found, "buildSeconds": built, "bytes": entry.stat().st_size}

            check.attempt("correctness", subject.name, name, run)
        # In front of engines, which take long to build; and behind ONNX Runtime, which would find the libraries that PyTorch has loaded.
        if runtime == RuntimeName.ONNXRUNTIME_CUDA and subject.in_all_forms:
            scripts(check, subject, expected, sessions)
    if sessions:
        check.attempt("clock", subject.name, "all of them", lambda: timed(check, subject, sessions))
    for session in sessions.values():
        if hasattr(session, "close"):
            session.close()


def scripts(check: Check, subject: Subject, expected: Mapping[str, Array], sessions: dict[str, Session]) -> None:
    """Correctness of PyTorch on the GPU. What products may be rounded to belongs to the process, so TF32 is not timed beside the others."""
    runtime = RuntimeName.TORCHSCRIPT_CUDA
    plain = RuntimeSettings(graph_optimization=False)
    forms = (
        ("tf32", RuntimeSettings(precision=Precision.TF32), 1e-2),
        ("float32", RuntimeSettings(), 1e-3),
        ("original", plain, 1e-3),
    )
    for form, settings, tolerance in forms:
        name = f"{runtime} {form}"

        def run(name: str = name, settings: RuntimeSettings = settings, tolerance: float = tolerance) -> dict[str, Any]:
            from bench.gpu import torch_twin

            (feed,) = subject.feed.values()
            entry = torch_twin.script(subject.entry, feed, check.folder / subject.name / f"{name}.pt")
            session = base.get(runtime).load(entry, settings, subject.signature)
            found = correct(subject, session, expected, tolerance)
            if settings.precision == Precision.FLOAT32:
                sessions[name] = session
            return {**found, "bytes": entry.stat().st_size}

        check.attempt("correctness", subject.name, name, run)

    def run_eager() -> dict[str, Any]:
        session = eager(subject)
        found = correct(subject, session, expected, 1e-3)
        sessions[EAGER] = session
        return found

    check.attempt("correctness", subject.name, EAGER, run_eager)


def served(check: Check, subject: Subject) -> None:
    """Requests a second of Fettle's server with an engine, and with the CUDA provider; one client on this machine."""
    for runtime in ON_GPUS[:2]:

        def run(runtime: RuntimeName = runtime) -> dict[str, Any]:
            from bench.gpu.server import requests_per_second

            folder = check.folder / subject.name / f"served {runtime}"
            entry, settings = build(subject, runtime, FLOAT16, folder / "model")
            return {"outcome": "ok", **requests_per_second(entry, runtime, settings, subject, folder)}

        check.attempt("server", subject.name, f"{runtime} float16", run)


def subject_of(name: str, folder: Path) -> Subject:
    """The example with 32 items in a run, or ResNet-50 at 384 px with one, also with 2:4 sparse weights."""
    if name == "digits":
        entry, images = models.digits()
        forms = (*FORMS, IN_PROFILES)
        return Subject(name, entry, signature(images, 10), {"image": images[:32]}, forms)
    entry = models.resnet50(folder / "resnet50" / "model.onnx")
    pictures = np.random.default_rng(3).standard_normal((1, 3, 384, 384)).astype(np.float32)
    large = Subject(name, entry, signature(pictures, 1000), {"image": pictures})
    if name == "resnet50-384":
        return large
    sparse = models.two_of_four(entry, folder / "resnet50-sparse" / "model.onnx")
    return Subject(name, sparse, large.signature, large.feed, (FORMS[0], FLOAT16))


def signature(images: Array, classes: int) -> Signature:
    """What a model takes and gives."""
    image = Tensor(name="image", dtype="FP32", shape=(-1, *images.shape[1:]), batch_axis=0)
    logits = Tensor(name="logits", dtype="FP32", shape=(-1, classes), batch_axis=0)
    return Signature(inputs=(image,), outputs=(logits,))


def machine() -> dict[str, Any]:
    """This machine, as nvidia-smi and the installed packages tell of it; `others`: processes that use the GPU as well."""

    def asked(query: str) -> list[str]:
        words = ["nvidia-smi", f"--query-{query}", "--format=csv,noheader"]
        try:
            return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip().splitlines()
        except (OSError, subprocess.CalledProcessError):
            return []

    gpus = asked("gpu=name,compute_cap,driver_version,memory.total,clocks.sm,clocks.max.sm,power.draw,power.limit")
    libraries = ("onnxruntime-gpu", "tensorrt-rtx-cu12", "tensorrt-cu12", "cuda-bindings", "torch")
    return {
        "gpu": gpus,
        "others": asked("compute-apps=pid,name"),
        "python": platform.python_version(),
        "libraries": versions(libraries),
    }


def apart(check: Check, model: str, seconds: float) -> None:
    """Examine a model in a process of its own, and keep its rows, and how it ended if that was not well."""
    written = check.folder / f"{MODELS.index(model)}.jsonl"
    written.touch()
    words = [sys.executable, "-m", "bench.gpu.check", "--only", model, "--seconds", str(seconds), "--output"]
    process = subprocess.Popen([*words, str(written)], start_new_session=True)
    try:
        status = process.wait(seconds + GRACE_SECONDS)
        why = f"its process ended with the status {status}" if status else ""
    except subprocess.TimeoutExpired:
        why = f"its process did not end within {seconds + GRACE_SECONDS:.0f} s"
    finally:  # a server that it started goes with it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    check.rows += [json.loads(line) for line in written.read_text().splitlines()]
    if why:
        check.row("process", model, "all of them", outcome="failed", why=why)


def every_model(check: Check, began: float, seconds: float) -> None:
    """The rows of all models. Each may take more than an equal part of the time that is left, but never all of it."""
    try:
        cuda.connect()
    except FettleError as error:
        for model in MODELS:
            for what in ("correctness", "speed", "server"):
                check.row(what, model, "every runtime", outcome=NOT_RUN, why=error.message)
        return
    for number, model in enumerate(MODELS):
        left = seconds - (time.monotonic() - began)
        if left <= 0:
            check.row("process", model, "all of them", outcome=NOT_RUN, why="the time was over")
            continue
        apart(check, model, min(left, LARGE_SHARE * left / (len(MODELS) - number)))


@click.command()
@click.option("--seconds", default=420.0, help="Time after which nothing else is begun.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
@click.option(
    "--only",
    type=click.Choice(MODELS),
    help="Examine one model in this process; its rows go to the output, one a line.",
)
def main(seconds: float, output: Path, only: str | None) -> None:
    """Check every GPU runtime on this machine's GPU."""
    began = time.monotonic()
    if only is not None:
        check = Check(began + seconds, output.parent, output, CLOCK_SHARE * seconds)
        subject = subject_of(only, check.folder)
        examine(check, subject)
        if subject.in_all_forms:
            served(check, subject)
        return
    before = machine()
    with tempfile.TemporaryDirectory(prefix="fettle-gpu-") as name:
        check = Check(began + seconds, Path(name))
        every_model(check, began, seconds)
    content = {
        "machine": before,
        "after": machine()["gpu"],
        "seconds": round(time.monotonic() - began),
        "rows": check.rows,
    }
    output.write_text(json.dumps(content, indent=1) + "\n")
    click.echo(f"written to {output}")
    sys.exit(1 if any(row.get("outcome") in ("failed", "differs") for row in check.rows) else 0)


if __name__ == "__main__":
    main()
