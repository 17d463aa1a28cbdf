"""The measuring Job: judge every candidate, then time those that answered, then write down what was found."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.report import CpuClass, MeasureReport
from fettle.api.task import MeasureCandidate, MeasureTask
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure import artifact, items, rows
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.cgroup import Limits, Throttling
from fettle.optimizer.measure.clock import BASELINE, Clock, Contestant, Schedule, Timed, groups
from fettle.optimizer.measure.subject import Bench, Subject, judge_candidate, judge_original, same_as
from fettle.runtimes import cpu
from fettle.store.store import Store, restored

log = logging.getLogger(__name__)
LABELS = "labels"
DISTURBED_SHARE = 0.1  # of all runs: worth a word to a person


def measure(task: MeasureTask, store: Store) -> MeasureReport:
    """Measure what `task` names on this machine.

    Raises FettleError only where nothing can be said: no items, a baseline that does not run, a store that fails.
    """
    began = time.monotonic()
    machine = cpu.detect()
    with tempfile.TemporaryDirectory(prefix="fettle-measure-") as folder:
        run = _Measuring(task, store, Path(folder), machine)
        run.judge()
        run.time()
        rows_found = run.conclude()
        return MeasureReport(
            measured_on=machine,
            baseline=rows.baseline_row(task, run.reference, run.clock.baseline),
            candidates=rows_found,
            throttled=run.clock.throttled,
            seconds=round(time.monotonic() - began, 3),
            notes=tuple(run.notes),
        )


class _Measuring:
    """One task, step by step."""

    def __init__(self, task: MeasureTask, store: Store, folder: Path, machine: CpuClass) -> None:
        self.task, self.store, self._folder, self._machine = task, store, folder, machine
        files = items.unpack(store, task.items, folder / "items")
        labels = restored(np.load(files[LABELS], allow_pickle=False)) if task.items.labelled else None
        inputs = {tensor.name: files[tensor.name] for tensor in task.signature.inputs if tensor.name in files}
        self._bench = Bench(task.signature, inputs, items.opened(inputs, task.signature))
        self.reference = Reference(folder / "answers", task.signature, labels, task.evaluation, task.generated)
        self._original = self._subject(task.baseline)
        self._subjects = [self._subject(candidate) for candidate in task.candidates]
        self._timed: dict[str, Timed] = {}
        self.notes: list[str] = []
        self.clock = Clock(self._start, self._schedule(), Throttling(Limits.find()))

    def judge(self) -> None:
        """Answer all items with the original, then with each candidate."""
        itself = [subject for subject in self._subjects if self._is_original(subject)]
        judge_original(self._original, self.reference, self._bench, profile=bool(itself))
        if self.reference.without_answer:
            count = f"{self.reference.without_answer} of {len(self.reference)}"
            self.notes.append(f"the original answers NaN to {count} items: look at them, or leave them out")
        for number, subject in enumerate(self._subjects, 1):
            log.info("judging %s (%d of %d)", subject.name, number, len(self._subjects))
            if subject in itself:
                same_as(subject, self._original, self.reference)
            else:
                judge_candidate(subject, self.reference, self._bench, self.task.alpha)

    def time(self) -> None:
        """Time every candidate that answered, a few at once beside the original."""
        peaks = {
            subject.name: subject.peak_memory_bytes
            for subject in self._subjects
            if subject.failure is None and not self._is_original(subject)
        }
        left = Limits.find().memory_left()
        for names in groups(peaks, self._original.peak_memory_bytes, left) or [[]]:
            log.info("timing %s beside the original", ", ".join(names) or "nothing")
            for timed in self.clock.group(names):
                self._timed[timed.name] = timed
                self.notes.extend(timed.notes)
        self.notes.extend(self.clock.baseline.notes)
        if self.clock.disturbed > DISTURBED_SHARE * self.clock.runs:
            share = self.clock.disturbed / self.clock.runs
            counted = (
                "that time was taken off"
                if self.task.threads == 1
                else "measure on a quieter node for narrower intervals"
            )
            self.notes.append(f"other work on this node held the processor during {share:.0%} of the runs; {counted}")
        if self.clock.throttled:
            self.notes.append(
                "the CPU quota held the processor back; blocks that it hit were repeated where time allowed"
            )

    def conclude(self) -> tuple[CandidateStatus, ...]:
        """The rows, in the order of the task; artifacts are written on the way."""
        return tuple(self._row(subject) for subject in self._subjects)

    def _row(self, subject: Subject) -> CandidateStatus:
        if self._is_original(subject):
            row = rows.original_row(self.task, subject, self.clock.baseline)
        else:
            row = rows.row(self.task, subject, self._timed.get(subject.name))
        if subject.failure is None and row.measurements:
            rules = self.reference.comparisons
            sha256 = artifact.write(self.store, self.task, subject, self._bench, self._machine, rules)
            row = row.model_copy(update={"artifact": sha256})
            artifact.write_figures(self.store, self.task, row, self._machine)
        log.info("%s: %s %s", row.name, row.state, row.reason or "")
        return row

    def _subject(self, candidate: MeasureCandidate) -> Subject:
        folder = self._folder / "models" / candidate.model.digest
        return Subject(candidate, self.store.fetch_model(candidate.model, folder))

    def _is_original(self, subject: Subject) -> bool:
        same_plan = subject.candidate.plan.settings == self.task.baseline.plan.settings
        return subject.candidate.plan.untouched and same_plan and subject.candidate.model == self.task.baseline.model

    def _start(self, name: str) -> Contestant:
        if name == BASELINE:
            return self._original.restart(self._bench)
        return next(subject for subject in self._subjects if subject.name == name).restart(self._bench)

    def _schedule(self) -> Schedule:
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
        return Schedule(
            batch_sizes=tuple(sizes),
            percentile=task.percentile or 50,
            seconds_per_candidate=task.seconds_per_candidate,
        )
