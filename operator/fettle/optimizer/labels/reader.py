"""Reads the labels of single items, with the interpretation that was decided for the whole run (`readings.py`)."""

from __future__ import annotations

import unicodedata

import numpy as np

from fettle.api.labels import LabelForm, LabelReading
from fettle.runtimes.base import Array, as_text, as_texts

NOT_COUNTED = -1  # in place of a class number


class LabelReader:
    """Converts the label of an item to its form.

    CLASSES: flat class numbers, with `NOT_COUNTED` for ignored ones. TEXTS: flat texts. ANY_OF: which classes are right for each decision,
    `[decisions, classes]`. ALL_OF: flat booleans, one for each score. NUMBERS: float64, in the shape of the answer.
    """

    def __init__(self, reading: LabelReading, axis: int) -> None:
        self.reading = reading
        self._axis = axis
        self._numbers = {name: number for number, name in enumerate(reading.names)}

    def __call__(self, label: Array, shape: tuple[int, ...]) -> Array:
        """The label of one item whose answer has `shape`."""
        reading = self.reading
        if reading.form is LabelForm.NUMBERS:
            return label.astype(np.float64).reshape(shape)
        if reading.form is LabelForm.TEXTS:
            whole = label.astype(np.int64) if label.dtype.kind in "fb" else label  # 1.0 and True are written 1
            return as_texts(whole)
        if reading.form is LabelForm.ALL_OF:
            return np.asarray(label.reshape(-1) == 1)
        if reading.spread:
            spread = np.moveaxis(label.reshape(shape), self._axis, -1).reshape(-1, shape[self._axis])
            return np.asarray(spread == 1 if reading.form is LabelForm.ANY_OF else np.argmax(spread, axis=-1))
        numbers = self._class_numbers(label)
        if not reading.listed:
            return numbers
        right = np.zeros((1, reading.classes), dtype=bool)
        right[0, numbers[numbers != NOT_COUNTED]] = True
        return right

    def _class_numbers(self, label: Array) -> Array:
        flat = label.reshape(-1)
        if flat.dtype.kind in "OSU":
            texts = [as_text(value) for value in flat.tolist()]
            if self._numbers:
                return np.array([self._numbers[text] for text in texts], dtype=np.int64)
            flat = np.array([int(text) for text in texts], dtype=np.int64)
        whole = flat.astype(np.int64)
        numbers = (whole == 1).astype(np.int64) if self.reading.signed else whole - self.reading.offset
        return np.where(np.isin(whole, self.reading.ignored), NOT_COUNTED, numbers)


def written_alike(first: str, second: str) -> bool:
    """Whether two texts differ in case, spaces or Unicode form only."""
    left, right = (" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in (first, second))
    return left == right
