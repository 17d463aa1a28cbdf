"""A model that is being measured: what is known about it so far, and the passes over the items."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fettle.api.bounds import exceeds, span
from fettle.api.constraints import AccuracyConstraint
from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.api.task import BuiltCandidate
from fettle.api.vocabulary import Precision
from fettle.errors import FettleError, RuntimeFailure
from fettle.optimizer.measure import items as item
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.judgement import Judgement
from fettle.optimizer.measure.neighbours import depends
from fettle.optimizer.measure.process import WorkerProcess
from fettle.optimizer.measure.profile import noting
from fettle.optimizer.measure.protocol import Judge, Load, RunItems
from fettle.optimizer.measure.tally import difference
from fettle.runtimes.base import Array
from fettle.store.manifest import REFERENCE_ITEMS
from fettle.store.profile import Distribution

log = logging.getLogger(__name__)
SLOW_SECONDS = 0.5  # a reference that takes longer is not run again at every start of the clock
SCREEN_ALPHA = 0.05
Rejection = tuple[Reason, str]


class Pruned(RuntimeFailure):
    """The candidate was rejected in the screening: it works, but it loses too much, or others are better."""

    default_reason = Reason.PRUNED


@dataclass(frozen=True)
class Bench:
    """What all models are measured with: the signature, the items (as files and memory-mapped arrays), and the original's answers."""

    signature: Signature
    files: Mapping[str, Path]
    items: item.MappedItems
    reference: Reference


