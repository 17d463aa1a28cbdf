"""The measuring Job: sort candidates out, certify and time the best of them, write down what was found."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fettle.api import bounds
from fettle.api.bounds import ORIGINAL, Rules
from fettle.api.memory import process_bytes
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.report import CpuClass, MeasureReport
from fettle.api.task import MeasureCandidate, MeasureTask, StoredData
from fettle.api.vocabulary import Objective
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure import artifact, incumbent, items, rows
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.cgroup import Limits, Throttling
from fettle.optimizer.measure.clock import BASELINE, Clock, Contestant, Timed, groups
from fettle.optimizer.measure.schedule import Schedule
from fettle.optimizer.measure.search import Certificate, Entrant, hold_finals, sort_out
from fettle.optimizer.measure.subject import Bench, Subject, certify, judge_original, same_as, screen
from fettle.runtimes import cpu
from fettle.store.arrays import mapped, restored
from fettle.store.store import Store

log = logging.getLogger(__name__)
LABELS = "labels"
SCREENING_ITEMS = 32


def measure(task: MeasureTask, store: Store, schedule: Schedule) -> MeasureReport:
    """Measure what `task` names on this machine. Of `schedule`, what the task says itself is replaced.

    Raises FettleError only where nothing can be said: no items, a baseline that does not run, a store that fails.
    """
    began = time.monotonic()
    machine = cpu.detect()
    with tempfile.TemporaryDirectory(prefix="fettle-measure-") as folder:
        run = _Measuring(task, store, Path(folder), machine, schedule)
        run.judge_original()
        run.screen()
        run.hold_finals()
        rows_found = run.conclude()
        return MeasureReport(
            measured_on=machine,
            baseline=rows.baseline_row(task, run.certifying.reference, run.clock.baseline),
            candidates=rows_found,
            certified=run.certified,
            distributions=run.clock.distributions(),
            throttled=run.clock.throttled,
            seconds=round(time.monotonic() - began, 3),
            notes=tuple(dict.fromkeys(run.notes)),
        )


class _Measuring:
    """One task, step by step."""

    def __init__(self, task: MeasureTask, store: Store, folder: Path, machine: CpuClass, schedule: Schedule) -> None:
        self.task, self.store, self._folder, self._machine = task, store, folder, machine
        self.notes: list[str] = []
        self.certified = 0
        self.certifying = self._bench("certifying", task.items)
        self._screening = self._bench("screening", task.screening or task.items, SCREENING_ITEMS)
        self._original = self._subject(task.baseline)
        self._subjects = [self._subject(candidate) for candidate in task.candidates]
        self._subjects += incumbent.mark(task, store, self._subjects, self._subject, self.notes)
        self._by_name = {subject.name: subject for subject in self._subjects}
        self._timed: dict[str, Timed] = {}
        self._quick: dict[str, Timed] = {}
        self._schedule = self._asked(schedule)
        self.clock = Clock(self._restart, self._schedule, Throttling(Limits.find()))
        self._rules = Rules(
            constraints=task.constraints,
            objective=task.objective,
            batch_size=self._schedule.batch_sizes[0],
            exact_only=rows.exact_only(task),
            alpha=task.alpha,
        )

    def judge_original(self) -> None:
        """Answer all items with the original; it is a candidate too where its runtime may serve."""
        itself = [subject for subject in self._subjects if self._is_original(subject)]
        judge_original(self._original, self.certifying, profile=bool(itself))
        reference = self.certifying.reference
        if reference.without_answer:
            count = f"{reference.without_answer} of {len(reference)}"
            self.notes.append(f"the original answers NaN to {count} items: look at them, or leave them out")
        judge_original(self._original, self._screening, beside=reference)
        for subject in itself:
            same_as(subject, self._original, self.certifying.reference)

    # --------------------------------------------------------------------------------------------------------- sorting out

    def screen(self) -> None:
        """Load every candidate once, hold its answers against the original's on few items, and time it for a second."""
        subjects = [subject for subject in self._subjects if not self._is_original(subject)]
        memory = {subject.name: process_bytes(subject.candidate) for subject in subjects}
        for names in groups(memory, self._original.peak_memory_bytes, Limits.find().memory_left()):
            log.info("screening %s", ", ".join(names))
            for timed in Clock(self._screened, self._schedule.quick, self.clock.throttling).group(names):
                subject = self._by_name[timed.name]
                self._quick[timed.name] = timed
                if timed.failure is not None:
                    subject.failure = timed.failure
                elif self._rules.exact_only and subject.candidate.lossy:
                    subject.finding = rows.unproved(timed)

    def _screened(self, name: str) -> Contestant:
        if name == BASELINE:
            return self._original.start(self._screening)
        bound = self.task.constraints.accuracy
        alike = self._screening.reference.metric == self.certifying.reference.metric
        proves = self.task.screening is not None and alike and bound is not None
        subject = self._by_name[name]
        return screen(subject, self._screening, bound if proves else None)

    def _entrants(self) -> list[Entrant]:
        """What may still be published, as the search sees it."""
        size = self.task.constraints.size
        return [
            Entrant(
                name=subject.name,
                lossy=subject.must_be_proved,
                bytes=subject.candidate.model.bytes,
                cost=quick.cost(self._compared(quick)),
                least_cost=min(quick.costs[self._compared(quick)]),
                small_enough=size is None or subject.candidate.model.bytes <= size.max_bytes,
                incumbent=subject.incumbent is not None,
            )
            for subject in self._subjects
            if (quick := self._quick.get(subject.name)) is not None
            and subject.failure is None
            and subject.finding is None
        ]

    # --------------------------------------------------------------------------------------------------------------- finals

    def hold_finals(self) -> None:
        """Certify and time the best, until a winner and a runner-up keep every bound."""
        field = sort_out(self._entrants(), self.task.objective)
        finals = hold_finals(field.entrants, self.task.places, self._certify, self._time)
        self.certified = finals.spent
        for name, why in (field.out | finals.out).items():
            self._by_name[name].finding = (Reason.PRUNED, why)
        if not self.clock.baseline.starts:
            self.clock.group([])
        self.notes.extend(self.clock.remarks(self.task.threads))

    def _certify(self, entrant: Entrant, may_err: bool) -> Certificate:
        subject = self._by_name[entrant.name]
        log.info("certifying %s", subject.name)
        certify(subject, self.certifying, self.task.alpha)
        judged = subject.judgement
        if subject.failure is not None or judged is None:
            return Certificate(passes=False, spent=entrant.lossy)
        if not judged.exact and not may_err:
            text = f"{judged.agreement.value:.2%} of the answers agree with the original's, and the items certify no further candidate"
            subject.finding = (Reason.NUMERICAL_MISMATCH, text)
            return Certificate(passes=False, spent=False)
        row = rows.row(self.task, subject, None)
        passes = not bounds.misses_accuracy(row, self._rules) and rows.rejection(self.task, subject, None) is None
        return Certificate(passes, spent=not judged.exact)

    def _time(self, heat: Sequence[Entrant]) -> list[str]:
        """Time finalists beside the original; the names of those that keep every bound."""
        peaks = {one.name: self._by_name[one.name].peak_memory_bytes for one in heat}
        batches = {one.name: self._compared(self._quick[one.name]) for one in heat}
        if self.task.objective == Objective.THROUGHPUT:
            for name, batch in batches.items():
                self._by_name[name].prefer(batch)
        for names in groups(peaks, self._original.peak_memory_bytes, Limits.find().memory_left()):
            log.info("timing %s beside the original", ", ".join(names))
            for timed in self.clock.group(names, batches):
                self._timed[timed.name] = timed
                self.notes.extend(timed.notes)
        found = {name: rows.row(self.task, self._by_name[name], self._timed[name]) for name in peaks}
        return [name for name, row in found.items() if row.speedup is not None and not bounds.misses(row, self._rules)]

    def _compared(self, quick: Timed) -> int:
        return quick.compared_batch(self.task.objective, self._schedule.batch_sizes[0])

    def _restart(self, name: str) -> Contestant:
        subject = self._original if name == BASELINE else self._by_name[name]
        return subject.restart(self.certifying)

    # ----------------------------------------------------------------------------------------------------------- conclusion

    def conclude(self) -> tuple[CandidateStatus, ...]:
        """The rows, in the order of the task; artifacts are written on the way."""
        alone = [subject.name for subject in self._subjects if subject.depends]
        if alone:
            told = f"an answer of {', '.join(alone)} depends on the other items of its run"
            self.notes.append(f"{told}: judged, timed and served one item at a time, whatever the batch size")
        return tuple(self._row(subject) for subject in self._subjects)

    def _row(self, subject: Subject) -> CandidateStatus:
        timed = self._timed.get(subject.name)
        if self._is_original(subject):
            row = rows.original_row(self.task, subject, self.clock.baseline)
        else:
            row = rows.row(self.task, subject, timed, self._quick.get(subject.name))
        if subject.failure is None and (timed is not None or self._is_original(subject)):
            sha256 = subject.incumbent or artifact.write(self.store, self.task, subject, self.certifying, self._machine)
            row = row.model_copy(update={"artifact": sha256})
            artifact.write_figures(self.store, self.task, row, self._machine)
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

    def _subject(self, candidate: MeasureCandidate) -> Subject:
        folder = self._folder / "models" / candidate.model.digest
        return Subject(candidate, self.store.fetch_model(candidate.model, folder))

    def _is_original(self, subject: Subject) -> bool:
        one, baseline = subject.candidate, self.task.baseline
        same_settings = one.plan.settings == baseline.plan.settings
        return one.plan.recipe == ORIGINAL and same_settings and one.model == baseline.model

    def _asked(self, schedule: Schedule) -> Schedule:
        """How long to measure. Raises RuntimeFailure where the first batch size cannot be run at all."""
        task = self.task
        sizes: Sequence[int] = tuple(dict.fromkeys(task.batch_sizes))
        if not task.signature.batchable:
            if sizes[0] != 1:
                message = f"batchSizes begins with {sizes[0]}, but no batch axis was proved for this model: use [1]"
                raise RuntimeFailure(message, reason=Reason.UNSUPPORTED_MODEL)
            if len(sizes) > 1:
                self.notes.append("no batch axis was proved for this model: only batch size 1 was measured")
            sizes = (1,)
        return replace(
            schedule,
            batch_sizes=tuple(sizes),
            percentile=task.constraints.latency.percentile if task.constraints.latency is not None else 50,
            seconds_per_candidate=task.seconds_per_candidate,
            closed_loop=task.objective == Objective.THROUGHPUT,
        )
