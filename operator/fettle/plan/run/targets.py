"""The progress of a target's measurement, and the candidates that it tries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fettle.api.bounds import Rules
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus
from fettle.api.report import MeasureReport, PrepareReport
from fettle.plan.run.applicable import allows_lossy
from fettle.plan.run.attempts import TaskProgress
from fettle.plan.run.candidates import TargetPlan
from fettle.plan.run.context import RunContext
from fettle.plan.run.images import measured_beside
from fettle.plan.run.planned import Finding, PlannedCandidate


@dataclass(frozen=True)
class TargetMeasurement:
    """The measurement of a target: its candidates, and its progress."""

    candidates: tuple[PlannedCandidate, ...]
    task: TaskProgress[MeasureReport]

    @property
    def names(self) -> frozenset[str]:
        """Names of the candidates that it measures."""
        return frozenset(candidate.name for candidate in self.candidates)


@dataclass(frozen=True)
class TargetProgress:
    """The progress of a target. `measurement` is None until it is requested; `twins`: name of a candidate -> name of an earlier one with the same
    file, runtime and settings."""

    plan: TargetPlan
    rules: Rules
    measurement: TargetMeasurement | None = None
    twins: Mapping[str, str] = field(default_factory=dict)

    @property
    def target(self) -> TargetSpec:
        """The target in the spec."""
        return self.plan.target

    @property
    def tried(self) -> tuple[PlannedCandidate, ...]:
        """The candidates that were not rejected before any work."""
        return tuple(candidate for candidate in self.plan.candidates if candidate.refusal is None)

    @property
    def report(self) -> MeasureReport | None:
        """The result of its measurement."""
        return self.measurement.task.report if self.measurement is not None else None

    @property
    def measured(self) -> dict[str, CandidateStatus]:
        """The candidates in the result of the measurement, by name."""
        return {candidate.name: candidate for candidate in self.report.candidates} if self.report is not None else {}

    @property
    def measuring(self) -> frozenset[str]:
        """Names of the candidates that are being measured."""
        running = self.measurement is not None and self.measurement.task.running
        return self.measurement.names if self.measurement is not None and running else frozenset()

    @property
    def left_out(self) -> frozenset[str]:
        """Names of candidates that should have been measured, but are missing from the result."""
        if self.measurement is None or self.report is None:
            return frozenset()
        return self.measurement.names - self.measured.keys()

    @property
    def baseline(self) -> BaselineStatus | None:
        """The measurement of the original."""
        return self.report.baseline if self.report is not None else None

    @property
    def fault(self) -> Finding | None:
        """Why the measurement failed permanently."""
        return self.measurement.task.fault if self.measurement is not None else None

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the measurement."""
        return self.report.notes if self.report is not None else ()


def new_target(context: RunContext, plan: TargetPlan, prepare: PrepareReport) -> TargetProgress:
    """The progress of a target before its measurement."""
    return TargetProgress(plan, rules_of(context, plan, prepare))


def rules_of(context: RunContext, plan: TargetPlan, prepare: PrepareReport) -> Rules:
    """The rules by which the candidates of a target are judged."""
    spec = context.snapshot.spec
    return Rules(
        constraints=context.constraints,
        objective=spec.objective,
        batch_size=plan.target.batch_sizes[0],
        exact_only=prepare.generated and not allows_lossy(spec),
        alpha=plan.alpha,
    )


def incumbent_of(context: RunContext, plan: TargetPlan) -> str | None:
    """Digest of the artifact that was published for a target when the run of this generation began, if it may still serve there and is in the
    store of this run.

    A retry of a run uses the incumbent of the first attempt, because what the run itself published is one of its candidates.
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
        fits = fits and artifact.placement.architecture in (None, target.device.architecture if target.device else None)
        fits = fits and measured_beside(artifact.runtime, plan.candidates, plan.baseline.runtime)
        if fits and artifact.uri.startswith(f"{context.store.rstrip('/')}/"):
            return artifact.sha256
    return None


def may_share_a_node(target: TargetSpec, other: TargetSpec) -> bool:
    """Whether pods of both targets may be scheduled to the same node: no node label is required with different values."""
    common = target.node_selector.keys() & other.node_selector.keys()
    return all(target.node_selector[key] == other.node_selector[key] for key in common)
