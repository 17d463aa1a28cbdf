"""The first stage: the source, its portable form, its signature, its data, and which builds the store already has.

Read `_converted` from top to bottom: each line uses the result of the one before it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fettle.api import catalog, formats, images
from fettle.api.catalog_rows import RuntimeEntry
from fettle.api.optimizedmodel import PublishSpec
from fettle.api.optimizedmodel_status import SourceStatus
from fettle.api.report import ConversionFault, PrepareReport, Traits
from fettle.api.signature import Signature
from fettle.api.task import PrepareTask, StoredModel
from fettle.api.text import quoted
from fettle.api.vocabulary import Basis, DeviceKind, FormatName, RuntimeName
from fettle.errors import ConversionError, RuntimeFailure
from fettle.optimizer import sources
from fettle.optimizer.data.columns import Encoder
from fettle.optimizer.data.items import Items
from fettle.optimizer.data.split import Split, screening
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx.session import session
from fettle.optimizer.prepare import batch, data, labels, probe
from fettle.optimizer.prepare.conversion import difference
from fettle.optimizer.prepare.data import Data
from fettle.optimizer.prepare.earlier import earlier, kept_as, preparation, tried
from fettle.optimizer.prepare.job import Job, builds, stored_items, unlabelled
from fettle.optimizer.prepare.native import asking, native
from fettle.optimizer.prepare.portable import portable, with_sizes
from fettle.optimizer.prepare.profile import traits
from fettle.optimizer.prepare.states import refuse_states
from fettle.optimizer.prepare.texts import stored_tokenizer
from fettle.optimizer.prepare.trainable import program
from fettle.optimizer.reference import OriginalAnswers, reference
from fettle.optimizer.sources.base import Original, RunModel, RunnableModel
from fettle.optimizer.sources.boundary import plain
from fettle.store.cache import ABSENT, Learned, version
from fettle.store.modelpack import require_push
from fettle.store.registry import registry_at
from fettle.store.store import Store
from fettle.store.uris import Mounts, store_missing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceData:
    """The items of the run, and the original's outputs for the first of them."""

    data: Data
    reference: OriginalAnswers


@dataclass(frozen=True)
class Judged:
    """The signature with its proved batch axes, and the items that candidates are built with and judged on."""

    signature: Signature
    split: Split
    items: Items
    reading: labels.Reading
    generated: bool
    notes: tuple[str, ...]
    encoder: Encoder | None


@dataclass(frozen=True)
class Form:
    """The stored original and its portable form, which runtimes can load the latter, and notes about it."""

    original: StoredModel
    portable: StoredModel
    runtimes: tuple[RuntimeName, ...]
    traits: Traits
    basis: Basis
    notes: tuple[str, ...]
    fault: ConversionFault | None = None
    native: StoredModel | None = None
    program: StoredModel | None = None


def run(task: PrepareTask, store: Store, mounts: Mounts) -> PrepareReport:
    """Prepare the source and the data of `task`. Raises FettleError if something is wrong with them, or if winners could not be pushed."""
    if task.publish is not None:
        _require_registry(task.publish, mounts)
    with tempfile.TemporaryDirectory(prefix="fettle-prepare-") as name:
        job = Job.begin(task, store, mounts, Path(name))
        log.info("source %s, %d bytes", job.source.sha256, job.source.bytes)
        report = earlier(job)
        if report is not None:
            log.info("already prepared; reusing the result")
            return report
        report = _prepared(job)
        store.put_result(kept_as(task), report)
        return report


def _require_registry(to: PublishSpec, mounts: Mounts) -> None:
    """Raises StoreError if the registry takes nothing from us: else that shows at the end of the run."""
    registry, _ = registry_at(to.uri, mounts.credentials(to.uri), store_missing)
    require_push(registry)
    log.info("%s takes what is pushed", to.uri)


