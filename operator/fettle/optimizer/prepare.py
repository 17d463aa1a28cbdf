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
from fettle.api.optimizedmodel import DataSpec, GeneratedSpec, InputSpec
from fettle.api.optimizedmodel_status import SourceStatus
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import BuildEntry, PrepareReport, Traits
from fettle.api.signature import Signature
from fettle.api.task import BuildPlan, PrepareTask, StoredData, StoredModel, task_hash
from fettle.api.vocabulary import Basis, Metric, RuntimeName, SourceFormat
from fettle.errors import DataError, RuntimeFailure, SourceError
from fettle.optimizer import data, data_generate, prepare_check, prepare_portable, prepare_probe, prepare_source
from fettle.optimizer.data import Items
from fettle.optimizer.data_files import LABELS
from fettle.optimizer.data_split import SPLIT_MOST, Split, screening, split
from fettle.optimizer.formats import onnx_inputs, onnx_model, onnx_traits
from fettle.optimizer.prepare_check import Run
from fettle.optimizer.prepare_portable import Plain, Portable
from fettle.optimizer.prepare_source import Source
from fettle.runtimes import cpu
from fettle.runtimes.onnxruntime import RUNTIME as ONNXRUNTIME
from fettle.store.cache import build_key, read_build, versions
from fettle.store.store import Store
from fettle.store.uris import Mounts

PROFILE_SECONDS = 1.0
LARGE_BYTES = 4 << 20  # an item of this size is not made by the dozen
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The items of a run. `probes` are those that forms of the model are compared on."""

    probes: Items
    split: Split
    generator: data_generate.Generator
    axes: Mapping[str, int]


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
    plain = prepare_portable.plain(source, task.source.inputs, folder)
    specs = prepare_portable.specs_by_name(task.source.inputs)
    given = _data(task.data, mounts, plain, specs, int(source.sha256[:12], 16))
    try:
        reference = prepare_check.reference(plain.run, given.probes)
    except RuntimeFailure as error:
        raise _refused_data(error, task.data) from error
    portable = prepare_portable.portable(plain, reference, folder / "work")
    log.info("portable form: %s", ", ".join(portable.kept) or "as it came")
    session = prepare_check.session(portable.path, plain.signature)
    proof = prepare_check.prove_batch(session.infer, plain.signature, given.axes, _enough(given))
    signature = prepare_check.settled(plain.signature, proof.axes, reference.answers)
    traits = _traits(portable, signature, given.probes)
    given, items, generated = _judged(given, task.data, session.infer)
    session.close()
    runtimes, refusals = _runtimes(portable.path, signature, source.format if plain.untouched else None)
    portable_model = store.put_model(portable.path.parent, portable.path.name)
    original = _stored_source(store, source) if plain.untouched else portable_model
    calibration = _stored(store, _unlabelled(given.split.calibration), signature)
    batch = () if proof.axes is not None else (f"one item at a time, no batch axis could be proved: {proof.why_not}",)
    return PrepareReport(
        source=_status(source, signature),
        original=original,
        portable=portable_model,
        portable_runtimes=runtimes,
        signature=signature,
        traits=traits,
        calibration=calibration,
        screening=_stored(store, screening(given.split.calibration), signature),
        items=store.put_data(items.stored(signature)),
        generated=generated,
        basis=Basis.SOURCE_RUNTIME if plain.untouched else Basis.PORTABLE_FORM,
        preparation=_preparation(source.format),
        builds=_builds(task.builds, portable_model, calibration, store),
        notes=tuple(dict.fromkeys((*portable.notes, *_data_notes(task.data, given), *batch, *refusals))),
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
    specs = prepare_portable.specs_by_name(task.source.inputs)
    hints = onnx_inputs.hints(_graph(report, store, source))
    axes = prepare_check.stacking_axes(report.signature, specs, hints)
    given = _read(task.data, mounts, report.signature, axes)
    made_up = given.calibration is None and report.generated
    if not made_up and _stored(store, _unlabelled(given.calibration), report.signature) != report.calibration:
        return None
    if not made_up and _stored(store, screening(given.calibration), report.signature) != report.screening:
        return None
    items = _stored(store, given.evaluation, report.signature)
    return report if (report.generated if items is None else items == report.items) else None


def _graph(report: PrepareReport, store: Store, source: Source) -> onnx.ModelProto:
    """The graph whose inputs were looked at: the source's own, or that of what it was converted to."""
    if source.format == SourceFormat.ONNX:
        return onnx_model.read(source.path)
    return onnx_model.read(store.fetch_model(report.portable, source.folder / "portable"))


def _builds(
    plans: Sequence[BuildPlan], portable: StoredModel, calibration: StoredData | None, store: Store
) -> tuple[BuildEntry, ...]:
    here = cpu.detect()
    entries = []
    for plan in plans:
        key = build_key(plan, portable, calibration, here)
        entries.append(BuildEntry(name=plan.name, cache_key=key, built=read_build(store, key)))
    return tuple(entries)


# ---------------------------------------------------------------------------------------------------------------------- data


