"""Which candidates are rejected before any work, because the model, the runtime, the images or the data do not fit them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from fettle.api import catalog, images
from fettle.api.bounds import ORIGINAL
from fettle.api.constraints import Constraints
from fettle.api.optimizedmodel import OptimizedModelSpec, TargetSpec
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport
from fettle.api.text import joined
from fettle.api.vocabulary import FormatName, Precision, QuantizeMode
from fettle.plan.run.devices import loading, misplaced
from fettle.plan.run.planned import Finding, PlannedCandidate

# An item reaches beyond the range of n others with probability 2 / (n + 1), whatever the distribution (Wilks 1941): every second one
# of three items, fewer than every fifth of ten. One item alone cost the examples up to 20 points of accuracy (onnxruntime). Libraries
# take any number; OpenVINO's guide ("Basic Quantization Flow") calibrates with 300.
CALIBRATION_NEEDED = 10


@dataclass(frozen=True)
class Facts:
    """What is known of a target and its run before anything is built."""

    spec: OptimizedModelSpec
    target: TargetSpec
    prepare: PrepareReport
    constraints: Constraints


Check = Callable[[PlannedCandidate, Facts], Finding | None]


def refused(planned: PlannedCandidate, facts: Facts, checks: Iterable[Check]) -> PlannedCandidate:
    """`planned` with the first finding against it, if any."""
    if planned.refusal is not None or planned.plan.recipe == ORIGINAL:
        return planned
    refusal = next((finding for check in checks if (finding := check(planned, facts)) is not None), None)
    return replace(planned, refusal=refusal)


def allows_lossy(spec: OptimizedModelSpec) -> bool:
    """Whether generated items may justify a candidate whose answers may differ."""
    return spec.data.generated is not None and spec.data.generated.allow_lossy


def _loads(planned: PlannedCandidate, facts: Facts) -> Finding | None:
    for runtime in (planned.plan.runtime, planned.family):
        if runtime not in loading(facts.prepare):
            notes = "; ".join(note for note in facts.prepare.notes if runtime in note)
            entry, fault = catalog.runtime(runtime), facts.prepare.conversion_fault
            if not notes and fault is not None:
                notes = fault.message
            elif not notes and facts.prepare.portable.format not in entry.loads:
                sources = [form for form in (*entry.loads, *entry.converts) if form in set(FormatName)]
                notes = f"it only loads sources in the format {joined(sources, 'or')}"
            explained = f": {notes}" if notes else ""
            return Finding(Reason.UNSUPPORTED_MODEL, f"{runtime} cannot load this model{explained}")
    return None


def _convertible(planned: PlannedCandidate, facts: Facts) -> Finding | None:
    """A step that makes its family's file of the source needs one that its converter takes."""
    converts = any(entry is not None and entry.converts for entry in planned.entries)
    if facts.prepare.native is not None or not converts:
        return None
    family, given = planned.family, facts.prepare.source.format
    forms = joined(catalog.runtime(family).converts, "or")
    text = f"files for {family} are made from sources in the format {forms}; a source in {given} only runs unchanged ({ORIGINAL})"
    return Finding(Reason.RECIPE_NOT_APPLICABLE, text)


def _known(planned: PlannedCandidate, facts: Facts) -> Finding | None:
    if any(entry is None for entry in planned.entries):
        return Finding(
            Reason.RECIPE_NOT_APPLICABLE,
            f"recipe {planned.plan.recipe} has a step that {planned.family} does not offer",
        )
    for step in planned.steps:
        if not images.segments(planned.family, (step,)):
            libraries = " and ".join(sorted(images.build_libraries(planned.family, (step,))))
            missing = f"no image has {libraries}, which the step {catalog.kind(step)} of {planned.family} needs"
            return Finding(
                Reason.RECIPE_NOT_APPLICABLE, f"{missing}: remove the step from recipe {planned.plan.recipe}"
            )
    precision = planned.plan.settings.precision
    if precision not in catalog.runtime(planned.plan.runtime).precisions:
        return Finding(Reason.RECIPE_NOT_APPLICABLE, f"{planned.plan.runtime} does not compute in {precision}")
    return None


def _in_its_precision(planned: PlannedCandidate, facts: Facts) -> Finding | None:
    keeps = any(step.quantize is not None and step.quantize.mode is QuantizeMode.BFLOAT16 for step in planned.steps)
    if not keeps or planned.plan.settings.precision is Precision.BFLOAT16:
        return None
    text = f"recipe {planned.plan.recipe} keeps layers in float32 where the others are in BFloat16: set its precision to BFloat16"
    return Finding(Reason.RECIPE_NOT_APPLICABLE, text)


