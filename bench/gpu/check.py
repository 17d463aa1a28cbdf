"""Everything that only a GPU can show, in at most eight minutes: `make check-gpu`. What could not run is a row that says why.

Answers are held against ONNX Runtime on the CPU. Times are of `Session.infer`, so copies to the GPU and back are in them; subjects take turns
in blocks of a quarter of a second, in another order each round, and a speed-up is the median over rounds of the ratio to the baseline in
the same round, with a bootstrap interval over the rounds. Times between CUDA events stand beside them where a runtime tells them. Not measured:
several streams, several GPUs.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench.gpu import models

from fettle.api import catalog
from fettle.api.recipe import OptimizeGraphStep, QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.task import DeviceForm
from fettle.api.vocabulary import Precision, QuantizeMode, RuntimeName
from fettle.errors import FettleError, RecipeError
from fettle.optimizer.measure import items
from fettle.optimizer.steps import Device, Work, onnx_precision, onnxruntime_quantize, tensorrt_engine
from fettle.runtimes import base, cuda
from fettle.runtimes.base import Array, Session, TimedOnGpu
from fettle.store.cache import versions

RESULTS = models.ROOT / "bench" / "results" / "gpu.json"
BLOCK_SECONDS, WARM_UP_SECONDS = 0.25, 3.0
ROUNDS = 15
NOT_RUN = "not run"
BASELINE = "onnxruntime-cuda float32"
ON_GPUS = (RuntimeName.ONNXRUNTIME_CUDA, RuntimeName.TENSORRT_RTX, RuntimeName.TENSORRT)


@dataclass(frozen=True)
class Form:
    """A number format. `tolerance`: of the largest answer, what rounding in every layer may come to; in float32 only another order of sums."""

    name: str
    precision: Precision
    tolerance: float
    mode: QuantizeMode | None = None

    def lacking(self, runtime: RuntimeName, architecture: str) -> str | None:
        """Why this form is not built for a runtime on a GPU."""
        kind = QuantizeStep(mode=self.mode).kind if self.mode is not None else None
        if self.precision not in catalog.runtime(runtime).precisions:
            return f"{runtime} does not compute in {self.precision}"
        if self.mode is not None and catalog.step(RecipeStep(quantize=QuantizeStep(mode=self.mode)), runtime) is None:
            return f"{runtime} does not compute in {self.name}"
        if not catalog.offers(architecture, self.precision) or (
            kind is not None and not catalog.offers(architecture, kind)
        ):
            return f"{architecture} does not compute in {self.name}"
        return None


FLOAT16 = Form("float16", Precision.FLOAT16, 3e-2)
FORMS = (
    Form("float32", Precision.FLOAT32, 1e-3),
    Form("tf32", Precision.TF32, 1e-2),
    FLOAT16,
    Form("bfloat16", Precision.BFLOAT16, 0.1),
    Form("int8", Precision.FLOAT16, 0.3, QuantizeMode.STATIC),
    Form("float8", Precision.FLOAT16, 0.3, QuantizeMode.FLOAT8),
)
CALIBRATION = 16  # items, at most


@dataclass(frozen=True)
class Subject:
    """A model with what it is fed."""

    name: str
    entry: Path
    signature: Signature
    feed: dict[str, Array]
    forms: tuple[Form, ...] = FORMS

    @property
    def batch(self) -> int:
        """Items of a run."""
        return len(next(iter(self.feed.values())))


@dataclass
class Check:
    """The rows so far, and when it must be over."""

    ends: float
    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(self, check: str, subject: str, what: str, **found: Any) -> None:
        """Keep and print a row."""
        self.rows.append({"check": check, "model": subject, "subject": what, **found})
        click.echo(f"{check:12} {subject:16} {what:32} " + "  ".join(f"{key} {value}" for key, value in found.items()))

    def attempt(self, check: str, subject: str, what: str, run: Callable[[], Mapping[str, Any]]) -> bool:
        """Run one check; a failure is its row, and nobody else's."""
        if time.monotonic() > self.ends:
            self.row(check, subject, what, outcome=NOT_RUN, why="the time was over")
            return False
        try:
            found = run()
        except FettleError as error:
            self.row(check, subject, what, outcome=NOT_RUN, why=error.message)
        except Exception as error:  # noqa: BLE001  libraries raise what they like
            self.row(check, subject, what, outcome="failed", why=f"{type(error).__name__}: {error}"[:300])
        else:
            self.row(check, subject, what, **found)
            return True
        return False


