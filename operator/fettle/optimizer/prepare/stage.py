"""The first stage: the source as it is, its portable form, its signature, its data, and which builds the store already has."""

from __future__ import annotations

import hashlib
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import rfc8785

from fettle.api import catalog
from fettle.api.labels import LabelReading
from fettle.api.optimizedmodel_status import SourceStatus
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import BuildEntry, ConversionFault, PrepareReport, Traits
from fettle.api.signature import Signature
from fettle.api.task import BuildPlan, PrepareTask, StoredData, StoredModel, task_hash
from fettle.api.text import quoted
from fettle.api.vocabulary import Basis, RuntimeName, SourceFormat
from fettle.errors import ConversionError, RuntimeFailure
from fettle.optimizer.data.items import Items
from fettle.optimizer.data.split import Split, screening
from fettle.optimizer.onnx import inputs as onnx_inputs
from fettle.optimizer.onnx import model
from fettle.optimizer.onnx import traits as onnx_traits
from fettle.optimizer.onnx.inputs import Hint
from fettle.optimizer.prepare import (
    check,
    probe,
)
from fettle.optimizer.prepare import (
    data as prepare_data,
)
from fettle.optimizer.prepare import (
    labels as prepare_labels,
)
from fettle.optimizer.prepare import (
    portable as prepare_portable,
)
from fettle.optimizer.prepare import (
    source as prepare_source,
)
from fettle.optimizer.prepare.check import Reference, Run, Subject
from fettle.optimizer.prepare.data import Data
from fettle.optimizer.prepare.portable import Portable
from fettle.optimizer.prepare.source import Source
from fettle.optimizer.sources import torch
from fettle.runtimes import cpu
from fettle.runtimes.onnxruntime import RUNTIME as ONNXRUNTIME
from fettle.store.cache import build_key, read_build, versions
from fettle.store.store import Store
from fettle.store.uris import Mounts

PROFILE_SECONDS = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """The boundary as it was proved, and the items that candidates are built and judged with."""

    signature: Signature
    split: Split
    items: Items
    labels: LabelReading | None
    generated: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """The original and its portable form as they are stored, which runtimes load the latter, and what there is to say of it."""

    original: StoredModel
    portable: StoredModel
    runtimes: tuple[RuntimeName, ...]
    traits: Traits
    basis: Basis
    notes: tuple[str, ...]
    fault: ConversionFault | None = None


def run(task: PrepareTask, store: Store, mounts: Mounts) -> PrepareReport:
    """Prepare what `task` names. Raises FettleError: what is wrong with the source or the data."""
    with tempfile.TemporaryDirectory(prefix="fettle-prepare-") as name:
        folder = Path(name)
        source = prepare_source.fetch(task.source, mounts, folder / "source")
        log.info("source %s, %d bytes", source.sha256, source.bytes)
        before = _earlier(task, store, mounts, source)
        if before is not None:
            log.info("prepared before")
            return before.model_copy(
                update={"builds": _builds(task.builds, before.portable, before.calibration, store)}
            )
        return _prepare(task, store, mounts, source, folder)


def _prepare(task: PrepareTask, store: Store, mounts: Mounts, source: Source, folder: Path) -> PrepareReport:
    try:
        return _converted(task, store, mounts, source, folder)
    except ConversionError as error:
        frozen = any(spec.value is not None for spec in task.source.inputs)
        if source.format not in torch.FORMATS or frozen:
            raise
        log.info("goes on without a portable form: %s", error.message)
        return _as_it_came(task, store, mounts, source, ConversionFault(reason=error.reason, message=error.message))


def _converted(task: PrepareTask, store: Store, mounts: Mounts, source: Source, folder: Path) -> PrepareReport:
    """With a portable form. Raises ConversionError where there is none."""
    plain = prepare_portable.plain(source, task.source.inputs, _columns(task, mounts), folder)
    data, reference = _asked(task, mounts, source, plain.subject)
    portable = prepare_portable.portable(plain, reference, folder / "work")
    log.info("portable form: %s", ", ".join(portable.kept) or "as it came")
    session = check.session(portable.path, plain.signature)
    judged = _judge(task, plain.subject, data, reference, session.infer)
    traits = _traits(portable, judged.signature, data.probes)
    session.close()
    runtimes, refusals = _runtimes(portable.path, judged.signature, source.format if plain.untouched else None)
    stored = store.put_model(portable.path.parent, portable.path.name)
    form = Form(
        original=_stored_source(store, source) if plain.untouched else stored,
        portable=stored,
        runtimes=runtimes,
        traits=traits,
        basis=Basis.SOURCE_RUNTIME if plain.untouched else Basis.PORTABLE_FORM,
        notes=(*portable.notes, *judged.notes, *refusals),
    )
    return _report(task, store, source, judged, form)


