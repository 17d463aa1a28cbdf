"""The measuring Job: screen the candidates, evaluate and time the finalists, and report the results."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fettle.api import bounds
from fettle.api.bounds import ORIGINAL, Rules
from fettle.api.memory import process_bytes
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.report import CpuClass, MeasureReport
from fettle.api.task import BuiltCandidate, MeasureTask, StoredData
from fettle.api.text import percent, rounded
from fettle.api.vocabulary import Objective
from fettle.errors import RuntimeFailure
from fettle.optimizer import gpu_caches
from fettle.optimizer.measure import artifact, incumbent, items, one_thread, profile, rows
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.candidate import Bench, MeasuredCandidate, certify, judge_original, same_as, screen
from fettle.optimizer.measure.cgroup import Limits, Throttling
from fettle.optimizer.measure.clock import BASELINE, Clock, LoadedModel, TimedCandidate, groups
from fettle.optimizer.measure.deadline import TimeLeft
from fettle.optimizer.measure.gpu import watch
from fettle.optimizer.measure.process import WorkerProcess
from fettle.optimizer.measure.schedule import TimingSchedule
from fettle.optimizer.measure.search import Certificate, ScreenedCandidate, hold_finals, sort_out
from fettle.runtimes import machine
from fettle.store.arrays import mapped, restored
from fettle.store.cache import runtime_versions
from fettle.store.manifest import write_profile
from fettle.store.profile import FeatureProfile, Profile
from fettle.store.store import Store

log = logging.getLogger(__name__)
LABELS = "labels"
SCREENING_ITEMS = 32


def measure(task: MeasureTask, store: Store, schedule: TimingSchedule) -> MeasureReport:
    """Run `task` on this machine. Its own settings take precedence over `schedule`.

    Raises FettleError only if there can be no result: there are no items, the baseline does not run, or the store fails.
    """
    began = time.monotonic()
    runtimes = [candidate.plan.runtime for candidate in (task.baseline, *task.candidates)]
    here = machine.detect(runtimes)
    with tempfile.TemporaryDirectory(prefix="fettle-measure-") as folder:
        run = _Measuring(task, store, Path(folder), here, schedule)
        run.choose_threads()
        with run.judge_original() as worker:
            run.screen(worker)
        run.hold_finals()
        candidates = run.conclude()
        return MeasureReport(
            measured_on=here,
            libraries=runtime_versions(runtimes),
            baseline=rows.baseline_row(run.task, run.certifying.reference, run.clock.baseline),
            candidates=candidates,
            distributions=run.clock.distributions(),
            throttled=run.clock.throttled,
            seconds=round(time.monotonic() - began, 3),
            notes=tuple(dict.fromkeys(run.notes)),
        )


def _computed(candidate: MeasuredCandidate) -> tuple[str, ...]:
    plan = candidate.built.plan
    return candidate.built.model.digest, plan.runtime, plan.settings.precision


class _Measuring:
    """One task, step by step."""

    def __init__(self, task: MeasureTask, store: Store, folder: Path, here: CpuClass, schedule: TimingSchedule) -> None:
        self.task, self.store, self._folder, self._machine = task, store, folder, here
        self.notes: list[str] = []
        self.certifying = self._bench("certifying", task.items)
        self._screening = self._bench("screening", task.screening or task.items, SCREENING_ITEMS)
        self._original = self._candidate(task.baseline)
        self._candidates = [self._candidate(built) for built in task.candidates]
        published = incumbent.mark(task, store, self._candidates, self._candidate, self.notes, self.certifying.items)
        self._candidates += published
        self._by_name = {candidate.name: candidate for candidate in self._candidates}
        self._timed: dict[str, TimedCandidate] = {}
        self._quick: dict[str, TimedCandidate] = {}
        self._schedule = self._asked(schedule)
        gpu = watch(candidate.plan.runtime for candidate in (task.baseline, *task.candidates))
        self.clock = Clock(self._restart, self._schedule, Throttling(Limits.find()), gpu=gpu)
        self._rules = Rules(
            constraints=task.constraints,
            objective=task.objective,
            batch_size=self._schedule.batch_sizes[0],
            exact_only=rows.exact_only(task),
            alpha=task.alpha,
        )

    def choose_threads(self) -> None:
        """Give an original that is no candidate one thread, if it is faster so."""
        asked = self.task.baseline
        single = one_thread.with_one_thread(asked)
        if single is None or any(map(self._is_original, self._candidates)):
            return
        both = {BASELINE: self._original, one_thread.NAME: self._candidate(single)}

        def start(name: str) -> LoadedModel:
            return both[name].start(self._screening)

        gain = one_thread.gain(Clock(start, self._schedule.quick, self.clock.throttling))
        if gain < one_thread.FASTER:
            return
        self.task, self._original = self.task.model_copy(update={"baseline": single}), both[one_thread.NAME]
        threads = asked.plan.settings.threads
        self.notes.append(
            f"the original runs with one thread, because it is then {rounded(gain, 2)} times as fast as with {threads}"
        )

    def judge_original(self) -> WorkerProcess:
        """Run the original on all items. It is also a candidate if its runtime may serve."""
        as_candidates = [candidate for candidate in self._candidates if self._is_original(candidate)]
        worker = judge_original(self._original, self.certifying, self._screening, profile=bool(as_candidates))
        reference = self.certifying.reference
        if reference.without_answer:
            count = f"{reference.without_answer} of {len(reference)}"
            self.notes.append(f"the original outputs NaN for {count} items: check them, or leave them out")
        if reference.skipped is not None:
            self.notes.append(reference.skipped.told)
        for candidate in as_candidates:
            same_as(candidate, self._original, self.certifying.reference)
        return worker

    # --------------------------------------------------------------------------------------------------------- sorting out

    def screen(self, original: WorkerProcess) -> None:
        """Load every candidate once, compare its answers with the original's on a few items, and time it for a second.

        `original`: the process of the original, which is timed together with the first group and then ended.
        """
        spare = [original]

        def start(name: str) -> LoadedModel:
            return spare.pop() if name == BASELINE and spare else self._screened(name)

        candidates = [candidate for candidate in self._candidates if not self._is_original(candidate)]
        memory = {candidate.name: process_bytes(candidate.built) for candidate in candidates}
        for names in groups(memory, self._original.peak_memory_bytes, Limits.find().memory_left()):
            log.info("screening %s", ", ".join(names))
            for timed in Clock(start, self._schedule.quick, self.clock.throttling).group(names):
                candidate = self._by_name[timed.name]
                self._quick[timed.name] = timed
                if timed.failure is not None:
                    candidate.failure = timed.failure
                elif self._rules.exact_only and candidate.built.lossy:
                    candidate.rejection = rows.unproved(timed)

    def _screened(self, name: str) -> LoadedModel:
        if name == BASELINE:
            return self._original.start(self._screening)
        bound = self.task.constraints.accuracy
        alike = self._screening.reference.metric == self.certifying.reference.metric
        proves = self.task.screening is not None and alike and bound is not None and not self.task.exhaustive
        candidate = self._by_name[name]
        return screen(candidate, self._screening, bound if proves else None)

    def _screened_candidates(self) -> list[ScreenedCandidate]:
        """The candidates that may still be published, in the form that the search needs."""
        size = self.task.constraints.size
        return [
            ScreenedCandidate(
                name=candidate.name,
                lossy=candidate.must_be_proved,
                bytes=candidate.built.model.bytes,
                cost=quick.cost(self._compared(quick)),
                least_cost=min(quick.costs[self._compared(quick)]),
                small_enough=size is None or candidate.built.model.bytes <= size.max_bytes,
                incumbent=candidate.incumbent is not None,
                computed=_computed(candidate),
                doubtful=self._doubtful(candidate),
                gain=quick.best_gain(self._compared(quick)),
            )
            for candidate in self._candidates
            if (quick := self._quick.get(candidate.name)) is not None
            and candidate.failure is None
            and candidate.rejection is None
        ]

    def _doubtful(self, candidate: MeasuredCandidate) -> bool:
        """Whether it lost more than it may on the screening items, which cannot tell for sure."""
        bound, judgement = self.task.constraints.accuracy, candidate.screening_judgement
        if bound is None or judgement is None or judgement.exact or self.task.screening is None:
            return False
        return judgement.drop is not None and judgement.drop.value > bound.max_drop

    # --------------------------------------------------------------------------------------------------------------- finals

    def hold_finals(self) -> None:
        """Evaluate and time the best candidates until a winner and a runner-up satisfy every constraint."""
        # Where the original itself may serve, nobody needs what is slower; elsewhere the row says by how much the bound was missed.
        may_be_slower = self.task.constraints.speedup is not None or not any(map(self._is_original, self._candidates))
        objective, exhaustive = self.task.objective, self.task.exhaustive
        shortlist = sort_out(self._screened_candidates(), objective, may_be_slower, exhaustive)
        in_time = TimeLeft.of(os.environ).another
        finals = hold_finals(
            shortlist.candidates, self.task.places, self._certify, self._time, objective, exhaustive, in_time
        )
        for name, rejection in (shortlist.rejected | finals.rejected).items():
            self._by_name[name].rejection = (Reason.PRUNED, rejection)
        if not self.clock.baseline.starts:
            self.clock.group([])
        self.notes.extend(self.clock.remarks(self.task.threads))

    def _certify(self, screened: ScreenedCandidate, may_err: bool) -> Certificate:
        candidate = self._by_name[screened.name]
        log.info("evaluating %s on all items", candidate.name)
        certify(candidate, self.certifying, self.task.alpha)
        judgement = candidate.judgement
        if candidate.failure is not None or judgement is None:
            return Certificate(passes=False, spent=screened.lossy)
        if not judgement.exact and not may_err:
            text = (
                f"{percent(judgement.agreement.value)} of the answers agree with the original's, and there are too "
                "few evaluation items to prove the accuracy of another candidate"
            )
            candidate.rejection = (Reason.NUMERICAL_MISMATCH, text)
            return Certificate(passes=False, spent=False)
        row = rows.row(self.task, candidate, None)
        loses = bounds.misses_accuracy(row, self._rules)
        passes = not loses and rows.rejection(self.task, candidate, None) is None
        return Certificate(passes, spent=not judgement.exact, loses=loses)

    def _time(self, group: Sequence[ScreenedCandidate]) -> list[str]:
        """Time finalists together with the original; returns the names of those that satisfy every constraint."""
        peaks = {screened.name: self._by_name[screened.name].peak_memory_bytes for screened in group}
        batches = {screened.name: self._compared(self._quick[screened.name]) for screened in group}
        if self.task.objective == Objective.THROUGHPUT:
            for name, batch in batches.items():
                self._by_name[name].prefer(batch)
        for names in groups(peaks, self._original.peak_memory_bytes, Limits.find().memory_left()):
            log.info("timing %s beside the original", ", ".join(names))
            for timed in self.clock.group(names, batches):
                self._timed[timed.name] = timed
                self.notes.extend(timed.notes)
        timed_rows = {name: rows.row(self.task, self._by_name[name], self._timed[name]) for name in peaks}
        return [
            name for name, row in timed_rows.items() if row.speedup is not None and not bounds.misses(row, self._rules)
        ]

    def _compared(self, quick: TimedCandidate) -> int:
        return quick.compared_batch(self.task.objective, self._schedule.batch_sizes[0])

    def _restart(self, name: str) -> LoadedModel:
        candidate = self._original if name == BASELINE else self._by_name[name]
        return candidate.restart(self.certifying)

    # ----------------------------------------------------------------------------------------------------------- conclusion

    def conclude(self) -> tuple[CandidateStatus, ...]:
        """The rows of all candidates, in the order of the task. This also writes the artifacts."""
        alone = [candidate.name for candidate in self._candidates if candidate.depends]
        if alone:
            remark = f"an answer of {', '.join(alone)} depends on the other items in its batch"
            self.notes.append(f"{remark}: evaluated, timed and served one item at a time, whatever the batch size")
        for candidate in self._candidates:
            gpu_caches.take_kernels_back(self.store, candidate.built, candidate.entry)
        return tuple(self._row(candidate) for candidate in self._candidates)

    @cached_property
    def _input_features(self) -> tuple[FeatureProfile, ...]:
        return profile.of_items(self.certifying.items)

    def _row(self, candidate: MeasuredCandidate) -> CandidateStatus:
        timed = self._timed.get(candidate.name)
        if self._is_original(candidate):
            row = rows.original_row(self.task, candidate, self.clock.baseline)
        else:
            row = rows.row(self.task, candidate, timed, self._quick.get(candidate.name))
        if candidate.failure is None and (timed is not None or self._is_original(candidate)):
            sha256 = candidate.incumbent or artifact.write(
                self.store, self.task, candidate, self.certifying, self._machine
            )
            row = row.model_copy(update={"artifact": sha256})
            artifact.write_figures(self.store, self.task, row, self._machine)
            if candidate.answered is not None:
                made = Profile(inputs=self._input_features, outputs=candidate.answered.features())
                write_profile(self.store, sha256, made)
        log.info("%s: %s %s", row.name, row.state, row.message or "")
        return row

    # ---------------------------------------------------------------------------------------------------------- what is there

    def _bench(self, name: str, data: StoredData, most: int | None = None) -> Bench:
        task = self.task
        folder = self._folder / name
        files = items.unpack(self.store, data, folder / "items")
        labels = np.array(restored(mapped(files[LABELS])[:most])) if data.labelled else None
        inputs = {tensor.name: files[tensor.name] for tensor in task.signature.inputs if tensor.name in files}
        reference = Reference(folder / "answers", task.signature, labels, task.evaluation, task.generated, task.labels)
        return Bench(task.signature, inputs, items.opened(inputs, task.signature).first(most), reference)

    def _candidate(self, built: BuiltCandidate) -> MeasuredCandidate:
        folder = self._folder / "models" / built.model.digest
        entry = self.store.fetch_model(built.model, folder)
        gpu_caches.lend_kernels(self.store, built, entry)
        return MeasuredCandidate(built, entry)

    def _is_original(self, candidate: MeasuredCandidate) -> bool:
        built, baseline = candidate.built, self.task.baseline
        same_settings = built.plan.settings == baseline.plan.settings
        return built.plan.recipe == ORIGINAL and same_settings and built.model == baseline.model

    def _asked(self, schedule: TimingSchedule) -> TimingSchedule:
        """The timing schedule for this task. Raises RuntimeFailure if the model cannot run the first batch size."""
        task = self.task
        sizes: Sequence[int] = tuple(dict.fromkeys(task.batch_sizes))
        if not task.signature.batchable:
            if sizes[0] != 1:
                message = f"batchSizes begins with {sizes[0]}, but this model has no verified batch axis: use [1]"
                raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
            if len(sizes) > 1:
                self.notes.append("this model has no verified batch axis: only batch size 1 was measured")
            sizes = (1,)
        return replace(
            schedule,
            batch_sizes=tuple(sizes),
            percentile=task.constraints.latency.percentile if task.constraints.latency is not None else 50,
            seconds_per_candidate=task.seconds_per_candidate,
            closed_loop=task.objective == Objective.THROUGHPUT,
        )