def build(subject: Subject, runtime: RuntimeName, form: Form, folder: Path) -> tuple[Path, RuntimeSettings]:
    """The file of a subject in the form that `runtime` takes, made as a build Job makes it. Raises FettleError."""
    folder.mkdir(parents=True)
    architecture = cuda.connect().architecture()
    if (lacking := form.lacking(runtime, architecture)) is not None:
        raise RecipeError(lacking)
    base.get(runtime)  # says what is not installed before anything is made
    entry = quantized(subject, form, folder / "quantized")
    made = DeviceForm(precision=form.precision, architecture=architecture, batch_size=subject.batch)
    work = Work(entry, folder, OptimizeGraphStep(), device=Device(runtime, made, subject.signature))
    if runtime == RuntimeName.ONNXRUNTIME_CUDA:
        return onnx_precision.cast(work), RuntimeSettings(precision=form.precision)
    return tensorrt_engine.compile_engine(work), RuntimeSettings(precision=form.precision, batch_size=subject.batch)


def quantized(subject: Subject, form: Form, folder: Path) -> Path:
    """The model as the quantize step of a form leaves it, with what it is fed as calibration items."""
    if form.mode is None:
        return subject.entry
    folder.mkdir()
    calibration = items.of({name: array[:CALIBRATION] for name, array in subject.feed.items()}, subject.signature)
    work = Work(subject.entry, folder, QuantizeStep(mode=form.mode), calibration=calibration)
    return (onnxruntime_quantize.float8 if form.mode == QuantizeMode.FLOAT8 else onnxruntime_quantize.symmetric)(work)


def correct(subject: Subject, session: Session, expected: Mapping[str, Array], tolerance: float) -> dict[str, Any]:
    """How far the answers lie from the CPU's, in units of the largest, and how many decide alike."""
    answers = session.infer(subject.feed)
    (name,) = expected
    worst = float(np.abs(answers[name] - expected[name]).max() / np.abs(expected[name]).max())
    alike = float((answers[name].argmax(-1) == expected[name].argmax(-1)).mean())
    outcome = "ok" if worst <= tolerance else "differs"
    return {"outcome": outcome, "worst": float(f"{worst:.3g}"), "alike": alike}


def block(session: Session, feed: dict[str, Array]) -> tuple[float, float]:
    """Milliseconds of a run, by the wall clock and, where the session tells it, between CUDA events: the medians of a block."""
    taken: list[float] = []
    on_gpu: list[float] = []
    until = time.perf_counter() + BLOCK_SECONDS
    while time.perf_counter() < until or len(taken) < 3:
        began = time.perf_counter()
        session.infer(feed)
        taken.append((time.perf_counter() - began) * 1000)
        on_gpu.append(session.gpu_milliseconds() if isinstance(session, TimedOnGpu) else 0.0)
    return statistics.median(taken), statistics.median(on_gpu)


def timed(check: Check, subject: Subject, sessions: Mapping[str, Session]) -> dict[str, Any]:
    """Time sessions in turns, and keep a row each."""
    if BASELINE not in sessions:
        return {"outcome": NOT_RUN, "why": f"{BASELINE}, which the others are compared with, does not run here"}
    until = time.monotonic() + WARM_UP_SECONDS  # until the clocks of the GPU are up
    while time.monotonic() < until:
        for session in sessions.values():
            session.infer(subject.feed)
    for session in sessions.values():
        if isinstance(session, TimedOnGpu):
            session.time_on_gpu()
    medians: dict[str, list[float]] = {name: [] for name in sessions}
    on_gpu: dict[str, list[float]] = {name: [] for name in sessions}
    shuffled = random.Random(7)
    for _ in range(ROUNDS):
        for name in shuffled.sample(list(sessions), len(sessions)):
            by_clock, by_events = block(sessions[name], subject.feed)
            medians[name].append(by_clock)
            on_gpu[name].append(by_events)
    for name, own in medians.items():
        ratios = np.array(medians[BASELINE]) / np.array(own)
        low, high = interval(ratios)
        check.row(
            "speed",
            subject.name,
            name,
            outcome="ok",
            milliseconds=round(statistics.median(own), 4),
            speedup=round(float(np.median(ratios)), 3),
            low=round(low, 3),
            high=round(high, 3),
            **({"gpuMilliseconds": round(between, 4)} if (between := statistics.median(on_gpu[name])) else {}),
        )
    return {"outcome": "ok", "rounds": ROUNDS, "blockSeconds": BLOCK_SECONDS}


