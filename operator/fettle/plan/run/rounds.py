"""The middle of a run: build, measure, and where a first answer asks for it, a second round of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fettle.api.bounds import Rules, misses_accuracy, percentile
from fettle.api.constraints import Constraints
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, MeasureReport, PrepareReport
from fettle.api.task import BuildPlan, BuildTask, StoredModel
from fettle.api.text import rounded
from fettle.api.vocabulary import AgreementMode, Evidence, Metric, Objective
from fettle.plan.run.attempts import Attempts, View
from fettle.plan.run.candidates import TargetPlan, allows_lossy
from fettle.plan.run.images import measured_beside
from fettle.plan.run.planned import Finding, Row, with_notes
from fettle.plan.run.state import RunSnapshot
from fettle.plan.run.tasks import Given, Round, build_task, measure_task, model_of

ROUNDS = (1, 2)
HALF = 0.5  # of the items: where fewer agree, numbers are off by more than their tolerance
# Of the original's variance in the worst channel. A share of items says nothing of how far they are off: of many numbers one that is just
# beyond the tolerance is enough. An error of a twentieth of the variance would have to shrink about tenfold to come within 1 % of the range
# (normal values); another preset was seen to take a third off it.
NEAR = 0.95
SLOWER = 1.2  # times the original, between two clocks


@dataclass(frozen=True)
class Stage:
    """Where the run stands: the Ready condition's reason and message. `finished`: nothing more will happen by itself."""

    reason: Reason
    message: str
    finished: bool = False


@dataclass
class TargetRun:
    """What one decision learns of a target."""

    plan: TargetPlan
    rules: Rules
    measured: dict[str, CandidateStatus] = field(default_factory=dict)
    measuring: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)  # rows of the second round that are not tried -> why
    certified: int = 0  # lossy candidates that have spent their share of the error
    left_out: set[str] = field(default_factory=set)  # asked for, but not in the measurement's answer
    baseline: BaselineStatus | None = None
    fault: Finding | None = None
    waits: list[Finding] = field(default_factory=list)  # what holds its measurement up
    notes: list[str] = field(default_factory=list)  # what its measurement wants to be known

    @property
    def target(self) -> TargetSpec:
        """The target as the spec has it."""
        return self.plan.target


