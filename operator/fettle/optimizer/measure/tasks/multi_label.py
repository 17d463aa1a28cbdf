"""Metric MultiLabel: are the right ones of many yes-or-no decisions found: tags of a picture, notes of each moment?

With labels: micro F1 at the usual threshold, 0.5 of a probability and 0 of a logit. As agreement: micro F1 against the original's decisions, at
that threshold and at two beside it; the worst of the three counts, so that scores which only keep their side are not enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from fettle.api.data import EvaluationSpec
from fettle.api.labels import not_counted
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.labels.reader import NOT_COUNTED
from fettle.optimizer.measure.agreement import OutputProfile, item_axis
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import Likeness, Pool, Scorer, TaskMetric, f1, require_names, shapes, sums
from fettle.optimizer.measure.variance import LEAST_ITEMS
from fettle.optimizer.statistics import ratio
from fettle.runtimes.base import Array
from fettle.store.comparison import is_float

Prediction = tuple[Array, ...]  # by output, [places, tags]: how many of the thresholds a score is above

PROBABILITIES = (0.3, 0.5, 0.7)
LOGITS = (-0.8473, 0.0, 0.8473)  # of the same probabilities
USUAL = 1  # place of the usual threshold among them
LEAST_SKILL = 0.5  # of what the best constant decisions get wrong a candidate may get half as much wrong


@dataclass(frozen=True)
class Decisions:
    """One output that is read. `axis` is that of the tags in an item's answer, counted from the end."""

    name: str
    axis: int
    tags: int
    thresholds: Sequence[float]

    def read(self, array: Array) -> Array:
        """`[places, tags]`, whatever the array holds beside scores."""
        table = array.reshape(1, 1) if array.ndim == 0 else np.moveaxis(array, self.axis, -1)
        return table.reshape(-1, table.shape[-1])

    def levels(self, answer: Answer) -> Array:
        """How many thresholds each score is above."""
        scores = self.read(answer[self.name])
        if not is_float(scores):
            return np.where(scores > 0, np.uint8(len(self.thresholds)), np.uint8(0))
        levels = np.zeros(scores.shape, np.uint8)
        for threshold in self.thresholds:
            levels += scores > threshold
        return levels


