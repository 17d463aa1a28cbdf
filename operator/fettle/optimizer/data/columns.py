"""Columns of a file of items: one array per input, first axis = items. The request for a file, and the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fettle.errors import DataError
from fettle.optimizer.measure.cgroup import Limits
from fettle.runtimes.base import Array

LABELS = "labels"
SHARE = 4  # items may hold this part of the process's memory: they are copied once when they are split, and the model needs some
ITEM_BYTES = 256  # what telling an item apart costs beside its values: its digest, its place in each part of the split
NAMED_MOST = 10


class Room:
    """The memory for all items of a run: a quarter of this process's limit."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size if size is not None else Limits.find().memory_total() // SHARE
        self._taken = 0

    def take(self, size: int, where: str) -> None:
        """Count `size` bytes more. Raises DataError where they do not fit."""
        self.require(size, where)
        self._taken += size

    def require(self, size: int, where: str) -> None:
        """Raises DataError where `size` bytes more do not fit."""
        if self._taken + size > self.size:
            message = (
                f"{where}: the items need more than {self.size / (1 << 20):.0f} MiB in memory, a quarter of what this process may use: "
                "set maxSamples, or raise spec.jobs.resources.limits.memory"
            )
            raise DataError(message)


@dataclass(frozen=True)
class Portable:
    """An encoder without the library that it came with: see `preprocess.text.TextEncoder`."""

    content: bytes
    lower: bool = False


class Encoder(Protocol):
    """Makes a model's inputs from raw data, such as tokens from texts."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns it reads, all of them texts. The first is required, the others are optional."""
        ...

    def encode(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """The model's inputs for these items. Raises DataError."""
        ...

    def portable(self, columns: Mapping[str, Array]) -> Portable:
        """What makes the same inputs of these items in a server. Raises DataError, which says why nothing does."""
        ...


@dataclass(frozen=True)
class ReadRequest:
    """What to read from a file: the columns of the inputs (name -> V2 data type), the column of labels if there is one, and how many items.

    `by_name`: the label of a picture is its folder's name, not the folder's position. `judged`: the labels are used.
    """

    uri: str
    inputs: Mapping[str, str]
    label_key: str | None
    max_samples: int | None
    room: Room = field(default_factory=Room)
    by_name: bool = False
    judged: bool = True

    def columns(self, available: Iterable[str]) -> list[str]:
        """Which of the file's columns to read. Raises DataError for an input without a column, and for a name that occurs twice."""
        counts = Counter(available)
        absent = sorted(self.inputs.keys() - counts.keys())
        if absent:
            raise DataError(
                f"{self.uri}: no array for the inputs {absent}, found {listed(counts)}; give each array the name of a model input"
            )
        names = [
            *sorted(self.inputs),
            *([self.label_key] if self.label_key is not None and self.label_key in counts else []),
        ]
        twice = [name for name in names if counts[name] > 1]
        if twice:
            raise DataError(f"{self.uri}: duplicate array {twice}; give each array its own name")
        return names

    def unused(self, available: Iterable[str]) -> list[str]:
        """Names of the file's columns that are not requested."""
        return sorted(set(available) - self.inputs.keys() - {self.label_key, LABELS})


@dataclass(frozen=True)
class Columns:
    """The requested arrays, each in the data type of its input, and the names of the file's other columns."""

    arrays: Mapping[str, Array]
    unused: list[str]


def listed(names: Iterable[str]) -> str:
    """The first few of many names, sorted."""
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMED_MOST} more" if len(ordered) > NAMED_MOST else ""
    return f"{ordered[:NAMED_MOST]}{more}"
