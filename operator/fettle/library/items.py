"""Items in memory: arrays, with or without labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from fettle.errors import UsageError
from fettle.library.models import named
from fettle.runtimes.base import Array

LABELS = "labels"


@dataclass(frozen=True)
class GivenItems:
    """The items of one purpose: a `path`, or `arrays` (by input, or in the order of the inputs) and `labels`."""

    path: str | None = None
    arrays: Mapping[str, Any] | tuple[Array, ...] = ()
    labels: Array | None = None

    @classmethod
    def of(cls, given: Any, labelled: bool) -> GivenItems:
        """From the caller's value: a path, a dictionary of arrays by input, an array or, if `labelled`, a pair of one of these and labels.

        Raises UsageError.
        """
        if given is None:
            return cls()
        if isinstance(given, (str, os.PathLike)):
            return cls(path=os.fspath(given))
        labels = None
        if labelled and isinstance(given, tuple):
            if len(given) != 2:
                raise UsageError(f"expected a pair (X, y) of inputs and labels, found {len(given)} values")
            given, labels = given[0], np.asarray(given[1])
        if isinstance(given, Mapping):
            return cls(arrays=given, labels=labels)
        several = isinstance(given, Sequence) and all(isinstance(array, np.ndarray) for array in given)
        return cls(arrays=tuple(given) if several else (np.asarray(given),), labels=labels)

    @property
    def example(self) -> list[Array]:
        """The arrays, in the order in which they were given."""
        return [
            np.asarray(array) for array in (self.arrays.values() if isinstance(self.arrays, Mapping) else self.arrays)
        ]

    def file(self, name: str, inputs: Sequence[str], folder: Path) -> str | None:
        """The path of the items' file: the given one, or `name` in `folder`, which is written; None if there are no items. Raises UsageError."""
        if self.path is not None or not len(self.arrays):
            return self.path
        arrays = named(self.arrays, inputs)
        count = {len(array) for array in arrays.values() if array.ndim}
        if self.labels is not None and len(self.labels) not in count:
            raise UsageError(f"there are {len(self.labels)} labels for {' or '.join(map(str, sorted(count)))} items")
        if self.labels is not None:
            arrays[LABELS] = self.labels
        path = folder / f"{name}.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return str(path)


class LearningItems(TypedDict, total=False):
    """Items that a model is changed by, and which prove nothing: `calibration` without labels, `training` with labels or without."""

    calibration: Any
    training: Any


@dataclass(frozen=True)
class RunItems:
    """All items of a run: those that decide, and those to learn from."""

    evaluation: GivenItems
    calibration: GivenItems
    training: GivenItems

    @classmethod
    def of(cls, evaluation: Any, calibration: Any = None, training: Any = None) -> RunItems:
        """What a caller gave. Raises UsageError."""
        return cls(
            GivenItems.of(evaluation, labelled=True),
            GivenItems.of(calibration, labelled=False),
            GivenItems.of(training, labelled=True),
        )

    @property
    def example(self) -> list[Array]:
        """The arrays of those that were given first, in the order in which a run needs them."""
        return self.evaluation.example or self.calibration.example or self.training.example

    def files(self, inputs: Sequence[str], folder: Path) -> dict[str, str | None]:
        """The file of each kind; None where there are none. Raises UsageError."""
        return {kind: items.file(kind, inputs, folder) for kind, items in vars(self).items()}
