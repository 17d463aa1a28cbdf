"""Which candidates a run tries on a target, and whether its items can prove them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from fettle.api import catalog, formats, metrics
from fettle.api.bounds import ORIGINAL
from fettle.api.constraints import Constraints
from fettle.api.interval import items_needed
from fettle.api.metrics import Proof
from fettle.api.optimizedmodel import OptimizedModelSpec, TargetSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import PrepareReport
from fettle.api.task import BuildPlan, CandidatePlan, LossBound, TrainingPlan
from fettle.api.vocabulary import (
    AgreementMode,
    Basis,
    DeviceKind,
    Metric,
    Objective,
    RuntimeName,
    SearchStrategy,
    StepKind,
    UnsureItems,
)
from fettle.plan.run.applicable import CHECKS, Facts, allows_lossy, refused
from fettle.plan.run.constraints import DEFAULT_MAX_DROP, in_force
from fettle.plan.run.default_plan import default_candidates, default_lines
from fettle.plan.run.devices import GPU_BASELINE, device_kind, loading, misplaced, on_device, original_on_gpu
from fettle.plan.run.images import measurable
from fettle.plan.run.planned import Finding, PlannedCandidate, planned_candidate
from fettle.plan.run.streams import with_streams

ROWS_LIMIT = 128  # maximum length of status.candidates, over all targets
ERROR = (
    0.05  # probability that an accuracy interval of a target misses the true value, shared among its lossy finalists
)
FINALISTS = 4  # maximum number of lossy candidates of a target that are evaluated in full
UNASKED_SHARE = 6  # a training in the default plan takes at most a sixth of search.deadlineSeconds
TOLERATED_SHARE = 0.5  # of the drop that is allowed: as for mixed precision, the items that certify are others
GROUPS_NEEDED = 30  # minimum number of items for a bootstrap


@dataclass(frozen=True)
class TargetPlan:
    """The candidates of a target, including rejected ones; how many lossy ones may be evaluated in full (`places`), and the error probability of
    each interval (`alpha`)."""

    target: TargetSpec
    baseline: CandidatePlan
    candidates: tuple[PlannedCandidate, ...]
    places: int
    alpha: float


def possible_builds(spec: OptimizedModelSpec) -> tuple[BuildPlan, ...]:
    """Every build that the plan of this spec may need, whatever the model is: PrepareTask.builds."""
    runtimes = frozenset(runtime for target in spec.targets for runtime in target.runtimes)
    if spec.recipes:
        pairs = [(planned, target) for target in spec.targets for planned in _recipe_candidates(spec, target)]
    else:
        pairs = [(line.candidate(target), target) for target in spec.targets for line in default_lines(runtimes)]
    candidates = [_bounded(planned, spec) for planned, target in pairs if misplaced(planned, target) is None]
    has_data = spec.data.calibration is not None or spec.data.evaluation is not None or allows_lossy(spec)
    builds: dict[str, BuildPlan] = {}
    for planned in candidates:
        trainable = spec.data.training is not None
        known = all(
            entry is not None and (has_data or not entry.calibrates(trainable)) and (trainable or not entry.training)
            for entry in planned.entries
        )
        if planned.build is not None and known:
            builds.setdefault(planned.build.name, planned.build)
    return tuple(builds.values())


def plan_target(
    spec: OptimizedModelSpec, target: TargetSpec, prepare: PrepareReport, constraints: Constraints
) -> TargetPlan:
    """The candidates of a target: the original if its runtime may serve, so that there is something to publish if nothing is faster, and then
    the recipes, up to maxCandidates."""
    baseline = baseline_plan(target, prepare)
    original = (PlannedCandidate(baseline),) if baseline.runtime in target.runtimes else ()
    recipes = _recipe_candidates(spec, target) if spec.recipes else _one_per_dead_runtime(target, prepare)
    recipes = tuple(_bounded(planned, spec) for planned in recipes)
    if spec.objective == Objective.THROUGHPUT:
        recipes = tuple(variant for planned in recipes for variant in with_streams(planned, target.threads))
    facts = Facts(spec, target, prepare, constraints)
    kept = _cut((*original, *recipes), spec)
    applicable = tuple(refused(planned, facts, (*CHECKS, _provable)) for planned in kept)
    candidates = measurable(applicable, baseline.runtime, prepare.source.format)
    places = _places(sum(planned.lossy and planned.refusal is None for planned in candidates), facts)
    return TargetPlan(target, baseline, candidates, places, ERROR / places)


def baseline_plan(target: TargetSpec, prepare: PrepareReport) -> CandidatePlan:
    """The plan of the baseline, to which speed-ups refer: the untouched source in its own runtime with default settings.

    If that cannot be timed, the portable form takes its place (basis PortableForm; it is not `untouched` then).
    """
    entry = formats.source_format(prepare.source.format)
    own = entry.runtime if entry is not None else catalog.PORTABLE_RUNTIME
    untouched = prepare.basis == Basis.SOURCE_RUNTIME
    on_gpu = original_on_gpu(prepare)
    convertible = prepare.portable.format == catalog.PORTABLE
    if device_kind(target) is DeviceKind.NVIDIA and (on_gpu is not None or convertible):
        # Speed-ups on a GPU refer to a baseline on the GPU, and not to a framework that runs the source on the CPU.
        settings = RuntimeSettings(threads=target.threads, graph_optimization=False)
        runtime = on_gpu or GPU_BASELINE
        return CandidatePlan(
            name=ORIGINAL, recipe=ORIGINAL, runtime=runtime, settings=settings, untouched=on_gpu is not None
        )
    others = (name for name in prepare.portable_runtimes if name != own)
    runtime = own if untouched or own in prepare.portable_runtimes else next(others, own)
    settings = RuntimeSettings(threads=target.threads, graph_optimization=False)
    return CandidatePlan(name=ORIGINAL, recipe=ORIGINAL, runtime=runtime, settings=settings, untouched=untouched)


def _recipe_candidates(spec: OptimizedModelSpec, target: TargetSpec) -> tuple[PlannedCandidate, ...]:
    """The user's recipes, each in every runtime of the target."""
    candidates = []
    for recipe in spec.recipes:
        asked = RuntimeSettings(threads=target.threads, precision=recipe.precision)
        for runtime in target.runtimes:
            execution = on_device(runtime, asked, target)
            candidates.append(
                planned_candidate(recipe.name, runtime, execution, steps=recipe.steps, train=recipe.train)
            )
    return tuple(candidates)


