"""Average precision at an overlap of .5, for thousands of draws of the items at once.

As COCO's evaluation takes it: at most 100 boxes of a class and item, the surest first, 101 points of recall, mean over classes. An item that
has more objects of a class than that may have as many boxes: COCO's pictures are not that crowded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array

from fettle.errors import DataError
from fettle.optimizer.measure.tasks.base import Pool
from fettle.optimizer.measure.tasks.boxes import Boxes, assign, overlaps
from fettle.optimizer.statistics import Indices, groups_of, ratio, times
from fettle.runtimes.base import Array

RECALLS = np.linspace(0, 1, 101)
MOST_OF_CLASS = 100  # boxes of a class and item


@dataclass
class AveragePrecision:
    """Every box with its score, right or wrong, and how many objects there are, by class."""

    _items: int = 0
    _informative: int = 0
    _rows: list[Array] = field(default_factory=list)  # item, class, score, right
    _objects: list[Array] = field(default_factory=list)  # item, class

    def add(self, prediction: Boxes, truth: Boxes) -> None:
        """Match the boxes of an item."""
        prediction = prediction.some(_counted(prediction.classes, truth.classes))
        right = assign(overlaps(prediction, truth)) >= 0
        item = np.full(len(prediction.scores), self._items)
        self._rows.append(np.stack([item, prediction.classes, prediction.scores, right], axis=1))
        self._objects.append(np.stack([np.full(len(truth.classes), self._items), truth.classes], axis=1))
        self._informative += len(truth.classes) > 0
        self._items += 1

    def pool(self) -> Pool:
        """Average precision, mean over the classes that occur. Raises DataError where there is no object at all."""
        rows, objects = np.concatenate(self._rows), np.concatenate(self._objects).astype(np.int64)
        if not len(objects):
            raise DataError(f"the labels of {self._items} items contain no object: check data.evaluation.labelKey")
        group = groups_of(self._items)
        groups = int(group.max(initial=-1)) + 1
        classes, numbers = np.unique(objects[:, 1], return_inverse=True)
        there = np.zeros((groups, len(classes)))
        np.add.at(there, (group[objects[:, 0]], numbers), 1)
        counted = rows[np.isin(rows[:, 1], classes)]
        place = np.searchsorted(classes, counted[:, 1])
        order = np.lexsort((-counted[:, 2], place))  # class by class, by falling score
        counted, place = counted[order], place[order]
        curve = _PrecisionCurve(there, group[counted[:, 0].astype(np.int64)], place, counted[:, 3] > 0)
        return Pool(self._informative, groups, rows, curve.value)


def _counted(prediction: Array, truth: Array) -> Array:
    """Places of the surest boxes of each class, in the order in which they come."""
    if len(prediction) <= MOST_OF_CLASS:
        return np.arange(len(prediction))
    kept = [
        np.nonzero(prediction == number)[0][: max(MOST_OF_CLASS, int((truth == number).sum()))]
        for number in np.unique(prediction)
    ]
    return np.sort(np.concatenate(kept))


class _PrecisionCurve:
    """All boxes, class by class and by falling score: `group` and `place` (of the class) of each, and whether it is `right`.

    `there` [groups, classes]: objects. Precision falls at wrong boxes, so that only right ones are points of the curve.
    """

    def __init__(self, there: Array, group: Array, place: Array, right: Array) -> None:
        self._there = there.astype(np.int64)
        points = np.nonzero(right)[0]
        self._place, self._group = place[points], group[points]
        new_class = np.diff(self._place, prepend=-1) > 0
        self._begins = np.nonzero(new_class)[0]  # first right box of each class that has one
        self._first = self._begins[np.cumsum(new_class) - 1] if len(points) else self._begins
        # To each right box belong itself and the wrong ones since the one before it; what comes after the last of a class counts nowhere.
        owner = np.searchsorted(points, np.arange(len(place)))
        some = owner < len(points)
        some[some] = self._place[owner[some]] == place[some]
        ones = np.ones(int(some.sum()), dtype=np.int64)
        self._boxes = csr_array((ones, (owner[some], group[some])), shape=(len(points), len(there)))

    def value(self, drawn: Indices) -> Array:
        """The mean over classes that have an object among the groups that were drawn: `[..., draws]` -> `[...]`."""
        weights = times(drawn.reshape(-1, drawn.shape[-1]), len(self._there)).astype(np.int64)
        there = weights @ self._there
        found = np.zeros(there.shape)
        if len(self._place):
            found[:, self._place[self._begins]] = self._precisions(weights, there)
        some = there > 0
        mean = ratio((found * some).sum(axis=1), some.sum(axis=1).astype(np.float64), 0.0)
        return np.asarray(mean.reshape(drawn.shape[:-1]))

    def _precisions(self, weights: Array, there: Array) -> Array:
        """Average precision of each class that has a right box."""
        true = self._counted(weights[:, self._group])
        boxes = self._counted((self._boxes @ weights.T).T)
        precision = _highest_to_come(true / np.maximum(boxes, 1), self._place)
        objects = np.maximum(there, 1)[:, self._place]
        point = 100 * true // objects  # of recall, the last one that is reached; but for its rounding
        points = point + (RECALLS[point] <= true / objects)
        new = np.diff(points, axis=1, prepend=0)
        new[:, self._begins] = points[:, self._begins]
        return np.asarray(np.add.reduceat(precision * new, self._begins, axis=1) / len(RECALLS))

    def _counted(self, steps: Array) -> Array:
        """Running sums, class by class."""
        sums = np.cumsum(steps, axis=1)
        return np.asarray(sums - (sums - steps)[:, self._first])


def _highest_to_come(values: Array, place: Array) -> Array:
    """Along the last axis, the highest value from each place on, within its class; values are 0 to 1."""
    steps = 2.0 * (place.max() - place)  # so that a class is never below those that come after it
    return np.asarray(np.maximum.accumulate((values + steps)[..., ::-1], axis=-1)[..., ::-1] - steps)
