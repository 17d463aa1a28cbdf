"""How far the measurements of a target have come, and which of its candidates a round tries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fettle.api.bounds import Rules, misses_accuracy
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus
from fettle.api.report import MeasureReport, PrepareReport
from fettle.plan.run.attempts import TaskProgress
from fettle.plan.run.builds import BuildProgress
from fettle.plan.run.candidates import TargetPlan, allows_lossy
from fettle.plan.run.context import RunContext
from fettle.plan.run.images import measured_beside
from fettle.plan.run.planned import Finding, PlannedCandidate
from fettle.plan.run.second_round import hopeless


@dataclass(frozen=True)
class RoundMeasurement:
    """A round's measurement of a target: the candidates it was asked for, and how far it has come."""

    candidates: tuple[PlannedCandidate, ...]
    task: TaskProgress[MeasureReport]


@dataclass(frozen=True)
class TargetProgress:
    """How far a target has come. `tried` are the candidates of the newest `round`; `skipped`: those of the second round that
    are not tried -> why."""

    plan: TargetPlan
    rules: Rules
    round: int = 0
    tried: tuple[PlannedCandidate, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    measurements: tuple[RoundMeasurement, ...] = ()

    @property
    def target(self) -> TargetSpec:
        """The target as the spec has it."""
        return self.plan.target

    @property
    def reports(self) -> tuple[MeasureReport, ...]:
        """What its measurements answered."""
        return tuple(done.task.report for done in self.measurements if done.task.report is not None)

    @property
    def measured(self) -> dict[str, CandidateStatus]:
        """The candidates that a measurement speaks of, by name."""
        return {candidate.name: candidate for report in self.reports for candidate in report.candidates}

    @property
    def measuring(self) -> frozenset[str]:
        """Names of the candidates that are being measured."""
        return _names(measurement for measurement in self.measurements if measurement.task.running)

    @property
    def left_out(self) -> frozenset[str]:
        """Names of those that were asked for, but are not in the measurement's answer."""
        return _names(done for done in self.measurements if done.task.report is not None) - self.measured.keys()

    @property
    def certified(self) -> int:
        """Lossy candidates that have spent their share of the error."""
        return sum(report.certified for report in self.reports)

    @property
    def baseline(self) -> BaselineStatus | None:
        """The first round's: every later baseline is the same file, timed again only to be paired with."""
        return next((report.baseline for report in self.reports if report.baseline is not None), None)

    @property
    def fault(self) -> Finding | None:
        """Why a measurement failed for good."""
        return next((failed.task.fault for failed in self.measurements if failed.task.fault is not None), None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What its measurements want to be known."""
        return tuple(note for report in self.reports for note in report.notes)

    @property
    def places(self) -> int:
        """Lossy candidates that this round may certify: the first leaves one to the second, where there is one and that is possible."""
        if self.round > 1:
            return self.plan.places - self.certified
        more = any(candidate.after is not None and candidate.refusal is None for candidate in self.plan.candidates)
        return max(self.plan.places - more, 1)


def new_target(context: RunContext, plan: TargetPlan, prepare: PrepareReport) -> TargetProgress:
    """A target of which nothing was measured yet."""
    return TargetProgress(plan, rules_of(context, plan, prepare))


def rules_of(context: RunContext, plan: TargetPlan, prepare: PrepareReport) -> Rules:
    """What the candidates of a target are judged by."""
    spec = context.snapshot.spec
    return Rules(
        constraints=context.constraints,
        objective=spec.objective,
        batch_size=plan.target.batch_sizes[0],
        exact_only=prepare.generated and not allows_lossy(spec),
        alpha=plan.alpha,
    )


def begin_first_round(target: TargetProgress) -> TargetProgress:
    """`target` with the candidates that are tried whatever the others answer."""
    live = (candidate for candidate in target.plan.candidates if candidate.refusal is None)
    return replace(target, round=1, tried=tuple(candidate for candidate in live if candidate.after is None))


def begin_second_round(target: TargetProgress, builds: Mapping[str, BuildProgress], items: int) -> TargetProgress:
    """`target` with the variations that the first round's answer asks for, and why the others are skipped.

    `items`: number of items that candidates are certified on.
    """
    target = replace(target, round=2)
    tried: list[PlannedCandidate] = []
    skipped: dict[str, str] = {}
    for candidate in target.plan.candidates:
        if candidate.refusal is not None or candidate.after is None:
            continue
        first = target.measured.get(candidate.after)
        if not _asks_for_more(target, builds, candidate.after):
            skipped[candidate.name] = f"only tried if {candidate.after} misses the accuracy constraint"
        elif first is not None and (text := hopeless(first, target.rules, target.baseline)) is not None:
            skipped[candidate.name] = f"{candidate.after} {text}: a variation of it would not pass either"
        elif not target.places:
            skipped[candidate.name] = f"{items} items certify no further lossy candidate"
        else:
            tried.append(candidate)
    return replace(target, tried=tuple(tried), skipped=skipped)


def _asks_for_more(target: TargetProgress, builds: Mapping[str, BuildProgress], first: str) -> bool:
    """Whether a candidate of the first round failed, or lost more than it may."""
    if target.fault is not None:
        return False
    planned = next((candidate for candidate in target.plan.candidates if candidate.name == first), None)
    if planned is None or planned.refusal is not None:
        return False
    build = builds.get(planned.build.name) if planned.build is not None else None
    if build is not None and build.fault is not None:
        return True
    measured = target.measured.get(first)
    return measured is not None and misses_accuracy(measured, target.rules)


def incumbent_of(context: RunContext, plan: TargetPlan) -> str | None:
    """Digest of what was published for a target when the run of this generation began, where it may still serve there
    and lies in the store of this run.

    A run that is tried again asks what it asked at first: what itself published is one of its candidates.
    """
    target = plan.target
    for artifact in context.snapshot.status.artifacts:
        if artifact.target != target.name:
            continue
        if artifact.generation == context.snapshot.generation and any(
            candidate.name == artifact.candidate for candidate in plan.candidates
        ):
            return artifact.incumbent
        fits = artifact.runtime in target.runtimes and artifact.threads <= target.threads
        fits = fits and measured_beside(artifact.runtime, plan.candidates, plan.baseline.runtime)
        if fits and artifact.uri.startswith(f"{context.store.rstrip('/')}/"):
            return artifact.sha256
    return None


def may_share_a_node(target: TargetSpec, other: TargetSpec) -> bool:
    """Whether pods of both targets may land on the same node: no label is asked for with different values."""
    common = target.node_selector.keys() & other.node_selector.keys()
    return all(target.node_selector[key] == other.node_selector[key] for key in common)


def _names(measurements: Iterable[RoundMeasurement]) -> frozenset[str]:
    return frozenset(candidate.name for measurement in measurements for candidate in measurement.candidates)
