"""Labels that name the classes otherwise than the model does: folders sorted as texts, a class without items, two names swapped.

The original is right on the other classes and so may know its items better than chance; but what a candidate loses on the misnamed
ones cannot be seen, for there the original is wrong already.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from fettle.optimizer.labels.reader import written_alike

ENOUGH = 5  # decisions with a label; fewer say nothing of how it is usually answered
# Of a label's decisions so many must have the same other answer: a model that is right on two fifths of each class never gives one.
MOSTLY = 2 / 3
SHARE = 0.05  # of all decisions: less is a class that a model has trouble with
SHOWN = 3


@dataclass(frozen=True)
class Moved:
    """A label that is usually answered with `answer`: so many `times` of `count`."""

    label: Hashable
    answer: Hashable
    times: int
    count: int


def misplaced(pairs: Mapping[tuple[Hashable, Hashable], int]) -> tuple[Moved, ...]:
    """Labels whose places were changed, by how often each (label, answer) occurs. Empty where there is no sign of it.

    A label that is usually answered with another one is a confusion of the model where that other is answered right as well, or has no
    items. It is in the wrong place where what has the other label is itself answered with a third, and no two go to the same place.
    """
    by_label: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for (label, answer), times in pairs.items():
        by_label[label][answer] += times
    usual = {label: answers.most_common(1)[0] for label, answers in by_label.items()}
    targets = Counter(answer for answer, _ in usual.values())
    moved = [
        Moved(label, answer, times, by_label[label].total())
        for label, (answer, times) in usual.items()
        if answer != label and targets[answer] == 1 and by_label[label].total() >= ENOUGH
    ]
    moved = [shift for shift in moved if shift.times > MOSTLY * shift.count]
    # A place is changed with another one: a single label that is answered with a neighbour is a weakness of the model.
    proved = len(moved) > 1 and any(shift.answer in by_label for shift in moved)
    proved = proved or any(_same_text(shift.label, shift.answer) for shift in moved)
    if not proved or sum(shift.count for shift in moved) < SHARE * sum(pairs.values()):
        return ()
    return tuple(sorted(moved, key=lambda shift: (-shift.times, str(shift.label))))


def described(moved: tuple[Moved, ...]) -> str:
    """The labels in the wrong place, for a person."""
    shown = [
        f"{shift.label!r} is answered with {shift.answer!r} ({shift.times} of {shift.count})" for shift in moved[:SHOWN]
    ]
    more = f" and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
    return f"the labels number the classes differently from the model: {', '.join(shown)}{more}"


def _same_text(label: Hashable, answer: Hashable) -> bool:
    return isinstance(label, str) and isinstance(answer, str) and written_alike(label, answer)