class MultiLabel(TaskMetric):
    """Yes or no, many times for each item."""

    def __init__(self, outputs: Sequence[Decisions], ignored: tuple[int, ...], classes: tuple[str, ...]) -> None:
        self._outputs, self._ignored = outputs, ignored
        self.outputs = frozenset(output.name for output in outputs)
        several = len(outputs) > 1
        plain = tuple(f"{each.name}[{tag}]" if several else str(tag) for each in outputs for tag in range(each.tags))
        self._names = classes or plain
        where = " and ".join(f"{each.tags} tags in {each.name} (above {each.thresholds[USUAL]:g})" for each in outputs)
        self.told = f"a yes or no for each of {where}"

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Take the output that is named, or every output where all are probabilities, else the first. Raises DataError."""
        tensors = {tensor.name: tensor for tensor in signature.outputs}
        names = [spec.output] if spec.output is not None else list(tensors)
        profiles = {}
        for name in names:
            profiles[name] = OutputProfile(axis=item_axis(tensors[name], spec.agreement.axis))
            for answer in examples:
                profiles[name].add(answer[name])
        if not all(profile.floating and profile.threshold > 0 and not profile.softmax for profile in profiles.values()):
            names = names[:1]
        outputs = [_decisions(name, profiles[name], examples) for name in names]
        tags = sum(output.tags for output in outputs)
        require_names("MultiLabel", spec, tags, names)
        return cls(outputs, not_counted(spec), spec.classes)

    def likeness(self, examples: Sequence[Answer]) -> Likeness:
        """Scores of tags look like those of a mask, or like any numbers."""
        return Likeness.NONE

    def decode(self, answer: Answer) -> Prediction:
        """How sure each yes is."""
        return tuple(output.levels(answer) for output in self._outputs)

    def read(self, label: Array, prediction: Prediction) -> Prediction:
        """0 and 1 for each decision: of all outputs that are read, or of the first; `NOT_COUNTED` where it does not count."""
        read = list(prediction)
        for some in (read, read[:1]):
            if label.size == sum(table.size for table in some):
                break
        else:
            found = " or ".join(str(sum(table.size for table in some)) for some in (read[:1], read)[: len(read)])
            raise DataError(
                f"metric MultiLabel needs a 0 or 1 for each of {found} decisions, found {label.dtype} {list(label.shape)}: "
                "check data.evaluation.labelKey, output and agreement.axis"
            )
        known = np.isin(label, (0, 1, *self._ignored))
        if label.dtype.kind not in "biuf" or not known.all():
            raise DataError(
                f"metric MultiLabel needs labels of 0 and 1 ({' and '.join(map(str, self._ignored))} not counted), found {label.dtype} "
                f"{label[~known][:1].tolist()}"
            )
        whole = np.where(np.isin(label, self._ignored), NOT_COUNTED, label).astype(np.int8)
        parts = np.split(whole.reshape(-1), np.cumsum([table.size for table in some])[:-1])
        if len(some) == 1 and whole.ndim > 1:
            return (self._outputs[0].read(whole).reshape(some[0].shape),)  # its axes are those of the answer
        return tuple(part.reshape(table.shape) for part, table in zip(parts, some, strict=True))

    def scorer(self, labelled: bool) -> Scorer:
        """F1 by labels, or of what the original says."""
        return Found() if labelled else SameTags(self._names)


def _decisions(name: str, profile: OutputProfile, examples: Sequence[Answer]) -> Decisions:
    """Raises DataError where the output holds no independent decisions."""
    first = examples[0][name]
    axis = profile.axis if first.ndim else -1
    yes_or_no = first.dtype.kind in "biu" and all(np.isin(answer[name], (0, 1)).all() for answer in examples)
    tags = first.shape[axis] if first.ndim and -first.ndim <= axis < first.ndim else first.size
    same = all(answer[name].ndim == first.ndim for answer in examples)
    if not (profile.floating or yes_or_no) or first.size < 2 or not same or profile.softmax:
        why = (
            ": its scores add up to 1, so that only one of them can be right; set metric: Accuracy"
            if profile.softmax
            else ""
        )
        raise DataError(
            f"metric MultiLabel finds no decisions in {shapes({name: first})} (one item's answer): it needs two or more probabilities or logits, "
            f"each of which is a yes or no by itself{why or ', with the tags along agreement.axis'}"
        )
    return Decisions(name, axis, tags, PROBABILITIES if profile.threshold > 0 or yes_or_no else LOGITS)


def _counts(prediction: Array, truth: Array) -> tuple[int, int, int]:
    """Right yeses, too many, missing."""
    both = int(np.sum(prediction & truth))
    return both, int(np.sum(prediction)) - both, int(np.sum(truth)) - both


# --------------------------------------------------------------------------------------------------------------------- labels


@dataclass
class Found:
    """Decisions beside labels."""

    _scores: list[Array] = field(default_factory=list)
    _yes: Array | None = None  # by place and tag, where all items are of one size
    _sized: bool = True

    def add(self, prediction: Prediction, truth: Prediction) -> None:
        """Count the decisions about an item; labels may speak of the first output only."""
        flat = np.concatenate([part.reshape(-1) for part in truth])
        given = np.concatenate([part.reshape(-1) for part in prediction[: len(truth)]])
        if flat.shape != given.shape:
            raise DataError(f"{flat.size} labels for {given.size} decisions: check data.evaluation.labelKey")
        counts, yes = flat != NOT_COUNTED, flat == 1
        self._scores.append(np.array(_counts((given > USUAL) & counts, yes), dtype=np.float64))
        both = np.stack([yes, counts]).astype(np.int64)
        self._sized = self._sized and (self._yes is None or self._yes.shape == both.shape)
        if self._sized:
            self._yes = both if self._yes is None else self._yes + both

    def pool(self) -> Pool:
        """Micro F1 over all decisions. Raises DataError where labels say yes to nothing or to everything."""
        found = sums(self._scores, f1)
        right, _, missing = found.scores.sum(axis=0)
        if not right + missing:
            raise DataError(
                f"the labels of all {len(self._scores)} items say no to everything: check data.evaluation.labelKey"
            )
        if self._sized and self._yes is not None and (self._yes[0] == self._yes[1]).all():
            raise DataError(
                f"the labels of all {len(self._scores)} items say yes to everything: such items prove nothing"
            )
        return replace(found, constant=self._constant())

    def _constant(self) -> float | None:
        """F1 of always saying yes to the most frequent ones, as many as is best."""
        if not self._sized or self._yes is None:
            return None
        share = ratio(self._yes[0].astype(np.float64), self._yes[1].astype(np.float64), 0.0)
        yes, counted = self._yes[:, np.argsort(-share, kind="stable")].cumsum(axis=1)
        return float((2 * yes / np.maximum(counted + yes[-1], 1)).max())


# ------------------------------------------------------------------------------------------------------------------ agreement


@dataclass
class SameTags:
    """Decisions beside the original's. `names` are those of the tags, of all outputs."""

    names: Sequence[str]
    _scores: list[Array] = field(default_factory=list)  # [thresholds, 3] of each item
    _tags: Array | None = None  # [4, tags]: decisions, the original's yeses, the candidate's, different ones
    _items: Array | None = None  # [2, tags]: items with a yes of the original's, with a no

    def add(self, prediction: Prediction, truth: Prediction) -> None:
        """Count the decisions about an item. Raises ValueError where the two are of different sizes."""
        if [part.shape for part in prediction] != [part.shape for part in truth]:
            raise ValueError(
                f"scores of the shapes {[part.shape for part in prediction]} and {[part.shape for part in truth]}"
            )
        flat = [np.concatenate([part.reshape(-1) for part in parts]) for parts in (prediction, truth)]
        self._scores.append(
            np.array([_counts(*(one > place for one in flat)) for place in range(len(PROBABILITIES))], np.float64)
        )
        given, wanted = ([part > USUAL for part in parts] for parts in (prediction, truth))
        tags = np.stack(
            [
                np.concatenate([np.full(part.shape[1], len(part)) for part in wanted]),
                np.concatenate([part.sum(axis=0) for part in wanted]),
                np.concatenate([part.sum(axis=0) for part in given]),
                np.concatenate([(one != other).sum(axis=0) for one, other in zip(given, wanted, strict=True)]),
            ]
        )
        items = np.stack([tags[1] > 0, tags[1] < tags[0]]).astype(np.int64)
        self._tags = tags if self._tags is None else self._tags + tags
        self._items = items if self._items is None else self._items + items

    def pool(self) -> Pool:
        """The worst of micro F1 at the thresholds. Raises DataError where the original says yes to nothing or to everything.

        A threshold above which there is something in too few items to tell is left out; the usual one never is.
        """
        assert self._tags is not None and self._items is not None
        scores = np.stack(self._scores)
        yeses = scores[:, :, 0] + scores[:, :, 2]
        if not yeses[:, USUAL].any() or self._tags[1].sum() == self._tags[0].sum():
            what = "everything" if yeses[:, USUAL].any() else "nothing"
            raise DataError(
                f"the original says yes to {what} in all {len(scores)} items: such items prove nothing; check the items, or name the output "
                "with the decisions in data.evaluation.output"
            )
        counted = (yeses > 0).sum(axis=0) >= LEAST_ITEMS
        counted[USUAL] = True

        def value(totals: Array) -> Array:
            shaped = totals.reshape(*totals.shape[:-1], len(PROBABILITIES), 3)
            return np.asarray(f1(shaped)[..., counted].min(axis=-1))

        each = ", ".join(f"{number:.4g}" for number in f1(scores.sum(axis=0)))
        told = f"F1 {each} at {', '.join(map(str, PROBABILITIES))} of a probability"
        return replace(sums(self._scores, value), gone=self._gone(self._tags, self._items), details=told)

    def _gone(self, tags: Array, items: Array) -> str | None:
        """A tag that is decided no better than by one answer to all items, or all of them together, for a person."""
        total, yes, prediction, wrong = tags
        rarer = np.minimum(yes, total - yes)
        lost = np.flatnonzero((wrong >= rarer) & (items.min(axis=0) >= LEAST_ITEMS) & (rarer > 0))
        if len(lost):
            worst = int(lost[np.argmax(rarer[lost])])
            where = f"{self.names[worst]!r}, which the original finds in {items[0, worst]} of {len(self._scores)} items"
            if not prediction[worst]:
                return f"it never finds {where}: the loss of rare tags does not show in MultiLabel; quantize fewer operators"
            return (
                f"it is wrong {wrong[worst]} times about {where}, and one answer to all items would be wrong {rarer[worst]} times: it hardly "
                "depends on its input any more; quantize fewer operators"
            )
        if wrong.sum() > LEAST_SKILL * rarer.sum():
            return (
                f"{wrong.sum()} of its decisions differ from the original's, and {rarer.sum()} would if all items got the same ones: it hardly "
                "depends on its input any more; quantize fewer operators"
            )
        return None