def _prepared(job: Job) -> PrepareReport:
    try:
        return _converted(job)
    except ConversionError as error:
        # A frozen input needs a graph to be frozen in.
        subject = None if job.inputs.frozen else job.source.format.unconverted(job.source.path, job.inputs)
        if subject is None:
            raise
        log.info("continuing without a portable form: %s", error.message)
        return _unconverted(job, subject, ConversionFault(reason=error.reason, message=error.message))


def _converted(job: Job) -> PrepareReport:
    """Prepare the model with a portable form. Raises ConversionError if it has none."""
    original = _original(job)
    reference_data = _reference_data(job, original.subject)
    form = portable(original, reference_data.reference, job.folder / "work")
    log.info("portable form: %s", ", ".join(form.kept) or "as it came")
    opened = session(form.path, original.signature)
    judged = _judged(job, original.subject, reference_data, opened.infer)
    told = difference(original.subject, opened.infer, judged.items, judged.signature) if original.foreign else None
    opened.close()
    form = with_sizes(form, judged.signature, reference_data.reference, job.folder / "work")
    runtimes, refusals = _runtimes(
        job, form.path, judged.signature, job.source.format.name if original.untouched else None
    )
    stored = job.store.put_model(form.path.parent, form.path.name)
    stored_native, why_not = native(job)
    stored_program, told_of_it = program(job, judged.signature, reference_data.reference)
    return _report(
        job,
        judged,
        Form(
            original=_stored_source(job) if original.untouched else stored,
            portable=stored,
            runtimes=(*runtimes, *(asking(job) if stored_native is not None else ())),
            traits=traits(form, judged.signature, reference_data.data.probes),
            basis=Basis.SOURCE_RUNTIME if original.untouched else Basis.PORTABLE_FORM,
            notes=(*form.notes, *judged.notes, *((told,) if told else ()), *refusals, *why_not, *told_of_it),
            native=stored_native,
            program=stored_program,
        ),
    )


def _unconverted(job: Job, subject: RunnableModel, fault: ConversionFault) -> PrepareReport:
    """Prepare a model without a portable form, for the runtimes that load the source as it came, or compile it."""
    refuse_states(subject.signature)
    reference_data = _reference_data(job, subject)
    judged = _judged(job, subject, reference_data, subject.run)
    stored = _stored_source(job)
    own = tuple(_as_it_came(job.source.format.stored))
    stored_native, why_not = native(job)
    if stored_native is not None:
        own = (*own, *asking(job))
    notes = (*judged.notes, *why_not)
    form = Form(stored, stored, own, Traits(opset=0), Basis.SOURCE_RUNTIME, notes, fault, stored_native)
    return _report(job, judged, form)


def _original(job: Job) -> Original:
    """The source, ready to run, and its graph with plain tensors as inputs and outputs. Raises SourceError, ConversionError."""
    format, source = job.source.format, job.source
    graph = sources.graph(format, source.path, job.inputs, job.folder / "converted")
    with onnx_model.holding_together(graph):
        bounded = plain(graph, job.inputs)
        refuse_states(bounded.signature, onnx_model.passed(bounded.model.graph))
    original = format.original(source.path, bounded, job.inputs, job.folder / "plain")
    return replace(original, notes=(*original.notes, *bounded.remarks))


def _reference_data(job: Job, subject: RunnableModel) -> ReferenceData:
    """Raises DataError, SourceError."""
    task, seed = job.task, int(job.source.sha256[:12], 16)
    gathered = data.gather(task.data, job.mounts, subject, job.inputs.by_name, seed)
    try:
        return ReferenceData(gathered, reference(subject.run, gathered.probes, subject.steps))
    except RuntimeFailure as error:
        raise data.refused(error, task.data) from error


