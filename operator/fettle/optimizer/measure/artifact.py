"""What a measured candidate writes to the store: its manifest, its reference answers and its figures.

Nothing in the manifest depends on timing, so the same work on the same class of CPU has the same digest.
"""

from __future__ import annotations

import math
from typing import Any

from fettle.api import catalog
from fettle.api.base import canonical_digest
from fettle.api.catalog_rows import StepEntry
from fettle.api.data import PreprocessSpec
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.report import CpuClass
from fettle.api.task import BuiltCandidate, CandidatePlan, MeasureTask
from fettle.api.vocabulary import AgreementMode, RuntimeName
from fettle.optimizer.measure.agreement import FLOAT_NOISE
from fettle.optimizer.measure.candidate import Bench, MeasuredCandidate, scale
from fettle.optimizer.measure.sureness import least_margin
from fettle.runtimes import cpu, machine
from fettle.store import manifest as manifests
from fettle.store.cache import runtime_versions, versions
from fettle.store.comparison import Comparison, is_float
from fettle.store.manifest import DataRecord, Manifest, MeasurementRecord, RecipeRecord, Tolerance
from fettle.store.store import Store

# int8 has 127 steps from zero to the end of a range: what lies on the edge of a step may fall to either side.
ROUNDED_NOISE = (1e-2, 1e-2)
MARGIN = 4.0  # times the worst deviation that was seen: few were looked at


def write(
    store: Store,
    task: MeasureTask,
    candidate: MeasuredCandidate,
    bench: Bench,
    here: CpuClass,
) -> str:
    """Write the artifact of a judged candidate, and return its digest. Raises StoreError."""
    plan, outputs = candidate.built.plan, candidate.outputs or {}
    entries = step_entries(candidate.built)
    feed = bench.items.feed(candidate.reference_items(bench))
    calibrated = any(entry.calibration for entry in entries)
    libraries = {catalog.runtime(plan.runtime).library, *(name for entry in entries for name in entry.libraries)}
    ran = candidate.executed
    # Where weights alone are integers, runtimes round activations on the way.
    quantized = ran is not None and ran.rounds
    skipped = bench.reference.skipped
    return manifests.write_artifact(
        store,
        Manifest(
            source_sha256=task.source_sha256,
            recipe=RecipeRecord(
                name=plan.recipe, steps=candidate.built.steps, revisions=tuple(entry.revision for entry in entries)
            ),
            data=DataRecord(
                calibration=task.calibration_sha256 if calibrated else None,
                training=task.training_sha256 if any(map(catalog.trains, candidate.built.steps)) else None,
                evaluation=task.items.sha256,
                generated=task.generated,
                unsure=skipped.items if skipped is not None else None,
            ),
            libraries=versions(libraries),
            runtime=plan.runtime,
            settings=plan.settings,
            signature=task.signature,
            tolerances={name: tolerance(candidate, name) for name in outputs},
            items_per_run=1 if candidate.alone and task.signature.batchable else None,
            comparisons={name: comparison(candidate, name, rule) for name, rule in bench.reference.live().items()},
            preprocess=preprocess(task),
            tokenizer=task.tokenizer,
            requires=requirements(plan, quantized, here),
            model=candidate.built.model,
            reference=manifests.put_reference(store, feed, outputs),
        ),
    )


def preprocess(task: MeasureTask) -> PreprocessSpec | None:
    """How pictures become inputs, where the evaluation items were pictures and that alone says it.

    An integer input of more than 8 bits takes pixels of 8 or of 16 bits as they are, and which of them the model knows is not said.
    """
    if task.evaluation is None or task.generated:
        return None
    wide = any(t.dtype.startswith(("INT", "UINT")) and not t.dtype.endswith("INT8") for t in task.signature.inputs)
    return None if wide else task.evaluation.preprocess


def requirements(plan: CandidatePlan, quantized: bool, here: CpuClass) -> tuple[str, ...]:
    """The features of the CPU, or the GPU, that a node needs to load the candidate and give the same answers."""
    return machine.requirements(plan.runtime, here) or cpu.requirements(quantized, plan.settings.precision, here)


def write_figures(store: Store, task: MeasureTask, row: CandidateStatus, here: CpuClass) -> None:
    """Write a row beside its artifact, under the key of the task and the CPU class. Raises StoreError."""
    if row.artifact is None:
        return
    libraries = runtime_versions([task.baseline.plan.runtime, row.runtime])
    document: dict[str, Any] = {
        "artifact": row.artifact,
        "items": task.items.sha256,
        "threads": task.threads,
        "batchSizes": list(task.batch_sizes),
        "cpu": here.label,
    }
    key = canonical_digest(document)
    manifests.write_measurement(
        store,
        row.artifact,
        key,
        MeasurementRecord(
            measured_on=here, libraries=libraries, row=row.model_copy(update={"artifact": None}).to_json()
        ),
    )


def step_entries(built: BuiltCandidate) -> list[StepEntry]:
    """The catalog's rows of the steps that built this file: from the runtime's own family, or from the one that writes its format."""
    families = (built.plan.runtime, *(name for name in RuntimeName if name != built.plan.runtime))
    for family in families:
        entries = [catalog.step(step, family) for step in built.steps]
        known = [entry for entry in entries if entry is not None]
        if len(known) == len(entries) and (not known or known[-1].writes == built.model.format):
            return known
    return []


def tolerance(candidate: MeasuredCandidate, name: str) -> Tolerance:
    """How far this output may differ from the reference on the same class of CPU.

    The noise of its arithmetic or, if that is more, `MARGIN` times the largest change observed between restarts and batch sizes;
    rounded up to 1, 2 or 5, so that the last bit of a deviation does not change the artifact's digest.
    """
    outputs = candidate.outputs or {}
    if not is_float(outputs[name]):
        return Tolerance(rtol=0.0, atol=0.0)
    rtol, share = ROUNDED_NOISE if candidate.rounded else FLOAT_NOISE.get(outputs[name].dtype.name, ROUNDED_NOISE)
    seen = MARGIN * candidate.deviations.get(name, 0.0)
    return Tolerance(rtol=rtol, atol=rounded_up(max(share * scale(outputs, name), seen, 1e-7)))


def comparison(candidate: MeasuredCandidate, name: str, rule: Comparison) -> Comparison:
    """The rule for this output, with the margin above which this artifact's decisions count as sure.

    Above it the model was nearly always right, and arithmetic cannot change a decision: each of two scores may move by the
    tolerance. Rounded to two digits, so that a last bit does not change the digest.
    """
    outputs = candidate.outputs or {}
    if rule.mode != AgreementMode.TOP_ONE or name not in outputs or not is_float(outputs[name]):
        return rule
    noise = tolerance(candidate, name)
    moved = least_margin((noise.rtol, noise.atol), scale(outputs, name))
    needed = candidate.judgement.margins.get(name, 0.0) if candidate.judgement is not None else 0.0
    return rule.model_copy(update={"margin": float(f"{max(moved, needed):.2g}")})


def rounded_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = math.floor(math.log10(value))
    step = next(step for step in (1, 2, 5, 10) if value <= step * 10.0**power * (1 + 1e-9))
    return float(f"{step}e{power}")