def interval(ratios: Array) -> tuple[float, float]:
    """95 % of the median, by the bootstrap over rounds."""
    drawn = np.random.default_rng(11).choice(ratios, (4000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


def eager(subject: Subject) -> Session:
    """ResNet-50 in eager PyTorch on the GPU. Raises FettleError, ImportError."""
    import torch
    import torchvision

    model = torchvision.models.resnet50(weights=None).eval().cuda()

    class Eager:
        def infer(self, inputs: Mapping[str, Array], interrupt: object = None) -> dict[str, Array]:
            with torch.inference_mode():
                return {"logits": model(torch.from_numpy(inputs["image"]).cuda()).cpu().numpy()}

    made: Any = Eager()
    made.infer(subject.feed)
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
                found = correct(subject, session, expected, form.tolerance)
                sessions[name] = session
                return {**found, "buildSeconds": built, "bytes": entry.stat().st_size}

            check.attempt("correctness", subject.name, name, run)
    if subject.forms == FORMS:
        scripts(check, subject, expected, sessions)
    if subject.name == "resnet50-384":
        try:
            sessions["torch eager float32"] = eager(subject)
        except Exception as error:  # noqa: BLE001  it is not needed for anything else
            check.row("speed", subject.name, "torch eager float32", outcome=NOT_RUN, why=f"{error}"[:200])
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


def served(check: Check, subject: Subject) -> None:
    """Requests a second of Fettle's server with an engine, and with the CUDA provider; one client on this machine."""
    for runtime in ON_GPUS[:2]:

        def run(runtime: RuntimeName = runtime) -> dict[str, Any]:
            from bench.gpu.server import requests_per_second

            folder = check.folder / f"served-{runtime}"
            entry, settings = build(subject, runtime, FLOAT16, folder / "model")
            return {"outcome": "ok", **requests_per_second(entry, runtime, settings, subject, folder)}

        check.attempt("server", subject.name, f"{runtime} float16", run)


def subjects(folder: Path) -> list[Subject]:
    """The example with 32 items in a run, and ResNet-50 at 384 px with one, also with 2:4 sparse weights."""
    entry, images = models.digits()
    image = Tensor(name="image", dtype="FP32", shape=(-1, *images.shape[1:]), batch_axis=0)
    logits = Tensor(name="logits", dtype="FP32", shape=(-1, 10), batch_axis=0)
    small = Subject("digits", entry, Signature(inputs=(image,), outputs=(logits,)), {"image": images[:32]})
    picture = Tensor(name="image", dtype="FP32", shape=(-1, 3, 384, 384), batch_axis=0)
    classes = Tensor(name="logits", dtype="FP32", shape=(-1, 1000), batch_axis=0)
    feed = {"image": np.random.default_rng(3).standard_normal((1, 3, 384, 384)).astype(np.float32)}
    large = Subject(
        "resnet50-384",
        models.resnet50(folder / "resnet50" / "model.onnx"),
        Signature(inputs=(picture,), outputs=(classes,)),
        feed,
    )
    sparse = replace(
        large,
        name="resnet50-384-2:4",
        entry=models.two_of_four(large.entry, folder / "resnet50-sparse" / "model.onnx"),
        forms=(FORMS[0], FLOAT16),
    )
    return [small, large, sparse]


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


@click.command()
@click.option("--seconds", default=450.0, help="Time after which nothing else is begun.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def main(seconds: float, output: Path) -> None:
    """Check every GPU runtime on this machine's GPU."""
    began = time.monotonic()
    before = machine()
    with tempfile.TemporaryDirectory(prefix="fettle-gpu-") as name:
        check = Check(began + seconds, Path(name))
        try:
            cuda.connect()
        except FettleError as error:
            why = error.message
            for model in ("digits", "resnet50-384", "resnet50-384-2:4"):
                for what in ("correctness", "speed", "server"):
                    check.row(what, model, "every runtime", outcome=NOT_RUN, why=why)
        else:
            for subject in subjects(Path(name)):
                examine(check, subject)
                if subject.forms == FORMS:
                    served(check, subject)
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