def _read(spec: DataSpec, mounts: Mounts, signature: Signature, axes: Mapping[str, int]) -> Split:
    """What the spec's addresses hold, split. Raises DataError."""
    calibration = evaluation = None
    if spec.calibration is not None:
        given = spec.calibration
        calibration = data.read(
            given.uri,
            mounts,
            signature,
            axes,
            most=given.max_samples,
            label_key=spec.evaluation.label_key if spec.evaluation is not None else None,
            preprocess=given.preprocess,
        )
    if spec.evaluation is not None:
        asked = spec.evaluation
        if asked.label_key in {tensor.name for tensor in signature.inputs}:
            raise DataError(f"data.evaluation.labelKey {asked.label_key!r} is an input of the model")
        evaluation = data.read(
            asked.uri,
            mounts,
            signature,
            axes,
            most=asked.max_samples,
            label_key=asked.label_key,
            preprocess=asked.preprocess,
        )
        if evaluation.labels is None and asked.label_key != LABELS:
            raise DataError(f"{asked.uri}: no array {asked.label_key!r} (data.evaluation.labelKey)")
    return split(calibration, evaluation)


def _data(spec: DataSpec, mounts: Mounts, plain: Plain, specs: Mapping[str, InputSpec], seed: int) -> Data:
    """Items given, or a way to make them. Raises DataError."""
    hints = onnx_inputs.hints(plain.model)
    axes = prepare_check.stacking_axes(plain.signature, specs, hints)
    given = _read(spec, mounts, plain.signature, axes)
    generator = data_generate.Generator(plain.signature, hints, specs, axes, seed)
    probes = given.evaluation or given.calibration
    if probes is None:
        recipe = data_generate.find(generator, plain.run)
        large = sum(array.nbytes for array in generator.items(recipe, 1).arrays.values()) > LARGE_BYTES
        probes = generator.items(recipe, prepare_check.PROOF_ITEMS if large else prepare_check.PROOF_MOST)
    return Data(probes, given, generator, axes)


def _enough(given: Data) -> Items:
    """Items to prove a batch axis with, different ones as far as there are: a few of the given ones are as good as many."""
    contents = given.probes.hashes() if len(given.probes) < 64 else given.probes.take(list(range(64))).hashes()
    first = [contents.index(one) for one in dict.fromkeys(contents)]
    if len(first) == 2:  # a yes and a no are all that some inputs can be
        first.append(first[0])
    return given.probes.take(first[: prepare_check.PROOF_MOST])


def _judged(given: Data, spec: DataSpec, run: Run) -> tuple[Data, Items, bool]:
    """The items that candidates are judged on, and whether they were generated; calibration is made up too where they may certify.

    Calibration items stand in where none can be made up, unless they would certify.
    """
    if given.split.evaluation is not None:
        return given, given.split.evaluation, False
    asked = spec.generated or GeneratedSpec()
    try:
        recipe = data_generate.find(given.generator, run)
    except DataError:
        if given.split.calibration is None or asked.allow_lossy:
            raise
        return given, given.split.calibration, True
    count = asked.samples
    if count is None:
        start = time.perf_counter()
        run(given.generator.items(recipe, 1).whole(0))
        slow = time.perf_counter() - start > prepare_check.SLOW_SECONDS
        count = data_generate.COUNT_SLOW if slow else data_generate.COUNT
    if asked.allow_lossy and given.split.calibration is None:
        others = replace(given.generator, seed=given.generator.seed + 1)
        calibration = others.items(recipe, min(SPLIT_MOST, count))
        given = replace(given, split=replace(given.split, calibration=calibration))
    return given, given.generator.items(recipe, count), True


def _unlabelled(items: Items | None) -> Items | None:
    """Items as quantizers take them: labels must not decide what is built."""
    return None if items is None else replace(items, labels=None)


def _stored(store: Store, items: Items | None, signature: Signature) -> StoredData | None:
    return None if items is None else store.put_data(items.stored(signature))


def _refused_data(error: RuntimeFailure, spec: DataSpec) -> DataError | SourceError:
    """The model failed on the very first items: theirs is the fault if they were given."""
    if spec.evaluation is None and spec.calibration is None:
        return prepare_check.failure_of(error)
    return DataError(f"the model does not run on the given items: {error.message}")


def _data_notes(spec: DataSpec, given: Data) -> list[str]:
    items, asked = given.split.evaluation, spec.evaluation
    notes = [*given.split.notes, *(items.notes if items is not None else ())]
    if given.split.calibration is not None:
        notes.extend(given.split.calibration.notes)
    if items is None and spec.generated is not None and spec.generated.allow_lossy:
        notes.append(
            "no evaluation data: what is lossy is judged on generated items, which say nothing about real ones"
        )
    elif items is None:
        notes.append("no evaluation data: only candidates that answer exactly as the original can be chosen")
    elif asked is not None and items.labels is None and asked.metric != Metric.AGREEMENT:
        notes.append(f"no array {asked.label_key!r} of labels: judged by agreement with the original")
    return notes


# --------------------------------------------------------------------------------------------------------------------- model


def _stored_source(store: Store, source: Source) -> StoredModel:
    files = tuple(store.put_file(source.folder / name, name) for name in source.files)
    return StoredModel(format=source.stored_format, entry=source.entry, files=files)


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
    refusals = {name: prepare_probe.refusal(name, path, signature) for name in others}
    own = (row.runtime for row in catalog.RUNTIMES if "ONNX" not in row.loads and untouched in row.loads)
    loading = (RuntimeName.ONNXRUNTIME, *(name for name in others if refusals[name] is None), *own)
    return loading, [f"{name}: {why}"[:300] for name, why in refusals.items() if why is not None]


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