@dataclass
class MeasuredCandidate:
    """A model, its files on this machine, and what is known about it. A `failure` ends its measurement; earlier results are kept.

    `screening_judgement` is from the screening items, `judgement` from the evaluation items. `rejection`: why it was not measured further.
    """

    built: BuiltCandidate
    entry: Path
    incumbent: str | None = None  # digest of its artifact, where it is what is published now
    served_alone: bool = False  # as that artifact's manifest says
    failure: FettleError | None = None
    rejection: Rejection | None = None
    screening_judgement: Judgement | None = None
    judgement: Judgement | None = None
    executed: Executed | None = None
    peak_memory_bytes: int = 0
    outputs: dict[str, Array] | None = None  # of the reference feed
    reference_seconds: float = 0.0
    deviations: dict[str, float] = field(default_factory=dict)  # by output: worst between starts, or one item and many
    depends: bool = False  # an answer was seen to change with the other items of its run
    proved: bool = False  # its runtime was seen to keep its promises on this model
    answered: Distribution | None = None  # its answers to the certifying items

    @property
    def name(self) -> str:
        """The candidate's name."""
        return self.built.plan.name

    @property
    def must_be_proved(self) -> bool:
        """Whether its accuracy has to be proved: a step is lossy, or its answers differed in the screening."""
        return self.built.lossy or (self.screening_judgement is not None and not self.screening_judgement.exact)

    @property
    def alone(self) -> bool:
        """Whether each item is evaluated, timed and served in a run of its own, because other items in the batch change its answer.

        Either this was observed, or it is known: dynamic quantization takes its ranges over the whole tensor, whatever the items show.
        """
        return self.depends or any(step.dynamic for step in self.built.steps)

    @property
    def rounded(self) -> bool:
        """Whether any part of it computes with less precision than float32."""
        return (
            self.built.lossy
            or self.built.plan.settings.precision != Precision.FLOAT32
            or (self.executed is not None and self.executed.rounds)
        )

    def prefer(self, batch: int) -> None:
        """Set the best number of items per run in its settings. A published artifact already has this setting."""
        if self.incumbent is None:
            batch = 1 if self.alone else batch
            settings = self.built.plan.settings.model_copy(update={"preferred_batch": batch})
            plan = self.built.plan.model_copy(update={"settings": settings})
            self.built = self.built.model_copy(update={"plan": plan})

    def start(self, bench: Bench) -> WorkerProcess:
        """A new process that has loaded this model. Raises RuntimeFailure."""
        plan = self.built.plan
        worker = WorkerProcess(self.name)
        try:
            worker.load(Load(self.entry, plan.runtime, plan.settings, bench.signature, bench.files, not self.proved))
            self.proved = True
            worker.alone = self.alone and bench.signature.batchable
        except BaseException:
            worker.close()
            raise
        return worker

    def restart(self, bench: Bench) -> WorkerProcess:
        """Like `start`, and also run the reference items again to see whether their outputs are the same."""
        worker = self.start(bench)
        if self.outputs is not None and self.reference_seconds < SLOW_SECONDS:
            try:
                self.compare(worker.run(RunItems(self.reference_items(bench))), self.outputs)
            except BaseException:
                worker.close()
                raise
        return worker

    def reference_items(self, bench: Bench) -> tuple[int, ...]:
        """The reference items: one run's worth, at most 8."""
        fixed = self.built.plan.settings.batch_size
        if self.alone and bench.signature.batchable:
            return (0,) * (fixed or 1)
        size = min(REFERENCE_ITEMS, len(bench.items))
        if not bench.signature.batchable:
            size = 1
        elif fixed is not None:
            size = fixed
        return tuple(index % len(bench.items) for index in range(size))

    def compare(self, answers: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        """Record the difference between two outputs for the same items."""
        for name, array in expected.items():
            apart = difference(array, answers[name])
            self.deviations[name] = max(self.deviations.get(name, 0.0), apart)

    def look_at_neighbours(self, worker: WorkerProcess, bench: Bench) -> None:
        """Check whether its answers depend on the other items in a run. If so, it is evaluated, timed and served item by item.

        Raises RuntimeFailure. If a published artifact serves such a model in batches, it is not the model that is measured here.
        """
        if bench.signature.batchable and not self.alone:
            same = None if self.rounded else bench.reference.alike
            fixed = self.built.plan.settings.batch_size
            room = item.batch_size(bench.items, None, alone=False)
            self.depends = depends(worker.answers, len(bench.items), fixed, same, room)
            if self.depends:
                log.info("%s: an answer depends on the other items in its batch; it runs one item at a time", self.name)
        worker.alone = self.alone and bench.signature.batchable
        if worker.alone and not self.served_alone:
            self.incumbent = None

    def answers(self, worker: WorkerProcess, bench: Bench) -> Iterator[item.Answer]:
        """Its answers to every item, in order, a batch at a time."""
        fixed = self.built.plan.settings.batch_size
        size = item.batch_size(bench.items, fixed, self.alone)
        logged_at = time.monotonic()
        for batch in bench.items.batches(size):
            yield from worker.answers(Judge(tuple(batch), size))
            if time.monotonic() - logged_at > 10:
                logged_at = time.monotonic()
                log.info("%s: %d of %d items evaluated", self.name, batch[-1] + 1, len(bench.items))

    def examine(self, worker: WorkerProcess, bench: Bench, profile: bool = True) -> None:
        """Determine everything besides accuracy: the executed precision, the reference outputs, and whether answers depend on the batch."""
        if profile:
            self.executed = worker.executed()
        indices = self.reference_items(bench)
        began = time.monotonic()
        self.outputs = worker.run(RunItems(indices))
        self.reference_seconds = time.monotonic() - began
        if len(indices) > 1 and self.built.plan.settings.batch_size is None:
            together = item.split(bench.signature, self.outputs, len(indices)) or []
            for index, answer in zip(indices, together, strict=False):
                self.compare(worker.answers(Judge((index,)))[0], answer)
        self.peak_memory_bytes = worker.peak_memory()


def judge_original(
    candidate: MeasuredCandidate, bench: Bench, screening: Bench, profile: bool = False
) -> WorkerProcess:
    """Run the original on every item, the screening items last. Its process is used again in the timing pre-test.

    `profile`: also determine its executed precision. Raises FettleError, because nothing can be measured without the original.
    """
    worker = candidate.start(bench)
    try:
        candidate.answered = _answer_all(candidate, worker, bench)
        bench.reference.finish()
        log.info("%s", bench.reference.summary())
        candidate.examine(worker, bench, profile)
        worker.map_items(screening.files)
        _answer_all(candidate, worker, screening)
        screening.reference.finish_beside(bench.reference)
    except BaseException:
        worker.close()
        raise
    return worker


def _answer_all(original: MeasuredCandidate, worker: WorkerProcess, bench: Bench) -> Distribution:
    """Keep the original's answers to every item of `bench`; returns their distribution."""
    chunk: list[item.Answer] = []
    original.look_at_neighbours(worker, bench)
    seen = Distribution(bench.signature.outputs)
    for answer in noting(original.answers(worker, bench), seen):
        chunk.append(answer)
        if len(chunk) >= item.LARGEST_BATCH or item.size_of(chunk) >= item.FEED_BYTES:
            bench.reference.add(chunk)
            chunk = []
    if chunk:
        bench.reference.add(chunk)
    return seen


def screen(candidate: MeasuredCandidate, bench: Bench, bound: AccuracyConstraint | None) -> WorkerProcess:
    """Load a candidate and run it on the screening items. Its process is used again in the timing pre-test.

    Raises RuntimeFailure if it does not load or run, and Pruned if even the favourable end of its drop, or of its changed answers, exceeds
    `bound` (None: the screening items cannot tell).
    """
    worker = candidate.start(bench)
    try:
        candidate.look_at_neighbours(worker, bench)
        answers = candidate.answers(worker, bench)
        candidate.screening_judgement = judgement = bench.reference.judge(answers, candidate.built.lossy, SCREEN_ALPHA)
        metric = judgement.accuracy.metric
        too_much = None if judgement.exact else exceeds(judgement.drop, judgement.changed, bound, metric)
        if too_much is not None:
            candidate.judgement = judgement
            gone = f"; {judgement.gone}" if judgement.gone is not None else ""
            raise Pruned(f"on {judgement.samples} screening items {too_much}{gone}")
    except BaseException:
        worker.close()
        raise
    return worker


def certify(candidate: MeasuredCandidate, bench: Bench, alpha: float) -> None:
    """Run a finalist on every evaluation item and compare. An error is recorded as its failure."""
    began = time.monotonic()
    try:
        with candidate.start(bench) as worker:
            candidate.look_at_neighbours(worker, bench)
            candidate.answered = Distribution(bench.signature.outputs)
            answers = noting(candidate.answers(worker, bench), candidate.answered)
            candidate.judgement = bench.reference.judge(answers, candidate.built.lossy, alpha)
            candidate.examine(worker, bench)
    except FettleError as error:
        candidate.failure = error
        log.info("%s: %s: %s", candidate.name, error.reason, error.message)
        return
    judgement = candidate.judgement
    log.info(
        "%s: %s %.4g%s, drop %s, agreement %.4g, %.1f s",
        candidate.name,
        judgement.accuracy.metric,
        judgement.accuracy.value,
        f" ({judgement.details})" if judgement.details else "",
        "unknown" if judgement.drop is None else span(judgement.drop),
        judgement.agreement.value,
        time.monotonic() - began,
    )


def same_as(candidate: MeasuredCandidate, original: MeasuredCandidate, reference: Reference) -> None:
    """Copy the results of the original, which was already evaluated, to the original as a candidate."""
    candidate.executed, candidate.outputs = original.executed, original.outputs
    candidate.peak_memory_bytes, candidate.reference_seconds = original.peak_memory_bytes, original.reference_seconds
    candidate.deviations, candidate.depends = original.deviations, original.depends
    candidate.proved, candidate.answered = original.proved, original.answered
    candidate.judgement = reference.itself()


def scale(outputs: Mapping[str, Array], name: str) -> float:
    """The largest finite magnitude in an output; 0 if there is none."""
    values = np.abs(outputs[name].astype(np.float64))
    return float(np.max(values, where=np.isfinite(values), initial=0.0))
