"""How labels are read: decided once from all labels of a run and some of the original's answers, then the same in every Job."""

from __future__ import annotations

from enum import StrEnum

from fettle.api.base import ApiModel
from fettle.api.data import EvaluationSpec

IGNORED = -100  # what training code gives to positions that do not count (PyTorch's cross entropy, Hugging Face)


def not_counted(spec: EvaluationSpec) -> tuple[int, ...]:
    """The label values that do not count: -100 always, and `ignoreLabel`."""
    asked = spec.ignore_label
    return (IGNORED,) if asked is None or asked == IGNORED else (IGNORED, asked)


class LabelForm(StrEnum):
    """What a label says of an answer."""

    CLASSES = "Classes"  # the number of the right class, for each decision
    TEXTS = "Texts"  # the right text, for each decision
    ANY_OF = "AnyOf"  # for each class whether it is right: the one decided must be among those
    ALL_OF = "AllOf"  # for each class whether it belongs: exactly those must be decided
    TASK = "Task"  # what a task's metric reads: boxes, a mask, a text, what belongs together
    NUMBERS = "Numbers"  # the right numbers; an answer is near or far, not right or wrong


class LabelReading(ApiModel):
    """What turns labels as they lie in the data into their form; `optimizer/labels/` decides and applies it.

    `names`: texts of the classes, in the order of their numbers. `offset`: what the data calls class 0. `signed`: -1 and 1 say no
    and yes. `spread`: labels have an axis of classes of 0 and 1 (one-hot, several hot) where answers have their scores. `listed`: the
    last axis lists the numbers of all classes that are right. `ignored`: the values that do not count.
    """

    form: LabelForm
    told: str  # for a person
    classes: int = 0  # how many the answers tell apart; 0 where any number may be one
    names: tuple[str, ...] = ()
    offset: int = 0
    signed: bool = False
    spread: bool = False
    listed: bool = False
    ignored: tuple[int, ...] = ()