def _judged(job: Job, subject: RunnableModel, reference_data: ReferenceData, run: RunModel) -> Judged:
    """Prove the batch axis and choose the items. `run` gives the original's answers."""
    task = job.task
    proof = batch.prove_batch(run, subject.signature, reference_data.data.axes, data.enough(reference_data.data))
    signature = batch.settled(subject.signature, proof, reference_data.reference.answers)
    reading = labels.read(reference_data.data.split, signature, job.evaluation, run)
    given, items, generated = data.judged(reference_data.data, task.data, run)
    one_by_one = f"one item at a time, because no batch axis could be verified: {proof.why_not}"
    why_not = () if proof.axes is not None else (one_by_one,)
    notes = (*data.notes(task.data, given), *reading.notes, *why_not)
    return Judged(signature, given.split, items, reading, generated, notes, subject.encoder)


def _report(job: Job, judged: Judged, form: Form) -> PrepareReport:
    store = job.store
    calibration = stored_items(store, unlabelled(judged.split.calibration), judged.signature)
    training = stored_items(store, judged.split.training, judged.signature)
    tokenizer, why_not = stored_tokenizer(store, judged.encoder, judged.items, judged.signature)
    report = PrepareReport(
        source=_status(job, judged.signature),
        original=form.original,
        portable=form.portable,
        conversion_fault=form.fault,
        native=form.native,
        program=form.program,
        tried=tried(job),
        portable_runtimes=form.runtimes,
        signature=judged.signature,
        traits=form.traits,
        calibration=calibration,
        training=training,
        screening=stored_items(store, screening(judged.split.calibration), judged.signature),
        items=store.put_data(judged.items.stored(judged.signature)),
        tokenizer=tokenizer,
        labels=judged.reading.labels,
        metric=judged.reading.metric,
        informative=judged.reading.informative,
        custom_code=job.custom_code,
        loss_code=dict(job.loss_code),
        generated=judged.generated,
        basis=form.basis,
        preparation=preparation(job.source.format.name),
        notes=tuple(dict.fromkeys((*form.notes, *why_not))),
    )
    learned = Learned(report.teacher, training)
    return report.model_copy(update={"builds": builds(job.builds, form.portable, calibration, store, learned)})


def _stored_source(job: Job) -> StoredModel:
    files = tuple(job.store.put_file(job.source.folder / name, name) for name in job.source.files)
    return StoredModel(format=job.source.format.stored, entry=job.source.entry, files=files)


def _status(job: Job, signature: Signature) -> SourceStatus:
    return SourceStatus(
        sha256=job.source.sha256,
        format=job.source.format.name,
        bytes=job.source.bytes,
        inputs=signature.inputs,
        outputs=signature.outputs,
    )


def _runtimes(
    job: Job, path: Path, signature: Signature, untouched: FormatName | None
) -> tuple[tuple[RuntimeName, ...], list[str]]:
    """The CPU runtimes that can load the portable form (each step was checked with one that can) or the `untouched` source, and why the others
    cannot."""
    refusals = {
        row.runtime: _refusal(row, job.task, path, signature)
        for row in catalog.RUNTIMES
        if catalog.PORTABLE in row.loads and row.device is DeviceKind.CPU
    }
    own = _as_it_came(untouched) if untouched != catalog.PORTABLE else ()
    loading = (*(name for name, why in refusals.items() if why is None), *own)
    return loading, [quoted(f"{name}: {why}") for name, why in refusals.items() if why is not None]


def _as_it_came(format: str | None) -> Iterator[RuntimeName]:
    """The CPU runtimes that load files of that format. Those of GPUs follow from it (`plan/run/devices.py`)."""
    return (row.runtime for row in catalog.RUNTIMES if format in row.loads and row.device is DeviceKind.CPU)


def _refusal(row: RuntimeEntry, task: PrepareTask, path: Path, signature: Signature) -> str | None:
    """Why that runtime does not load the portable form. What this Job's image need not have is not asked: the measuring Job will tell."""
    image = images.job_image(formats.source_libraries(task.source.uri, task.source.known_format))
    here = image is None or row.library in image.libraries or version(row.library) != ABSENT
    return probe.refusal(row.runtime, path, signature) if here and row.runtime != catalog.PORTABLE_RUNTIME else None
