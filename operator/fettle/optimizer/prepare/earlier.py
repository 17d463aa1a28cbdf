"""The report of an earlier run of the same task, if it is still valid: the files at the same addresses may have changed since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fettle.api import catalog, formats
from fettle.api.base import canonical_digest
from fettle.api.report import PrepareReport
from fettle.api.task import PrepareTask, task_hash
from fettle.api.vocabulary import DeviceKind, FormatName
from fettle.optimizer.data.split import screening
from fettle.optimizer.onnx import inputs as onnx_inputs
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx.inputs import Hint
from fettle.optimizer.onnx.portable import REVISION
from fettle.optimizer.prepare import batch, data
from fettle.optimizer.prepare.job import Job, builds, stored_items, unlabelled
from fettle.optimizer.prepare.native import asking
from fettle.optimizer.prepare.trainable import wanted
from fettle.store.cache import Learned, version, versions


def preparation(format: FormatName) -> str:
    """Digest of everything except the source that decides the portable form and which runtimes load it."""
    entry = formats.source_format(format)
    revision = entry.revision if entry is not None else 0
    libraries = versions(entry.libraries if entry is not None else ())
    asked = (row for row in catalog.RUNTIMES if catalog.PORTABLE in row.loads and row.device is DeviceKind.CPU)
    runtimes = {row.runtime: version(row.library) for row in asked}
    document: dict[str, Any] = {
        "revision": revision,
        "portable": REVISION,
        "libraries": libraries,
        "runtimes": runtimes,
    }
    return canonical_digest(document)


def kept_as(task: PrepareTask) -> str:
    """The hash under which the report is kept. It ignores the requested builds, which change with maxDrop and decide nothing else in the report."""
    return task_hash(task.model_copy(update={"builds": ()}))


def tried(job: Job) -> tuple[Literal["native", "program"], ...]:
    """What the builds of the plan start from beside the portable form: some sources have it, and preparing tries whether this one does."""
    return (*(("native",) if asking(job) else ()), *(("program",) if wanted(job) else ()))


def earlier(job: Job) -> PrepareReport | None:
    """The earlier report, with the builds that the store has now; None if the source, the data or Fettle have changed."""
    report = job.store.result(task_hash(job.task)) or job.store.result(kept_as(job.task))
    if not isinstance(report, PrepareReport) or report.preparation != preparation(job.source.format.name):
        return None
    if report.custom_code != job.custom_code:
        return None
    if set(tried(job)) - set(report.tried):
        return None  # nobody asked for it then
    if report.source.sha256 != job.source.sha256 or not _is_stored(job, report) or not _same_items(job, report):
        return None
    learned = Learned(report.teacher, report.training)
    made = builds(job.builds, report.portable, report.calibration, job.store, learned)
    return report.model_copy(update={"builds": made, "loss_code": dict(job.loss_code)})


def _is_stored(job: Job, report: PrepareReport) -> bool:
    models = (report.original, report.portable, report.native, report.program)
    files = (file for model in models if model is not None for file in model.files)
    texts = (report.tokenizer.file,) if report.tokenizer is not None else ()
    whole = all(job.store.has_blob(file.sha256, file.bytes) for file in (*files, *texts))
    # Given items are stored again when they are looked at; those that were made up are not.
    made_up = (report.calibration, report.screening) if report.generated else ()
    return whole and all(data is None or job.store.has_blob(data.sha256) for data in (report.items, *made_up))


def _same_items(job: Job, report: PrepareReport) -> bool:
    """Whether the data gives the same inputs and the same items."""
    hints = job.source.format.hints(job.source.path, job.inputs)
    if hints is not None and set(hints) - set(job.inputs.frozen) != {tensor.name for tensor in report.signature.inputs}:
        return False
    known = hints if hints is not None else _hints(job, report)
    axes = batch.stacking_axes(report.signature, job.inputs.by_name, known)
    encoder = job.source.format.encoder(job.source.path, job.inputs)
    given = data.read(job.task.data, job.mounts, report.signature, axes, known, encoder)
    if given.calibration is not None or not report.generated:
        calibration = stored_items(job.store, unlabelled(given.calibration), report.signature)
        screened = stored_items(job.store, screening(given.calibration), report.signature)
        if calibration != report.calibration or screened != report.screening:
            return False
    if stored_items(job.store, given.training, report.signature) != report.training:
        return False
    items = stored_items(job.store, given.evaluation, report.signature)
    return report.generated if items is None else items == report.items


def _hints(job: Job, report: PrepareReport) -> Mapping[str, Hint]:
    """What the portable form (or, if there is none, the source) says about the inputs' values."""
    if report.conversion_fault is not None:
        subject = job.source.format.unconverted(job.source.path, job.inputs)
        return subject.hints if subject is not None else {}
    return onnx_inputs.hints(onnx_model.read(job.store.fetch_model(report.portable, job.folder / "earlier")))