@dataclass
class Rounds:
    """Builds and measurements of all targets. One per decision; `advance` fills it as far as the answers reach."""

    snapshot: RunSnapshot
    attempts: Attempts
    store: str
    prepare: PrepareReport
    targets: list[TargetRun]
    built: dict[str, StoredModel] = field(default_factory=dict)
    refused: dict[str, Finding] = field(default_factory=dict)  # builds whose recipe does not apply
    failed: dict[str, Finding] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    waits: list[Finding] = field(default_factory=list)  # what holds builds up
    build_hashes: list[str] = field(default_factory=list)
    measure_hashes: list[str] = field(default_factory=list)

    def advance(self) -> Stage | None:
        """Go on as far as the answers reach: the stage that waits, or None when every round is over."""
        for number in ROUNDS:
            planned = {run.target.name: self._rows(run, number) for run in self.targets}
            stage = self._build([row for rows in planned.values() for row in rows])
            if stage is None:
                stage = self._measure(planned, number)
            if stage is not None:
                return stage
        return None

    def _rows(self, run: TargetRun, number: int) -> list[Row]:
        """The rows of a round. Those of the second are tried only where the first one's answer asks for them."""
        live = [row for row in run.plan.rows if row.refusal is None]
        if number == 1:
            return [row for row in live if row.after is None]
        variations = []
        for row in live:
            if row.after is None:
                continue
            if not self._asks_for_more(run, row.after):
                run.skipped[row.name] = f"only tried when {row.after} misses accuracy"
            elif (hopeless := self._hopeless(run, row.after)) is not None:
                run.skipped[row.name] = f"{row.after} {hopeless}: a variation of it would not pass either"
            elif not self._places(run, number):
                run.skipped[row.name] = f"{self.prepare.items.items} items certify no further lossy candidate"
            else:
                variations.append(row)
        return variations

    def _asks_for_more(self, run: TargetRun, first: str) -> bool:
        """Whether a candidate of the first round failed, or lost more than it may."""
        if run.fault is not None:
            return False
        plan = next((row for row in run.plan.rows if row.name == first), None)
        if plan is None or plan.refusal is not None:
            return False
        if plan.build is not None and plan.build.name in self.failed:
            return True
        row = run.measured.get(first)
        return row is not None and misses_accuracy(row, run.rules)

    def _hopeless(self, run: TargetRun, first: str) -> str | None:
        """Why a variation of a candidate that misses accuracy proves nothing, for a person; None where it may pass.

        It has about the same speed, and an error of the same order: a class may tip back, a number that is far off does not come near.
        """
        row = run.measured.get(first)
        return None if row is None else _far_off(row) or _slower(row, run)

    def _build(self, rows: Sequence[Row]) -> Stage | None:
        builds = {row.build.name: row.build for row in rows if row.build is not None}
        waiting = sum(not self._made(build) for build in builds.values())
        if not waiting:
            return None
        progress = f"{len(builds) - waiting} of {len(builds)} builds done"
        return Stage(Reason.OPTIMIZING, with_notes(progress, self.waits))

    def _made(self, build: BuildPlan) -> bool:
        """Ask for the segments of a build, one after the other, from the first behind all that the store has; whether it is over."""
        entries = {entry.name: entry for entry in self.prepare.builds}
        chain = [(segment, entries[segment.name]) for segment in build.segments]
        given, behind = Given(self.prepare.portable), 0
        for place, (_, entry) in enumerate(chain, 1):
            if entry.built is not None:
                given, behind = Given(entry.built, entry.cache_key), place
        for segment, entry in chain[behind:]:
            report = self._answer(build, build_task(segment, entry, given, self.prepare, self.store))
            if report is None:
                return build.name in self.failed
            if report.built is None:
                reason = report.reason or Reason.RECIPE_NOT_APPLICABLE
                self.refused[build.name] = Finding(reason, report.message or "the recipe does not apply")
                return True
            given = Given(report.built, report.cache_key)
        self.built[build.name] = given.model
        return True

    def _answer(self, build: BuildPlan, task: BuildTask) -> BuildReport | None:
        """What came of a segment of `build`; None while nothing did, and where it failed for good."""
        if len(self.running) >= self.snapshot.spec.search.parallelism and not self.attempts.knows(task):
            return None
        view = self.attempts.want(task, BuildReport, stage="build", label=f"build {task.plan.name}")
        if view.running:
            self.running.add(build.name)
        if view.note is not None:
            self.waits.append(view.note)
        if view.fault is not None:
            self.failed[build.name] = view.fault
        if view.report is not None:
            self.build_hashes.append(view.task_hash)  # the report is made of answers: a failure left none
        return view.report

    def _places(self, run: TargetRun, number: int) -> int:
        """Lossy candidates that a round may certify: the first leaves one to the second, where there is one and that is possible."""
        if number > 1:
            return run.plan.places - run.certified
        more = any(row.after is not None and row.refusal is None for row in run.plan.rows)
        return max(run.plan.places - more, 1)

    def incumbent(self, run: TargetRun) -> str | None:
        """Digest of what was published for a target when the run of this generation began, where it may still serve there
        and lies in the store of this run.

        A run that is tried again asks what it asked at first: what itself published is one of its candidates.
        """
        target = run.target
        for artifact in self.snapshot.status.artifacts:
            if artifact.target != target.name:
                continue
            if artifact.generation == self.snapshot.generation and any(
                row.name == artifact.candidate for row in run.plan.rows
            ):
                return artifact.incumbent
            plan = run.plan
            fits = artifact.runtime in target.runtimes and artifact.threads <= target.threads
            fits = fits and measured_beside(artifact.runtime, plan.rows, plan.baseline.runtime)
            if fits and artifact.uri.startswith(f"{self.store.rstrip('/')}/"):
                return artifact.sha256
        return None

    def _measure(self, planned: dict[str, list[Row]], number: int) -> Stage | None:
        busy: list[TargetRun] = []
        asked = 0
        for run in self.targets:
            models = {row.name: model_of(row, self.prepare, self.built) for row in planned[run.target.name]}
            files = {name: model for name, model in models.items() if model is not None}
            rows = [row for row in planned[run.target.name] if row.name in files]
            if not rows or run.fault is not None:
                continue
            asked += 1
            round = Round(
                plan=run.plan,
                rows=rows,
                files=files,
                constraints=run.rules.constraints,
                places=self._places(run, number),
                incumbent=self.incumbent(run) if number == 1 else None,
            )
            task = measure_task(self.snapshot, self.prepare, self.store, round)
            # Two clocks on one node would time each other.
            if any(may_share_a_node(run.target, other.target) for other in busy) and not self.attempts.knows(task):
                busy.append(run)
                continue
            label = f"measure {run.target.name}"
            view = self.attempts.want(task, MeasureReport, stage="measure", label=label, target=run.target)
            self._measured(run, rows, view)
            if not view.over:
                busy.append(run)
        if not busy:
            return None
        return Stage(Reason.MEASURING, _progress(busy, asked))

    def _measured(self, run: TargetRun, rows: Sequence[Row], view: View[MeasureReport]) -> None:
        if view.fault is not None:
            run.fault = view.fault
        if view.note is not None:
            run.waits.append(view.note)
        if view.report is None:
            if view.running:
                run.measuring.update(row.name for row in rows)
            return
        self.measure_hashes.append(view.task_hash)
        report = view.report
        run.certified += report.certified
        run.measured.update({row.name: row for row in report.candidates})
        run.left_out.update(row.name for row in rows if row.name not in run.measured)
        # The first round's: every later baseline is the same file, timed again only to be paired with.
        run.baseline = run.baseline or report.baseline
        run.notes.extend(report.notes)


