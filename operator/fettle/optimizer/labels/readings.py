"""The interpretation of labels. The table `READINGS` says which labels fit which answers. Others are refused, with examples of both.

If no answer can match the labels, every model has an accuracy of 0, including a broken candidate, so no loss would be seen. So nothing is guessed
here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fettle.api import metrics
from fettle.api.data import EvaluationSpec
from fettle.api.labels import LabelForm, LabelReading
from fettle.api.vocabulary import Average, Metric, SeveralLabels
from fettle.errors import DataError
from fettle.optimizer.labels.question import SHOWN, Answered, Answers, Question, Values, squeezed
from fettle.optimizer.labels.reader import written_alike
from fettle.runtimes.base import Array, as_text
from fettle.store.comparison import is_float

WHOLE_NUMBER = re.compile(r"\s*[+-]?\d{1,18}\s*")


def understand(labels: Array, answered: Answered, spec: EvaluationSpec) -> LabelReading:
    """How `labels` (items along the first axis) are interpreted, given the original's answers.

    Raises DataError (DataInvalid) if the metric cannot use these labels; the message shows some labels next to the answers.
    """
    question = Question(labels, answered, spec)
    if not metrics.entry(spec.metric).names_classes:
        return _distances(question)
    if spec.metric is Metric.F1 and spec.average is Average.BINARY:
        _two_classes(question)
    if answered.kind in (Answers.SCORES, Answers.SCORE) and not answered.classes:
        advice = f"its answers have the shape {list(answered.examples[0].shape)}: set data.evaluation.agreement.axis"
        raise question.misfit(f"there is no axis {answered.axis} of classes", advice)
    return READINGS[question.values, answered.kind](question)


# ------------------------------------------------------------------------------------------------------------ whole numbers


def _class_numbers(question: Question) -> LabelReading:
    """Class numbers, for an output with a score for each class."""
    if question.shape == squeezed(question.answered.examples[0].shape):
        hot = set(np.unique(question.labels).tolist()) <= {0, 1}
        if hot:
            return _hot(question)
    if question.spec.several_labels is SeveralLabels.ANY_OF and len(question.shape) == 1:
        if question.spec.metric is Metric.F1:
            raise _no_f1(question)
        _in_range(question)
        none = int(np.sum(np.all(question.uncounted.reshape(len(question.labels), -1), axis=1)))
        return question.found(
            LabelForm.ANY_OF,
            "lists of class indices, any of which is right" + _without_class(none, len(question.labels)),
            offset=question.spec.label_offset,
            listed=True,
        )
    _same_shape(question)
    counted = question.counted()
    if question.answered.classes == 2 and not question.spec.label_offset and counted.tolist() == [-1, 1]:
        return question.found(LabelForm.CLASSES, "-1 and 1, for the first and the second class", signed=True)
    _in_range(question)
    low, high = int(counted[0]), int(counted[-1])
    told = f"class indices, {low} to {high}" + _from(question.spec.label_offset)
    return question.found(LabelForm.CLASSES, told, offset=question.spec.label_offset)


def _yes_or_no(question: Question) -> LabelReading:
    """Two values, for an output with one score."""
    _same_shape(question)
    counted = question.counted()
    offset = question.spec.label_offset
    if not offset and set(counted.tolist()) <= {-1, 1} and -1 in counted:
        return question.found(LabelForm.CLASSES, "-1 for no, 1 for yes", signed=True)
    if set((counted - offset).tolist()) <= {0, 1}:
        return question.found(LabelForm.CLASSES, f"{offset} for no, {offset + 1} for yes", offset=offset)
    other = counted[(counted < offset) | (counted > offset + 1)].tolist()
    if len(counted) == 3 and len(other) == 1:
        advice = f"if {other[0]} means that a label is to be ignored, set data.evaluation.ignoreLabel: {other[0]}"
        raise question.misfit(f"the model has one score (no or yes), labels are {', '.join(map(str, counted))}", advice)
    if len(counted) == 2:
        low, high = (int(value) for value in counted)
        advice = f"set labelOffset: {low}" if high == low + 1 else "write 0 for no and 1 for yes"
        raise question.misfit(f"the model has one score (no or yes), labels are {low} and {high}", advice)
    raise question.misfit("the model has one score (no or yes), and these numbers are not classes", _regression())


def _whole_answers(question: Question) -> LabelReading:
    """Numbers, for an output that holds class numbers."""
    _same_shape(question)
    question.counted()
    offset = question.spec.label_offset
    return question.found(LabelForm.CLASSES, "numbers, as the model outputs them" + _from(offset), offset=offset)


def _numbers_beside_texts(question: Question) -> LabelReading:
    """Numbers, for an output that holds numbers as texts."""
    _same_shape(question)
    if not all(_is_number(text) for answer in question.answered.examples for text in answer.reshape(-1).tolist()):
        raise question.misfit("the model outputs texts, labels are numbers", "give the texts as labels")
    return question.found(LabelForm.TEXTS, "numbers, compared as texts with what the model answers")


def _two_classes(question: Question) -> None:
    """Raises DataError if F1 of one class would ignore several other classes."""
    answered = question.answered
    scored = answered.kind is Answers.SCORES
    count = answered.classes if scored else len(np.unique(question.labels[~question.uncounted].astype(str)))
    if count > 2:
        raise question.misfit(f"average Binary is for two classes, there are {count}", "set average: Macro or Micro")


def _in_range(question: Question) -> None:
    """Raises DataError if a label is not the number of a class."""
    offset, classes = question.spec.label_offset, question.answered.classes
    counted = question.counted()
    outside = counted[(counted < offset) | (counted >= offset + classes)]
    if not len(outside):
        return
    low, high = int(counted[0]), int(counted[-1])
    why = f"there are {classes} classes, {offset} to {offset + classes - 1}, and labels from {low} to {high}"
    named = [int(value) for value in outside]
    if high - low < classes and len(named) <= max(1, abs(low - offset)):
        advice = f"if labels start at {low}, set data.evaluation.labelOffset: {low}"
        if len(named) == 1:
            advice += f"; if {named[0]} means that a label is to be ignored, set ignoreLabel: {named[0]}"
    elif len(named) == 1:
        advice = f"if {named[0]} means that a label is to be ignored, set data.evaluation.ignoreLabel: {named[0]}"
    elif question.shape == question.answered.decided_shape() and len(counted) > 2 * classes:
        advice = f"these numbers are not classes: {_regression()}"
    else:
        advice = f"give labels of {offset} to {offset + classes - 1}, or name the output they belong to in data.evaluation.output"
    raise question.misfit(why, advice)


# ----------------------------------------------------------------------------------------------------- an axis of classes


def _hot(question: Question) -> LabelReading:
    """0 and 1 for each class."""
    spec, answered = question.spec, question.answered
    ones = _shaped(question).sum(axis=answered.axis)
    if bool(np.all(ones == 1)):
        return question.found(LabelForm.CLASSES, "one-hot: a 1 for the right class", spread=True)
    several = spec.several_labels
    if several is None and answered.softmax and bool(np.all(ones >= 1)):
        several = SeveralLabels.ANY_OF
    if several is None:
        advice = "set data.evaluation.severalLabels: AnyOf if each of them is right, AllOf if the answer must be exactly these"
        raise question.misfit("labels have several classes for an item, or none", advice)
    if several is SeveralLabels.ALL_OF:
        told = f"several hot: all classes marked 1 must score above {answered.threshold:g}, and no other"
        return question.found(LabelForm.ALL_OF, told, spread=True)
    if spec.metric is Metric.F1:
        raise _no_f1(question)
    none = int(np.sum(ones == 0))
    if none == ones.size:
        raise question.misfit("no label names a class", "mark the right classes 1")
    told = "several hot: each class marked 1 is right" + _without_class(none, ones.size)
    return question.found(LabelForm.ANY_OF, told, spread=True)


def _probabilities(question: Question) -> LabelReading:
    """A probability for each class."""
    if question.shape == squeezed(question.answered.examples[0].shape):
        shaped = _shaped(question)
        sums = shaped.sum(axis=question.answered.axis)
        if shaped.min() >= 0 and bool(np.allclose(sums, 1, atol=1e-3)):
            return question.found(
                LabelForm.CLASSES, "probabilities of classes: the most likely one is right", spread=True
            )
    return _fractions(question)


def _fractions(question: Question) -> LabelReading:
    raise question.misfit("fractional numbers cannot be classes", _regression())


# ---------------------------------------------------------------------------------------------------------------- texts


def _class_names(question: Question) -> LabelReading:
    """Class names, or class numbers as texts, for an output with numbers or scores."""
    spec, answered = question.spec, question.answered
    texts = sorted({as_text(value) for value in question.labels.reshape(-1).tolist()})
    if not spec.classes:
        if all(_is_number(text) for text in texts):
            numbers = np.array([int(as_text(v)) for v in question.labels.reshape(-1).tolist()], dtype=np.int64)
            as_numbers = Question(numbers.reshape(question.labels.shape), answered, spec)
            reading = READINGS[Values.WHOLE, answered.kind](as_numbers)
            return reading.model_copy(update={"told": f"texts of {reading.told}"})
        why = f"the model answers {answered.kind.value}, but the labels are names"
        advice = "list the names of the classes in data.evaluation.classes, in the order of the model's scores"
        raise question.misfit(why, advice)
    wanted = 2 if answered.kind is Answers.SCORE else answered.classes
    if answered.kind is not Answers.NUMBERS and len(spec.classes) != wanted:
        why = f"data.evaluation.classes has {len(spec.classes)} names, the model has {wanted} classes"
        raise question.misfit(why, "give a name for each class, in the order of the scores")
    twice = sorted(name for name, times in Counter(spec.classes).items() if times > 1)
    if twice:
        why = f"data.evaluation.classes names {', '.join(map(repr, twice[:SHOWN]))} more than once"
        raise question.misfit(why, "give each class a name of its own")
    unknown = [text for text in texts if text not in set(spec.classes)]
    if unknown:
        why = f"{', '.join(map(repr, unknown[:SHOWN]))} is not among data.evaluation.classes"
        near = next((name for name in spec.classes if written_alike(name, unknown[0])), None)
        advice = f"it has {', '.join(map(repr, spec.classes[:SHOWN]))} and so on"
        if near is not None:
            advice = f"it has {near!a}, the label is {unknown[0]!a}: use the same case, spaces and Unicode form"
        raise question.misfit(why, advice)
    _same_shape(question)
    told = f"names of {len(spec.classes)} classes, in the order of data.evaluation.classes"
    return question.found(LabelForm.CLASSES, told, names=spec.classes)


def _texts(question: Question) -> LabelReading:
    """Texts, for an output with texts."""
    _same_shape(question)
    return question.found(LabelForm.TEXTS, "texts, as the model outputs them")


# ---------------------------------------------------------------------------------------------------------------- distances


def _distances(question: Question) -> LabelReading:
    """Numbers in the shape of the output, for metrics that measure how close an answer is."""
    answer = question.answered.examples[0]
    metric = question.spec.metric
    if question.values is Values.TEXTS or answer.dtype.kind in "OSUb":
        raise question.misfit(f"{metric} compares numbers", "set metric: Accuracy if labels are classes")
    if question.shape != squeezed(answer.shape):
        why = (
            f"{metric} needs labels of the output's shape {list(answer.shape)}, found {list(question.labels.shape[1:])}"
        )
        raise question.misfit(why, "set metric: Accuracy if labels are classes")
    return LabelReading(form=LabelForm.NUMBERS, told="numbers, as the model should output them")


def _regression() -> str:
    return "if they are quantities, set data.evaluation.metric: Regression"


def _no_f1(question: Question) -> DataError:
    return question.misfit("F1 needs one class for a label", "set metric: Accuracy")


READINGS: Mapping[tuple[Values, Answers], Callable[[Question], LabelReading]] = {
    (Values.WHOLE, Answers.SCORES): _class_numbers,
    (Values.WHOLE, Answers.SCORE): _yes_or_no,
    (Values.WHOLE, Answers.NUMBERS): _whole_answers,
    (Values.WHOLE, Answers.TEXTS): _numbers_beside_texts,
    (Values.FRACTIONS, Answers.SCORES): _probabilities,
    (Values.FRACTIONS, Answers.SCORE): _fractions,
    (Values.FRACTIONS, Answers.NUMBERS): _fractions,
    (Values.FRACTIONS, Answers.TEXTS): _fractions,
    (Values.TEXTS, Answers.SCORES): _class_names,
    (Values.TEXTS, Answers.SCORE): _class_names,
    (Values.TEXTS, Answers.NUMBERS): _class_names,
    (Values.TEXTS, Answers.TEXTS): _texts,
}


# -------------------------------------------------------------------------------------------------------------------- pieces


def _same_shape(question: Question) -> None:
    """Raises DataError unless there is one label for each decision."""
    wanted, shape = question.answered.decided_shape(), question.shape
    if wanted == shape:
        return
    answer = question.answered.examples[0]
    why = f"a label of shape {list(shape)} is not one for each decision, which has the shape {list(wanted)}"
    fitting = [
        axis - answer.ndim
        for axis in range(answer.ndim)
        if squeezed(size for place, size in enumerate(answer.shape) if place != axis) == shape
    ]
    if is_float(answer) and fitting:
        advice = f"where the classes lie along another axis, set data.evaluation.agreement.axis: {fitting[0]}"
    else:
        advice = "check data.evaluation.labelKey, output and agreement.axis"
    raise question.misfit(why, advice)


def _shaped(question: Question) -> Array:
    """Labels with an axis of classes, in the shape of the answers."""
    labels = question.labels
    values = labels.astype(np.float64) if labels.dtype.kind == "b" else labels
    return np.asarray(values.reshape(len(labels), *question.answered.examples[0].shape))


def _without_class(count: int, total: int) -> str:
    return f"; {count} of {total} name none and do not count" if count else ""


def _from(offset: int) -> str:
    return f", counted from {offset}" if offset else ""


def _is_number(value: Any) -> bool:
    return WHOLE_NUMBER.fullmatch(as_text(value)) is not None
