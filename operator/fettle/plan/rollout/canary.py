"""The canary and its steps: its position, whether it may advance, and whether it failed.

A weight step is done when its weight is reached, by pods and by routes. A pause begins when the step before it is done. Before the weight
increases, and before the promotion, the analysis must have found one whole window good at the current weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fettle.api.modeldeployment import OnFailure, RolloutStep
from fettle.api.modeldeployment_status import AnalysisStatus, CanaryStatus, Verdict
from fettle.api.reasons import Reason
from fettle.api.text import counted
from fettle.plan import timestamps
from fettle.plan.commands import Command
from fettle.plan.events import EventDraft
from fettle.plan.rollout import analysis
from fettle.plan.rollout.commands import Orders
from fettle.plan.rollout.ledger import Exit
from fettle.plan.rollout.providers import demand as demand_of
from fettle.plan.rollout.providers import provider
from fettle.plan.rollout.providers.base import Demand
from fettle.plan.rollout.state import RolloutSnapshot, Workload, out_of_traffic
from fettle.plan.rollout.transition import CanaryDecision, Wait
from fettle.plan.rollout.window_totals import NOTHING, Observation

STRAIGHT = (RolloutStep(weight=100),)


def steps_of(snapshot: RolloutSnapshot) -> tuple[RolloutStep, ...]:
    """The steps of the spec; a single step to weight 100 if there are none."""
    return snapshot.spec.rollout.steps or STRAIGHT


def asked_weight(steps: tuple[RolloutStep, ...], step: int) -> int:
    """The weight that a step requests: its own, or for a pause that of the last weight step before it; 100 after the last step."""
    if step >= len(steps):
        return 100
    weights = (earlier.weight for earlier in reversed(steps[: step + 1]))
    return next((weight for weight in weights if weight is not None), 0)


def place(steps: tuple[RolloutStep, ...], step: int) -> str:
    """'step 2 (weight 67)', numbered as in status.canary.step; 'promotion' after the last step."""
    if step >= len(steps):
        return "promotion"
    return f"step {step} ({'pause' if steps[step].pause is not None else f'weight {steps[step].weight}'})"


def promoting(steps: tuple[RolloutStep, ...], step: int) -> bool:
    """Whether only the promotion follows `step`. Then the stable revision keeps its pods until it is replaced."""
    return step >= len(steps) - 1 and not (step < len(steps) and steps[step].pause is not None)


def resume(snapshot: RolloutSnapshot, revision: str, artifact: str) -> CanaryStatus:
    """The canary from the status, or at its first step if it is new or its status was lost."""
    before = snapshot.status.canary
    now = timestamps.write(snapshot.now)
    if before is not None and before.revision == revision:
        return _not_ahead(before, now)
    starts = now if steps_of(snapshot)[0].pause is not None else ""
    return CanaryStatus(revision=revision, artifact=artifact, started_at=now, step_started_at=starts, progressed_at=now)


def _not_ahead(canary: CanaryStatus, now: str) -> CanaryStatus:
    """The canary without times in the future (the clock was set back, or another node's was fast): they are replaced by now."""
    times = ("started_at", "step_started_at", "progressed_at")
    ahead: dict[str, object] = {name: now for name in times if getattr(canary, name) > now}
    if canary.analysis is not None and canary.analysis.window_start > now:
        ahead["analysis"] = canary.analysis.model_copy(update={"window_start": now})
    return canary.model_copy(update=ahead)


@dataclass(frozen=True)
class _Runner:
    """One pass over the canary's steps. `held`: why no step is taken; `blocked`: the pods of a previous canary must leave first."""

    snapshot: RolloutSnapshot
    steps: tuple[RolloutStep, ...]
    demand: Demand  # of whatever weight
    workload: Workload
    held: Wait | None
    blocked: bool
    doubt: Reason | None = None  # why the window is inconclusive

    @property
    def now(self) -> datetime:
        return self.snapshot.now

    def advance(self, canary: CanaryStatus, promote: bool) -> CanaryDecision:
        """Take as many steps as are possible now. `promote` ends one wait, unless it is for a weight to be reached."""
        events: list[EventDraft] = []
        ordered, last = promote, canary
        while canary.step < len(self.steps):
            step = self.steps[canary.step]
            if (doubt := self._failing(canary)) is not None and not promote:
                return CanaryDecision(canary, doubt, events=tuple(events))
            if step.weight is not None and (not canary.step_started_at or canary.weight != step.weight):
                if (pending := self._pending(canary, step.weight)) is not None:
                    canary = self._forgive(canary) if promote else canary
                    return CanaryDecision(canary, pending, events=tuple(events))
                canary = self._reach(canary, step.weight)
                events.append(self._event(canary, Reason.CANARY_RUNNING, self._reached(canary, step.weight)))
            wait = doubt or self._wait(canary, step)
            if wait is not None and not promote:
                return CanaryDecision(canary, wait, events=tuple(events))
            if wait is not None:
                promote = False
                canary = self._forgive(canary)
            last, canary = canary, self._next(canary)
        if self.snapshot.spec.replicas and self._pending(canary, 100) is not None:
            # The last window before the promotion must be good, however long that takes.
            canary = canary if ordered else last
            return CanaryDecision(canary, self._pending(canary, 100), events=tuple(events))
        return CanaryDecision(canary, promoted=True, events=tuple(events))

    def _pending(self, canary: CanaryStatus, weight: int) -> Wait | None:
        """What has to happen before `weight` is reached; None if it is reached."""
        missing = provider(self.snapshot).pending(replace(self.demand, weight=weight))
        kept_out = self.blocked and weight
        if missing is None and not kept_out:
            return None
        if not self.snapshot.spec.replicas:
            return Wait(Reason.CANARY_RUNNING, "scaled to 0: the rollout continues when replicas is raised", hold=True)
        if missing is None or kept_out:
            return Wait(Reason.CANARY_RUNNING, "waiting for the pods of the previous canary to terminate")
        if self.workload.out:  # somebody inspects a pod, for as long as that takes
            text = f"{place(self.steps, canary.step)}: {missing}, {out_of_traffic(self.workload.out)}"
            return Wait(Reason.PAUSED_BY_USER, text, hold=True)
        deadline = timedelta(seconds=self.snapshot.spec.rollout.progress_deadline_seconds)
        until = (timestamps.read(canary.progressed_at) or self.now) + deadline
        fault = f": {self.workload.fault.message}" if self.workload.fault else ""
        reason = Reason.PROMOTING if weight >= 100 else Reason.CANARY_RUNNING
        text = f"{place(self.steps, canary.step)}: {missing}{fault}"
        return Wait(reason, text, pending=True, until=until)

    def _reach(self, canary: CanaryStatus, weight: int) -> CanaryStatus:
        watched = analysis.begin(self.now, canary.analysis) if self.snapshot.spec.rollout.analysis else None
        changed = {"weight": weight, "step_started_at": timestamps.write(self.now), "analysis": watched}
        return canary.model_copy(update=changed)

    def _reached(self, canary: CanaryStatus, weight: int) -> str:
        """What an Event says of a weight that took effect. At the last one, stable pods still take traffic until the promotion."""
        if weight < 100 or canary.step + 1 < len(self.steps):
            return f"reached weight {weight}"
        after = "; it is promoted after one good window" if self.snapshot.spec.rollout.analysis else ""
        return f"is scaled to full size{after}"

    def _next(self, canary: CanaryStatus) -> CanaryStatus:
        step = canary.step + 1
        pause = step < len(self.steps) and self.steps[step].pause is not None
        starts = timestamps.write(self.now) if pause else ""
        return canary.model_copy(
            update={"step": step, "step_started_at": starts, "progressed_at": timestamps.write(self.now)}
        )

    def _forgive(self, canary: CanaryStatus) -> CanaryStatus:
        """Bad windows no longer count once a person has promoted the canary in spite of them."""
        watched = canary.analysis
        if watched is None or not watched.consecutive:
            return canary
        forgiven = analysis.begin(self.now, watched).model_copy(update={"consecutive": 0})
        return canary.model_copy(update={"analysis": forgiven})

    def _failing(self, canary: CanaryStatus) -> Wait | None:
        """A failed analysis that only pauses the rollout (onFailure: Pause)."""
        spec = self.snapshot.spec.rollout.analysis
        if spec is None or canary.analysis is None or canary.analysis.consecutive < spec.failure_limit:
            return None
        return Wait(Reason.ANALYSIS_FAILED, f"{canary.analysis.message}; run promote or abort", hold=True)

    def _wait(self, canary: CanaryStatus, step: RolloutStep) -> Wait | None:
        where = place(self.steps, canary.step)
        if step.pause is not None:
            if step.pause.seconds is None:
                return Wait(Reason.WAITING_FOR_PROMOTE, f"{where}: waiting for promote or abort", hold=True)
            ends = (timestamps.read(canary.step_started_at) or self.now) + timedelta(seconds=step.pause.seconds)
            if self.now < ends:
                return Wait(Reason.CANARY_RUNNING, f"{where}: paused until {timestamps.write(ends)}", until=ends)
        following = canary.step + 1
        if following < len(self.steps) and self.steps[following].pause is not None:
            return None
        return self._gate(canary, where)

    def _gate(self, canary: CanaryStatus, where: str) -> Wait | None:
        """What the analysis still needs before the weight may increase; None if it is satisfied or there is no traffic to judge."""
        watched = canary.analysis
        if watched is None or not canary.weight or watched.verdict is Verdict.GOOD:
            return None
        text = f"{where}: analysis {watched.verdict.value}" + (f": {watched.message}" if watched.message else "")
        if watched.verdict is Verdict.INCONCLUSIVE:
            return Wait(
                self.doubt or Reason.ANALYSIS_INCONCLUSIVE, f"{text}; run promote to continue without it", hold=True
            )
        return Wait(Reason.CANARY_RUNNING, text)

    def _event(self, canary: CanaryStatus, reason: Reason, text: str) -> EventDraft:
        return EventDraft("Normal", reason, f"canary {canary.revision} {text}", canary.started_at)


def look(
    snapshot: RolloutSnapshot, canary: CanaryStatus, orders: Orders, *, stable: str, held: Wait | None, blocked: bool
) -> CanaryDecision:
    """Judge the canary's traffic, follow commands, and take the steps that are possible now."""
    revision = canary.revision
    if orders.has(Command.ABORT, revision):
        return CanaryDecision(canary, exit=Exit(Reason.ABORTED, "aborted by the command abort"))
    workload = snapshot.workload(revision)
    if workload.fault is not None and workload.fault.final:
        return CanaryDecision(canary, exit=Exit(workload.fault.reason, workload.fault.message))
    watched, doubt = _watch(snapshot, canary, stable)
    canary = canary.model_copy(update={"analysis": watched})
    if (bad := _failed_analysis(snapshot, watched)) is not None:
        return CanaryDecision(canary, exit=bad)
    if held is not None:
        return CanaryDecision(canary, wait=held)
    steps = steps_of(snapshot)
    canary = _on_these_steps(snapshot, steps, canary)
    if orders.has(Command.PROMOTE_FULL, revision):
        canary = canary.model_copy(update={"step": len(steps), "step_started_at": ""})
    demand = replace(demand_of(snapshot, stable), canary=workload)
    runner = _Runner(snapshot, steps, demand, workload, held, blocked, doubt)
    return runner.advance(canary, orders.has(Command.PROMOTE, revision))


def _on_these_steps(snapshot: RolloutSnapshot, steps: tuple[RolloutStep, ...], canary: CanaryStatus) -> CanaryStatus:
    """Adapt to edited steps: an index beyond the last step means the last one, and a pause without a start time starts now."""
    edited = snapshot.status.observed_generation != snapshot.generation
    if canary.step > len(steps) or (canary.step == len(steps) and edited):
        canary = canary.model_copy(update={"step": len(steps) - 1, "step_started_at": ""})
    if canary.step < len(steps) and steps[canary.step].pause is not None and not canary.step_started_at:
        canary = canary.model_copy(update={"step_started_at": timestamps.write(snapshot.now)})
    return canary


def _watch(snapshot: RolloutSnapshot, canary: CanaryStatus, stable: str) -> tuple[AnalysisStatus | None, Reason | None]:
    """The analysis after this pass. It begins when the canary's first ready pod gets traffic."""
    spec = snapshot.spec.rollout.analysis
    if spec is None:
        return None, None
    if canary.analysis is None:
        serves = snapshot.workload(canary.revision).ready > 0 and snapshot.routed(canary.revision)
        return (analysis.begin(snapshot.now) if serves else None), None
    if canary.analysis.consecutive >= spec.failure_limit:
        return canary.analysis, None
    windows: Mapping[str, Observation] = snapshot.windows
    serves = snapshot.workload(stable).replicas > 0 and snapshot.routed(stable)
    compared = windows.get(stable, NOTHING) if serves else None
    mine = windows.get(canary.revision, NOTHING)
    judged = analysis.judge(spec, canary.analysis, mine, compared, snapshot.now, weight=canary.weight)
    return judged.status, judged.reason


def _failed_analysis(snapshot: RolloutSnapshot, watched: AnalysisStatus | None) -> Exit | None:
    spec = snapshot.spec.rollout
    if watched is None or spec.analysis is None or spec.on_failure is not OnFailure.ROLLBACK:
        return None
    if watched.consecutive < spec.analysis.failure_limit:
        return None
    return Exit(Reason.ANALYSIS_FAILED, f"{watched.message}; {counted(watched.consecutive, 'bad window')} in a row")


def late(decision: CanaryDecision, snapshot: RolloutSnapshot, *, progressed: bool) -> CanaryDecision:
    """`decision`, or its failure if the weight was not reached within the progress deadline and this pass made no progress either."""
    wait = decision.wait
    if progressed or wait is None or not wait.pending or wait.until is None or snapshot.now < wait.until:
        return decision
    seconds = snapshot.spec.rollout.progress_deadline_seconds
    return replace(
        decision, wait=None, exit=Exit(Reason.PROGRESS_DEADLINE_EXCEEDED, f"no progress in {seconds} s: {wait.message}")
    )