def _far_off(row: CandidateStatus) -> str | None:
    """How far numbers that no labels judge are off, where no other choice of ranges makes that good."""
    agreement = row.agreement
    judged = row.accuracy is not None and row.accuracy.metric != Metric.AGREEMENT
    if agreement is None or agreement.mode != AgreementMode.ELEMENTWISE or row.evidence == Evidence.LABELS or judged:
        return None
    if agreement.high >= HALF or agreement.variance_kept is None or agreement.variance_kept >= NEAR:
        return None
    return f"agrees on {agreement.value:.0%} of the items and keeps {agreement.variance_kept:.0%} of the variance in {agreement.worst_channel}"


def _slower(row: CandidateStatus, run: TargetRun) -> str | None:
    """How much slower than the original it is, where that is more than the constraints allow and clocks differ by."""
    objective, bound, size = run.rules.objective, run.rules.constraints.speedup, run.rules.batch_size
    if objective == Objective.SIZE or run.baseline is None:
        return None
    slack = SLOWER / min(bound.min if bound is not None else 1.0, 1.0)
    if objective == Objective.THROUGHPUT:  # with several streams a single run takes longer, and there are more at once
        mine, original = (
            max((timing.items_per_second for timing in rows), default=0.0)
            for rows in (row.measurements, run.baseline.measurements)
        )
        slow = 0 < mine * slack < original
        return f"is not faster than the original ({mine:.3g} items a second against {original:.3g})" if slow else None
    latency, baseline = percentile(row, size, 50), run.baseline.p50(size)
    if latency is None or baseline is None or latency <= slack * baseline:
        return None
    return f"is not faster than the original (p50 {rounded(latency)} ms against {rounded(baseline)} ms)"


def _progress(busy: Sequence[TargetRun], asked: int) -> str:
    names = ", ".join(run.target.name for run in busy)
    count = sum(len(run.measuring) for run in busy)
    done = f"{asked - len(busy)} of {asked} targets measured; " if asked > 1 else ""
    candidates = f"measuring {count} candidate{'' if count == 1 else 's'} on {names}"
    return with_notes(done + candidates, [wait for run in busy for wait in run.waits])


def may_share_a_node(target: TargetSpec, other: TargetSpec) -> bool:
    """Whether pods of both targets may land on the same node: no label is asked for with different values."""
    common = target.node_selector.keys() & other.node_selector.keys()
    return all(target.node_selector[key] == other.node_selector[key] for key in common)


def rules_of(snapshot: RunSnapshot, plan: TargetPlan, constraints: Constraints, prepare: PrepareReport) -> Rules:
    """What the candidates of a target are judged by."""
    return Rules(
        constraints=constraints,
        objective=snapshot.spec.objective,
        batch_size=plan.target.batch_sizes[0],
        exact_only=prepare.generated and not allows_lossy(snapshot.spec),
        alpha=plan.alpha,
    )