def _bounded(planned: PlannedCandidate, spec: OptimizedModelSpec) -> PlannedCandidate:
    """The candidate, with the allowed loss in its build if one of its steps depends on that, and with the metric if one of its steps trains."""
    if planned.build is not None and planned.build.training is not None:
        judging = spec.data.evaluation.judging if spec.data.evaluation is not None else None
        augment = tuple(sorted(spec.data.training.augment)) if spec.data.training is not None else ()
        training = planned.build.training.model_copy(update={"evaluation": judging, "augment": augment})
        if not spec.recipes:
            training = _unasked(training, planned, spec)
        planned = replace(planned, build=planned.build.model_copy(update={"training": training}))
    if planned.build is None or not any(entry and entry.bounded for entry in planned.entries):
        return planned
    loss = _loss_bound(spec)
    return planned if loss is None else replace(planned, build=planned.build.model_copy(update={"loss": loss}))


def _unasked(training: TrainingPlan, planned: PlannedCandidate, spec: OptimizedModelSpec) -> TrainingPlan:
    """A training that nobody asked for: it may take its part of the time, and no more, and trains for int8 only where int8 alone loses too much."""
    most = min(training.spec.deadline_seconds, spec.search.deadline_seconds // UNASKED_SHARE)
    bounded = training.spec.model_copy(update={"deadline_seconds": max(most, 1)})
    loss = _loss_bound(spec) if any(catalog.kind(step) is StepKind.QUANTIZE_AWARE for step in planned.steps) else None
    tolerated = TOLERATED_SHARE * loss.max_loss if loss is not None else None
    return training.model_copy(update={"spec": bounded, "tolerated": tolerated})


def _loss_bound(spec: OptimizedModelSpec) -> LossBound | None:
    """What steps may lose that look at it; None without a bound on the accuracy."""
    bound = in_force(spec).accuracy
    if bound is None:
        return None
    evaluation = spec.data.evaluation
    share = evaluation is None or metrics.entry(evaluation.metric).bounds_agreement
    return LossBound(
        max_loss=bound.max_drop if share else min(bound.max_drop, DEFAULT_MAX_DROP),
        refused=max(bound.max_drop, bound.max_changed or 0.0) if share else 1.0,
        evaluation=evaluation.judging if evaluation is not None else None,
    )


def _one_per_dead_runtime(target: TargetSpec, prepare: PrepareReport) -> tuple[PlannedCandidate, ...]:
    """The default plan. A runtime that cannot load the portable form keeps only its first candidate, whose message says so."""
    kept: list[PlannedCandidate] = []
    told_of: set[RuntimeName] = set()
    for planned in default_candidates(target, prepare):
        missing = {planned.plan.runtime, planned.family} - loading(prepare)
        if not missing:
            kept.append(planned)
        elif planned.plan.runtime in missing and planned.plan.runtime not in told_of:
            told_of.add(planned.plan.runtime)
            kept.append(planned)
    return tuple(kept)


def _cut(candidates: tuple[PlannedCandidate, ...], spec: OptimizedModelSpec) -> tuple[PlannedCandidate, ...]:
    """`candidates`, of which all but the cheapest `maxCandidates` are rejected; never more than status can hold for every target."""
    most = spec.search.max_candidates
    cut_off = Finding(
        Reason.PRUNED,
        f"search.maxCandidates is {most}, and cheaper candidates come first: raise it to try this one",
    )
    cut = tuple(
        replace(planned, refusal=cut_off) if place >= most else planned for place, planned in enumerate(candidates)
    )
    return cut[: ROWS_LIMIT // len(spec.targets) - 1]  # the published artifact has a row too


def _provable(planned: PlannedCandidate, facts: Facts) -> Finding | None:
    """Why the items cannot prove a lossy candidate even if none of its answers changed; None if they can."""
    bound, prepare = facts.constraints.accuracy, facts.prepare
    if bound is None or not planned.lossy or (prepare.generated and not allows_lossy(facts.spec)):
        return None
    needed = _needed(bound.max_drop, 1, facts)
    if needed is None:
        return Finding(
            Reason.EVALUATION_TOO_SMALL,
            f"no number of items can prove a drop of {bound.max_drop:g}: raise constraints.accuracy.maxDrop",
        )
    there = _counting(prepare)
    if there >= needed:
        return None
    kind, more = ("generated", " (data.generated.samples)") if prepare.generated else ("evaluation", "")
    with_objects = f" that contain something to find (of {prepare.items.items})" if there < prepare.items.items else ""
    text = (
        f"{there} {kind} items{with_objects} cannot prove a drop of at most {bound.max_drop:g}, even if no answer changes: "
        f"{needed} are needed{more}"
    )
    return Finding(Reason.EVALUATION_TOO_SMALL, text)


def _places(lossy: int, facts: Facts) -> int:
    """The maximum number of lossy candidates to evaluate in full, each with its share of the error probability: as many as the items can prove, or
    all of them in an exhaustive search."""
    if facts.spec.search.strategy is SearchStrategy.EXHAUSTIVE:
        return max(lossy, 1)
    most = max(min(lossy, FINALISTS), 1)
    bound = facts.constraints.accuracy
    if bound is None:
        return most
    needed = {places: _needed(bound.max_drop, places, facts) for places in range(1, most + 1)}
    there = _counting(facts.prepare) // (2 if _skips_unsure(facts) else 1)  # up to half of the items may not count
    return max((places for places, items in needed.items() if items is not None and items <= there), default=1)


def _skips_unsure(facts: Facts) -> bool:
    """Whether the proof is agreement with the original, without the items on which that is unsure."""
    evaluation = facts.spec.data.evaluation
    return (
        evaluation is not None and not facts.prepare.items.labelled and evaluation.agreement.unsure is UnsureItems.SKIP
    )


def _counting(prepare: PrepareReport) -> int:
    """The number of items that count as evidence: for a task metric, those that contain something to find."""
    return prepare.items.items if prepare.informative is None else prepare.informative


def _needed(max_drop: float, places: int, facts: Facts) -> int | None:
    """The number of items that prove a drop of at most `max_drop` if no answer changes and `places` candidates share the error probability; None
    if no number does."""
    if not bounded_by_flips(facts.spec, facts.prepare):
        return GROUPS_NEEDED
    needed = _items_needed(max_drop, ERROR / places)
    metric = facts.prepare.metric
    bootstrapped = metric is not None and metrics.entry(metric).proof is Proof.BOOTSTRAP_OVER_ITEMS
    return max(needed, GROUPS_NEEDED) if needed is not None and bootstrapped else needed


def bounded_by_flips(spec: OptimizedModelSpec, prepare: PrepareReport) -> bool:
    """Whether the interval of the metric is never narrower than that of a share of right answers without any change."""
    evaluation = spec.data.evaluation
    if evaluation is None:
        return True
    metric = prepare.metric or evaluation.metric
    entry = metrics.entry(metric)
    if entry.scorer is None and (metric == Metric.AGREEMENT or not prepare.items.labelled):
        return evaluation.agreement.mode != AgreementMode.COSINE
    return entry.proof is not Proof.BOOTSTRAP


@lru_cache(maxsize=256)
def _items_needed(max_drop: float, alpha: float) -> int | None:
    """`items_needed` if no answer changes. Cached, because every decision of a run needs the same numbers."""
    return items_needed(max_drop, alpha=alpha)