def _as_it_came(
    task: PrepareTask, store: Store, mounts: Mounts, source: Source, fault: ConversionFault
) -> PrepareReport:
    """Without a portable form: only the source's own runtime can run it."""
    subject = torch.subject(source.path, task.source.inputs)
    check.refuse_states(subject.signature)
    data, reference = _asked(task, mounts, source, subject)
    judged = _judge(task, subject, data, reference, subject.run)
    stored = _stored_source(store, source)
    own = tuple(row.runtime for row in catalog.RUNTIMES if source.format in row.loads)
    form = Form(stored, stored, own, Traits(opset=0), Basis.SOURCE_RUNTIME, judged.notes, fault)
    return _report(task, store, source, judged, form)


def _asked(task: PrepareTask, mounts: Mounts, source: Source, subject: Subject) -> tuple[Data, Reference]:
    """The items, and what the original answers to the first of them. Raises DataError, SourceError."""
    specs = prepare_portable.specs_by_name(task.source.inputs)
    data = prepare_data.gather(task.data, mounts, subject, specs, int(source.sha256[:12], 16))
    try:
        return data, check.reference(subject.run, data.probes)
    except RuntimeFailure as error:
        raise prepare_data.refused(error, task.data) from error


def _judge(task: PrepareTask, subject: Subject, data: Data, reference: Reference, run: Run) -> Judged:
    """Prove the batch axis and settle on the items. `run` answers as the original."""
    proof = check.prove_batch(run, subject.signature, data.axes, prepare_data.enough(data))
    signature = check.settled(subject.signature, proof.axes, reference.answers)
    reading = prepare_labels.read(data.split, signature, task.data.evaluation, run)
    data, items, generated = prepare_data.judged(data, task.data, run)
    why_not = () if proof.axes is not None else (f"one item at a time, no batch axis could be proved: {proof.why_not}",)
    return Judged(signature, data.split, items, reading, generated, (*prepare_data.notes(task.data, data), *why_not))


def _report(task: PrepareTask, store: Store, source: Source, judged: Judged, form: Form) -> PrepareReport:
    calibration = _stored(store, _unlabelled(judged.split.calibration), judged.signature)
    return PrepareReport(
        source=_status(source, judged.signature),
        original=form.original,
        portable=form.portable,
        conversion_fault=form.fault,
        portable_runtimes=form.runtimes,
        signature=judged.signature,
        traits=form.traits,
        calibration=calibration,
        screening=_stored(store, screening(judged.split.calibration), judged.signature),
        items=store.put_data(judged.items.stored(judged.signature)),
        labels=judged.labels,
        generated=judged.generated,
        basis=form.basis,
        preparation=_preparation(source.format),
        builds=_builds(task.builds, form.portable, calibration, store),
        notes=tuple(dict.fromkeys(form.notes)),
    )


# ----------------------------------------------------------------------------------------------------------- asked once more


def _preparation(format: SourceFormat) -> str:
    """Digest of what decides the portable form besides the source."""
    entry = catalog.source_format(format)
    revision = entry.revision if entry is not None else 0
    libraries = versions(entry.libraries if entry is not None else ())
    return hashlib.sha256(rfc8785.dumps({"revision": revision, "libraries": dict(libraries)})).hexdigest()


def _earlier(task: PrepareTask, store: Store, mounts: Mounts, source: Source) -> PrepareReport | None:
    """The answer to the same task, if source and data still are what they were: an address may hold another file by now."""
    report = store.result(task_hash(task))
    if not isinstance(report, PrepareReport) or report.preparation != _preparation(source.format):
        return None
    if report.source.sha256 != source.sha256:
        return None
    files = (*report.original.files, *report.portable.files)
    if not all(store.has_blob(file.sha256, file.bytes) for file in files) or not store.has_blob(report.items.sha256):
        return None
    graph = _asked_graph(task, mounts, source)
    if graph is not None and not _same_inputs(task, report, graph):
        return None
    specs = prepare_portable.specs_by_name(task.source.inputs)
    axes = check.stacking_axes(report.signature, specs, _hints(task, report, store, source, graph))
    given = prepare_data.read(task.data, mounts, report.signature, axes)
    made_up = given.calibration is None and report.generated
    if not made_up and _stored(store, _unlabelled(given.calibration), report.signature) != report.calibration:
        return None
    if not made_up and _stored(store, screening(given.calibration), report.signature) != report.screening:
        return None
    items = _stored(store, given.evaluation, report.signature)
    return report if (report.generated if items is None else items == report.items) else None


