"""The accuracy drop of a candidate: its answers compared with the original's, and both with the labels, item by item and without keeping all."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from fettle.api import metrics
from fettle.api.data import AgreementSpec, EvaluationSpec
from fettle.api.labels import LabelForm, LabelReading
from fettle.api.measured import AgreementStatus, Flips, Interval, MetricValue, worth
from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.api.vocabulary import AgreementMode, Evidence, Metric, UnsureItems
from fettle.errors import DataError, RuntimeFailure
from fettle.optimizer.measure.agreement import OutputProfile, comparisons, item_axis, own_tolerance
from fettle.optimizer.measure.chance import FEWEST, Chance, refuse_chance
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.judgement import Judgement
from fettle.optimizer.measure.metrics import Changes, OtherDecisions, Scores, ScoringRule, drop, flips
from fettle.optimizer.measure.one_answer import enough_for_all
from fettle.optimizer.measure.remains import Remains
from fettle.optimizer.measure.sureness import Sureness
from fettle.optimizer.measure.tally import Tally, fits, valid
from fettle.optimizer.measure.tasks import METRICS
from fettle.optimizer.measure.tasks.base import TaskMetric, examples_of
from fettle.optimizer.measure.tasks.judging import TaskReference, TaskVerdict
from fettle.optimizer.measure.unsure import Skipped, skipped
from fettle.optimizer.statistics import agreement_interval
from fettle.runtimes.base import Array
from fettle.store.comparison import Comparison, agreeing, decisions, has_nan

MOST_PLACE = 253  # characters of a channel's name in status


class Reference:
    """The original's answers to every item, kept on disk batch by batch, and what follows from them."""

    def __init__(
        self,
        folder: Path,
        signature: Signature,
        labels: Array | None,
        evaluation: EvaluationSpec | None,
        generated: bool,
        reading: LabelReading | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: list[Path] = []
        self._count = 0
        self.without_answer = 0  # items to which the original itself answers NaN
        self._labels, self._reading = labels, reading
        self._signature = signature
        self._outputs = {tensor.name: tensor for tensor in signature.outputs}
        spec = evaluation.agreement if evaluation is not None else AgreementSpec()
        self._spec, self._evaluation = spec, evaluation
        self.profiles = {
            name: OutputProfile(axis=item_axis(tensor, spec.axis)) for name, tensor in self._outputs.items()
        }
        self.metric = evaluation.metric if evaluation is not None else Metric.AGREEMENT
        if labels is None and self.metric not in METRICS:
            self.metric = Metric.AGREEMENT
        labelled = labels is not None and self.metric != Metric.AGREEMENT
        if reading is None and labelled:
            raise DataError(
                "the data was prepared by an earlier version of Fettle, which did not record how labels are "
                "interpreted: change the spec to prepare it again"
            )
        self.evidence = Evidence.GENERATED if generated else Evidence.LABELS if labelled else Evidence.AGREEMENT
        self.output = signature.judged_output(evaluation.output if evaluation is not None else None)
        self.task: TaskReference | None = None
        self.scores: Scores | None = None
        self.chance: Chance | None = None  # what knowing nothing is worth; with `scores`
        self.no_evidence: str | None = None  # why its answers prove nothing of a lossy candidate
        self.comparisons: dict[str, Comparison] = {}
        self.skipped: Skipped | None = None  # the items on which the original is unsure; None if every item counts

    def __len__(self) -> int:
        return self._count

    def add(self, answers: list[Answer]) -> None:
        """Keep the original's answers to the next items. Raises RuntimeFailure if they do not fit the signature."""
        for answer in answers:
            for name, tensor in self._outputs.items():
                if not fits(tensor, answer[name]):
                    message = f"the original's output {name} has shape {list(answer[name].shape)} per item, its signature says {list(tensor.shape)}"
                    raise RuntimeFailure(message, reason=Reason.OUTPUTS_INVALID)
                self.profiles[name].add(answer[name])
            self.without_answer += any(has_nan(answer[name]) for name in self._outputs)
        path = self._folder / f"{len(self._files)}.pickle"
        path.write_bytes(pickle.dumps(answers, protocol=5))
        self._files.append(path)
        self._count += len(answers)

    def finish_beside(self, other: Reference) -> None:
        """Finish after the last item, with the comparison rules of `other`, which has more items; use the labels if there are enough."""
        self.profiles, self.comparisons, self.skipped = other.profiles, other.comparisons, other.skipped
        try:
            self._score(other.task.metric if other.task is not None else None)
            finite = self.scores is None or math.isfinite(self.scores.value())
        except DataError:
            finite = False
        if not finite:
            self.scores, self.task, self.metric = None, None, Metric.AGREEMENT

    def finish(self) -> None:
        """Finish after the last item: decide how answers are compared, and judge the original itself.

        Raises DataError if the original is no better than a constant predictor, and RuntimeFailure (OutputsInvalid) if it outputs NaN for
        every item.
        """
        if self._count and self.without_answer == self._count:
            message = f"the original outputs NaN for all {self._count} items: check its weights and the items"
            raise RuntimeFailure(message, reason=Reason.OUTPUTS_INVALID)
        self.comparisons = comparisons(self.profiles, self._spec, self._classified())
        self._score()
        if self._spec.unsure is UnsureItems.SKIP:
            self.skipped = skipped(self.comparisons, self.profiles, self.answers, self._by_label)
        if self.scores is None or self.chance is None:
            self.no_evidence = self._too_unsure() or (self._constant_answers() if self.task is None else None)
            return
        if not math.isfinite(self.scores.value()):
            message = f"the original's {self.metric} is {self.scores.value()}: its outputs contain NaN or infinity"
            raise RuntimeFailure(message, reason=Reason.OUTPUTS_INVALID)
        refuse_chance(self.scores, self.chance)

    @property
    def _names_classes(self) -> bool:
        """Whether an answer is either right or wrong, as opposed to more or less close."""
        return metrics.entry(self.metric).names_classes

    def _classified(self) -> str | None:
        """The output whose labels are classes."""
        several = self._reading is not None and self._reading.form is LabelForm.ALL_OF
        return self.output if self._names_classes and not several else None

    def _score(self, fitted: TaskMetric | None = None) -> None:
        """Judge the original by its labels, if any, or by its task metric; `fitted`: the task metric, if it was fitted before."""
        if self._labels is not None and self.metric != Metric.AGREEMENT and len(self._labels) != self._count:
            raise DataError(f"there are {len(self._labels)} labels for {self._count} items")
        if self.metric in METRICS and self._evaluation is not None:
            if fitted is None:
                fitted = METRICS[self.metric].fit(self._signature, examples_of(self.answers()), self._evaluation)
            self.task = TaskReference(self.metric, fitted, self.answers(), self._labels)
            return
        if self._labels is None or self.metric == Metric.AGREEMENT:
            return
        self.scores = self.new_scores()
        self.chance = Chance(self.scores.scoring)
        for answer, label in zip(self.answers(), self._labels, strict=True):
            self.scores.add(answer[self.output], np.asarray(label))
            self.chance.add(answer[self.output], np.asarray(label))

    def _constant_answers(self) -> str | None:
        """Why agreement with the original proves nothing: one answer to every item that counts would agree with it. None if that would show."""
        rules = self.skipped.rules if self.skipped is not None else self.comparisons
        skips = self.skipped.items if self.skipped is not None else 0
        counted = self._count - skips
        if counted < FEWEST:
            return None

        def counting() -> Iterator[Answer]:
            return (answer for answer in self.answers() if not skips or agreeing(rules, answer, answer) is not None)

        return enough_for_all(rules, counting, counted, "items of whose answers it is sure" if skips else "items")

    def _too_unsure(self) -> str | None:
        """Why agreement with the original proves nothing: too few items count. None if enough do, or if something else is the proof."""
        others = self.task is None or bool(self.comparisons.keys() - self._judged())
        proves = others and self.evidence is not Evidence.LABELS
        return self.skipped.too_many if self.skipped is not None and proves else None

    def answers(self) -> Iterator[Answer]:
        """The original's answers, in the order of the items."""
        for path in self._files:
            yield from pickle.loads(path.read_bytes())

    def new_scores(self) -> Scores:
        """Empty scores for another model on the same items."""
        average = self._evaluation.average if self._evaluation is not None else EvaluationSpec(uri="-").average
        profile = self.profiles[self.output]
        assert self._reading is not None
        return Scores(ScoringRule.of(self.metric, self._reading, average, profile.axis, profile.threshold))

    def value(self) -> MetricValue:
        """The metric of the original; 1 without labels and task metric, because the original agrees with itself."""
        judged = self.task.value if self.task is not None else self.scores.value() if self.scores is not None else 1.0
        return MetricValue(metric=self.metric, value=judged)

    def constant(self) -> MetricValue | None:
        """The metric of the best constant predictor; None without labels."""
        value = (
            self.chance.constant() if self.chance is not None else self.task.constant if self.task is not None else None
        )
        return None if value is None else MetricValue(metric=self.metric, value=value)

    def labels_read_as(self) -> str | None:
        """How the labels were interpreted, as text; None if none are used."""
        judged = self.scores is not None or self.task is not None
        return self._reading.told if self._reading is not None and judged else None

    def taken_for(self) -> str | None:
        """How the original's answers were interpreted, as text; None without a task metric."""
        return self.task.told if self.task is not None else None

    def summary(self) -> str:
        """How good the original is, for the first line of a log."""
        return f"the original: {worth(self.value(), self.constant(), self._count, self.labels_read_as(), self.taken_for())}"

    def judge(self, answers: Iterable[Answer], lossy: bool, alpha: float) -> Judgement:
        """Compare a candidate's answers, in the order of the items, with the original's.

        Raises RuntimeFailure (OutputsInvalid) at the first invalid answer: a wrong shape, or NaN or infinity where the original has a number.
        """
        judged = self._judged() if self.task is not None else frozenset()
        one_scale = self.task is not None and self.task.metric.one_scale
        sure = self.skipped.rules if self.skipped is not None else None
        tally = Tally(self.comparisons, judged, judged if one_scale else frozenset(), sure)
        remains = self._remains()
        scores = self.new_scores() if self.scores is not None else None
        changes = Changes(scores.scoring) if scores is not None else None
        others = OtherDecisions({name: rule for name, rule in self.comparisons.items() if name not in self._judged()})
        trial = self.task.trial() if self.task is not None else None
        sureness = Sureness(self.comparisons)
        for number, (original, candidate) in enumerate(zip(self.answers(), answers, strict=True)):
            for name, tensor in self._outputs.items():
                valid(tensor, original[name], candidate[name], number)
            tally.add(original, candidate, self.profiles)
            remains.add(original, candidate)
            if scores is not None and changes is not None:
                scores.add(candidate[self.output], self._label(number))
                changes.add(original[self.output], candidate[self.output], self._label(number))
            if trial is not None:
                trial.add(original, candidate, self._label(number))
            if trial is not None or scores is not None:
                others.add(original, candidate)
            sureness.add(candidate, self._truth(original, number))
        verdict = trial.verdict(alpha) if trial is not None else None
        judgement = self._judgement(tally, scores, lossy, alpha, verdict)
        changed = verdict.changed if verdict is not None else changes.interval(alpha) if changes is not None else None
        if verdict is not None or changes is not None:
            changed = others.worst(changed, alpha)
        left = remains.remainder()
        if left.kept is not None:
            kept = {"variance_kept": round(max(left.kept.share, 0.0), 4), "worst_channel": left.kept.place[:MOST_PLACE]}
            judgement = replace(judgement, agreement=judgement.agreement.model_copy(update=kept))
        if judgement.exact:
            return replace(judgement, margins=sureness.margins())
        gone = left.gone or (verdict.gone if verdict is not None else None)
        return replace(judgement, margins=sureness.margins(), changed=changed, gone=gone)

    def live(self) -> dict[str, Comparison]:
        """How answers on live inputs are compared, by output: as here, except for outputs that a task metric judges."""
        if self.task is None:
            return self.comparisons
        metric, own = self.task.metric, {"judged_by": self.metric}
        return {
            name: rule if name not in metric.outputs else metric.live(rule) or rule.model_copy(update=own)
            for name, rule in self.comparisons.items()
        }

    def alike(self, one: Answer, two: Answer) -> bool:
        """Whether two answers to one item are the same by the rules for candidates."""
        return all(rule.agrees(one[name], two[name]) for name, rule in self.comparisons.items())

    def _remains(self) -> Remains:
        # A mean over elements does not see a small one that is dead.
        proved = self._judged() if self.task is not None or self._names_classes else frozenset()
        return Remains(self._outputs, self.profiles, self.comparisons, own_tolerance(self._spec), proved)

    def _judged(self) -> frozenset[str]:
        """The outputs that the metric evaluates."""
        return self.task.metric.outputs if self.task is not None else frozenset({self.output})

    def itself(self) -> Judgement:
        """The judgement of the original as a candidate: it loses nothing and needs no interval."""
        tally = Tally(self.comparisons)
        judgement = self._judgement(tally, self.scores, lossy=False, alpha=0.05)
        mode = judgement.agreement.mode
        unsure = self.skipped.items if self.skipped is not None else None
        nothing = AgreementStatus(value=1.0, low=1.0, high=1.0, mode=mode, unsure=unsure)
        sureness = Sureness(self.comparisons)
        for number, answer in enumerate(self.answers()):
            sureness.add(answer, self._truth(answer, number))
        return replace(judgement, agreement=nothing, margins=sureness.margins())

    def _label(self, number: int) -> Array:
        return np.asarray(self._labels[number] if self._labels is not None else ())

    def _truth(self, original: Answer, number: int) -> dict[str, Array]:
        """The right decisions for an item: those of its label, or the original's without a label."""
        decided = {
            name: decisions(original[name], rule.axis, rule.threshold)
            for name, rule in self.comparisons.items()
            if rule.mode == AgreementMode.TOP_ONE
        }
        return decided | self._by_label(original, number)

    def _by_label(self, original: Answer, number: int) -> dict[str, Array]:
        """The right decisions for an item in the output whose labels are classes; empty if there is none."""
        rule = self.comparisons.get(self.output)
        if self.scores is None or self._classified() is None or rule is None or rule.mode != AgreementMode.TOP_ONE:
            return {}
        scoring, answer = self.scores.scoring, original[self.output]
        classes = decisions(answer, rule.axis, rule.threshold)
        return {self.output: scoring.right(classes, scoring.wanted(answer, self._label(number)))}

    def _agreement(self, disagreed: int, tally: Tally, alpha: float) -> Interval:
        """The share of items that agree, of those that count; anything is possible if none does."""
        counted = self._count - tally.unsure
        return agreement_interval(disagreed, counted, alpha) if counted else Interval(value=0.0, low=0.0, high=1.0)

    def _lost(self, verdict: TaskVerdict | None, tally: Tally, alpha: float) -> Interval | None:
        """The drop by the task metric. Without labels, answers that differ in an output that the metric does not evaluate are lost as well."""
        if (
            verdict is None
            or verdict.drop is None
            or verdict.changed is not None
            or not self.comparisons.keys() - tally.judged
        ):
            return verdict.drop if verdict is not None else None
        others = _disagreement(self._agreement(tally.apart, tally, alpha))
        return max(verdict.drop, others, key=lambda interval: interval.high)

    def _judgement(
        self, tally: Tally, scores: Scores | None, lossy: bool, alpha: float, verdict: TaskVerdict | None = None
    ) -> Judgement:
        agreement = self._agreement(tally.disagreed, tally, alpha)
        accuracy, lost, sides = self._against(tally, scores, verdict, agreement, alpha)
        exact = not lossy and tally.within_noise and _same(tally, sides, verdict)
        compared = self.comparisons.get(self.output) or next(iter(self.comparisons.values()))
        unsure = tally.unsure if self.skipped is not None else None
        return Judgement(
            samples=self._count,
            evidence=self.evidence,
            exact=exact,
            accuracy=accuracy,
            drop=Interval(value=0.0, low=0.0, high=0.0) if exact else lost,
            agreement=AgreementStatus(**agreement.model_dump(), mode=compared.mode, unsure=unsure),
            flips=sides,
            changed=None,
            no_evidence=None if exact else self.no_evidence,
            max_absolute_difference=tally.worst,
            informative=verdict.items if verdict is not None else None,
            details=verdict.details if verdict is not None else None,
        )

    def _against(
        self, tally: Tally, scores: Scores | None, verdict: TaskVerdict | None, agreement: Interval, alpha: float
    ) -> tuple[MetricValue, Interval | None, Flips | None]:
        """The metric, its drop, and how many decisions got better or worse: by the task, by agreement, or by the labels."""
        if self.task is not None:
            value = verdict.value if verdict is not None else self.task.value
            return MetricValue(metric=self.metric, value=value), self._lost(verdict, tally, alpha), None
        if scores is None or self.scores is None:
            # Without labels, an item on which they disagree counts as lost: the drop is 1 - agreement.
            accuracy = MetricValue(metric=Metric.AGREEMENT, value=agreement.value)
            return accuracy, _disagreement(agreement), Flips(worse=tally.disagreed, better=0)
        # Only a decision can be right or wrong; a distance has no sides to change.
        sides = flips(self.scores, scores) if self._names_classes else None
        return MetricValue(metric=self.metric, value=scores.value()), drop(self.scores, scores, alpha), sides


def _same(tally: Tally, sides: Flips | None, verdict: TaskVerdict | None) -> bool:
    """Whether no decision changed."""
    if verdict is None:
        return tally.disagreed == 0 and (sides is None or sides.worse + sides.better == 0)
    seen = [verdict.drop, *([verdict.changed] if verdict.changed is not None else [])]
    return tally.apart == 0 and all(interval is not None and interval.value == 0 for interval in seen)


def _disagreement(agreement: Interval) -> Interval:
    """The share of items on which two answers differ."""
    return Interval(value=1 - agreement.value, low=1 - agreement.high, high=1 - agreement.low)