def _trainable(planned: PlannedCandidate, facts: Facts) -> Finding | None:
    """Steps that train need training items, must come first, and give the portable form, which the runtime must load or compile into an engine."""
    entries = [entry for entry in planned.entries if entry is not None]
    trained = [entry for entry in entries if entry.trains]
    if not trained:
        return None
    recipe, items = planned.plan.recipe, facts.prepare.training
    if items is None and any(entry.training for entry in trained):
        left = " (all of its items are evaluation items)" if facts.spec.data.training is not None else ""
        text = f"recipe {recipe} trains, and there is no training data{left}: set data.training"
    elif any(not one.trains and other.trains for one, other in pairwise(entries)):
        text = f"recipe {recipe} has a step that trains after one that does not: put the steps that train first"
    elif not catalog.takes_portable(planned.plan.runtime):
        text = f"{planned.plan.runtime} only runs the source, or what is converted from it, not the result of a recipe that trains"
    elif facts.prepare.traits.quantized:
        text = "the source is already quantized, so it cannot be trained"
    else:
        return None
    return Finding(Reason.RECIPE_NOT_APPLICABLE, text)


def _not_quantized_twice(planned: PlannedCandidate, facts: Facts) -> Finding | None:
    quantized = facts.prepare.traits.quantized
    if sum(step.quantizes for step in planned.steps) > 1:
        text = f"recipe {planned.plan.recipe} quantizes twice: keep only one of these steps"
        return Finding(Reason.RECIPE_NOT_APPLICABLE, text)
    if planned.dequantizes and not quantized:
        return Finding(Reason.RECIPE_NOT_APPLICABLE, "the source is not quantized, so there is nothing to dequantize")
    if planned.quantizes_source and quantized:
        text = "the source is already quantized: put the step dequantize first"
        return Finding(Reason.RECIPE_NOT_APPLICABLE, text)
    return None


def _calibrated(planned: PlannedCandidate, facts: Facts) -> Finding | None:
    prepare = facts.prepare
    items = prepare.calibration.items if prepare.calibration is not None else 0
    learns = prepare.training is not None
    asking = [entry for entry in planned.entries if entry is not None and entry.calibrates(learns)]
    if items >= CALIBRATION_NEEDED or not asking:
        return None
    what = "quantization" if any(not entry.trains for entry in asking) else "lowRank without training data"
    text = f"{what} needs {CALIBRATION_NEEDED} calibration items or more, found {items}"
    return Finding(Reason.CALIBRATION_TOO_SMALL, f"{text}{_more_calibration(items, facts)}")


def _judged(planned: PlannedCandidate, facts: Facts) -> Finding | None:
    """Steps that choose layers by their loss of accuracy need real items, or permission to publish on generated ones."""
    unproved = facts.prepare.generated and not allows_lossy(facts.spec)
    if not unproved or not any(entry is not None and entry.bounded for entry in planned.entries):
        return None
    text = f"recipe {planned.plan.recipe} chooses layers by their loss of accuracy, which generated items do not show"
    return Finding(Reason.EVALUATION_DATA_MISSING, f"{text}: set data.evaluation")


def _more_calibration(items: int, facts: Facts) -> str:
    """Where the calibration items came from, and what to provide."""
    data, prepare = facts.spec.data, facts.prepare
    if data.calibration is not None:
        others = " that are not evaluation items too" if data.evaluation is not None else ""
        return f"{others}: provide more of them in data.calibration"
    if data.evaluation is not None:
        return (
            f", split off from {items + prepare.items.items} evaluation items (a fifth of the distinct ones): "
            f"set data.calibration, or provide at least {5 * CALIBRATION_NEEDED} distinct items in data.evaluation"
        )
    return " generated ones: raise data.generated.samples" if items else ": set data.calibration or data.evaluation"


def _on_its_device(planned: PlannedCandidate, facts: Facts) -> Finding | None:
    text = misplaced(planned, facts.target)
    return Finding(Reason.RECIPE_NOT_APPLICABLE, text) if text is not None else None


CHECKS: tuple[Check, ...] = (
    _known,
    _in_its_precision,
    _on_its_device,
    _trainable,
    _loads,
    _convertible,
    _not_quantized_twice,
    _calibrated,
    _judged,
)