def _asked_graph(task: PrepareTask, mounts: Mounts, source: Source) -> onnx.ModelProto | None:
    """The source's own graph with the inputs that the items give by now; None where the source is no ONNX."""
    if source.format != SourceFormat.ONNX:
        return None
    graph = model.read(source.path)
    return prepare_portable.asked(graph, task.source.inputs, _columns(task, mounts))


def _columns(task: PrepareTask, mounts: Mounts) -> prepare_portable.Names:
    return lambda: prepare_data.column_names(task.data, mounts)


def _same_inputs(task: PrepareTask, report: PrepareReport, graph: onnx.ModelProto) -> bool:
    frozen = {spec.name for spec in task.source.inputs if spec.value is not None}
    names = {value.name for value in model.inputs(graph.graph)} - frozen
    return names == {tensor.name for tensor in report.signature.inputs}


def _hints(
    task: PrepareTask, report: PrepareReport, store: Store, source: Source, graph: onnx.ModelProto | None
) -> Mapping[str, Hint]:
    """What was known of the inputs' values: by the source's own graph, or by that of what it was converted to, where it was."""
    if graph is not None:
        return onnx_inputs.hints(graph)
    if report.conversion_fault is not None:
        return torch.subject(source.path, task.source.inputs).hints
    return onnx_inputs.hints(model.read(store.fetch_model(report.portable, source.folder / "portable")))


def _builds(
    plans: Sequence[BuildPlan], portable: StoredModel, calibration: StoredData | None, store: Store
) -> tuple[BuildEntry, ...]:
    here = cpu.detect()
    entries = []
    for plan in plans:
        key = build_key(plan, portable, calibration, here)
        entries.append(BuildEntry(name=plan.name, cache_key=key, built=read_build(store, key)))
    return tuple(entries)


# --------------------------------------------------------------------------------------------------------------------- model


def _stored_source(store: Store, source: Source) -> StoredModel:
    files = tuple(store.put_file(source.folder / name, name) for name in source.files)
    return StoredModel(format=source.stored_format, entry=source.entry, files=files)


def _unlabelled(items: Items | None) -> Items | None:
    """Items as quantizers take them: labels must not decide what is built."""
    return None if items is None else replace(items, labels=None)


def _stored(store: Store, items: Items | None, signature: Signature) -> StoredData | None:
    return None if items is None else store.put_data(items.stored(signature))


def _status(source: Source, signature: Signature) -> SourceStatus:
    return SourceStatus(
        sha256=source.sha256,
        format=source.format,
        bytes=source.bytes,
        inputs=signature.inputs,
        outputs=signature.outputs,
    )


def _runtimes(
    path: Path, signature: Signature, untouched: SourceFormat | None
) -> tuple[tuple[RuntimeName, ...], list[str]]:
    """Runtimes that load the portable form (the one that every step was checked with does) or the `untouched` source, and why the
    others do not."""
    others = [row.runtime for row in catalog.RUNTIMES if "ONNX" in row.loads and row.runtime != RuntimeName.ONNXRUNTIME]
    refusals = {name: probe.refusal(name, path, signature) for name in others}
    own = (row.runtime for row in catalog.RUNTIMES if "ONNX" not in row.loads and untouched in row.loads)
    loading = (RuntimeName.ONNXRUNTIME, *(name for name in others if refusals[name] is None), *own)
    return loading, [quoted(f"{name}: {why}") for name, why in refusals.items() if why is not None]


def _traits(portable: Portable, signature: Signature, probes: Items) -> Traits:
    """Traits of the portable form, with a quick look at where its time goes: one thread, one item, no measurement."""
    settings = RuntimeSettings(threads=1)
    inputs = probes.whole(0)
    times = ONNXRUNTIME.profile(portable.path, settings, inputs, runs=1)
    total = sum(times.values())
    matrix = sum(spent for kind, spent in times.items() if kind in onnx_traits.MATRIX)
    session = ONNXRUNTIME.load(portable.path, settings, signature)
    session.infer(inputs)
    runs: list[float] = []
    while sum(runs) < PROFILE_SECONDS and len(runs) < 100:
        start = time.perf_counter()
        session.infer(inputs)
        runs.append(time.perf_counter() - start)
    session.close()
    return onnx_traits.traits(portable.model).model_copy(
        update={
            "matmul_time_share": round(matrix / total, 3) if total else 0.0,
            "p50_milliseconds": round(1000 * statistics.median(runs), 3),
        }
    )
