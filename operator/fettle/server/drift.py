"""Drift: whether live requests, and the answers to them, are distributed as the evaluation data and the answers to it were.

Looked at are the items that are kept as samples, at most 32 a second, so that it costs small requests nothing. A sketch holds, for each feature
and each of the last ten minutes, how many items fell into which bin of the artifact's profile: a few kilobytes, whatever comes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fettle.api.signature import Signature, Tensor
from fettle.api.window import Drift as WindowDrift
from fettle.runtimes.base import Array
from fettle.store import profile as profiles
from fettle.store.profile import FeatureProfile, Profile

BLOCK_SECONDS = 60
BLOCKS = 10
LEAST_ITEMS = 200  # below, chance alone looks like drift


@dataclass(frozen=True)
class FeatureDrift:
    """How far a feature has moved: `psi`, and `ks` from 0 to 1."""

    side: str
    tensor: str
    feature: str
    psi: float
    ks: float


@dataclass(frozen=True)
class SideCounts:
    """The inputs or the outputs of the counted items: how many fell into which bin of each feature, and the evaluation data's profile of it."""

    name: str
    expected: tuple[FeatureProfile, ...]
    counts: Array

    def told(self) -> Iterator[FeatureDrift]:
        """Each feature's."""
        for each, row in zip(self.expected, self.counts, strict=True):
            mine = [*row[: len(each.edges) + 1], row[-1]]
            psi, ks = profiles.psi(each.counts, mine), profiles.ks(each.counts, mine)
            yield FeatureDrift(self.name, each.tensor, each.feature, psi, ks)


@dataclass(frozen=True)
class Counted:
    """The items of the last ten minutes, of one process or of all that share the data ports. `labels`: model and revision."""

    labels: tuple[str, ...]
    items: int
    sides: tuple[SideCounts, ...]

    def __add__(self, other: Counted) -> Counted:
        sides = zip(self.sides, other.sides, strict=True)
        summed = tuple(replace(mine, counts=mine.counts + more.counts) for mine, more in sides)
        return replace(self, items=self.items + other.items, sides=summed)

    def told(self) -> list[FeatureDrift]:
        """The drift of each feature; none below `LEAST_ITEMS`."""
        return [each for side in self.sides for each in side.told()] if self.items >= LEAST_ITEMS else []

    def window(self) -> WindowDrift:
        """The feature that has moved most, as the window tells it."""
        worst = max(self.told(), key=lambda each: each.psi, default=None)
        if worst is None:
            return WindowDrift(items=self.items)
        return WindowDrift(items=self.items, tensor=worst.tensor, feature=worst.feature, psi=worst.psi, ks=worst.ks)

    def metrics(self) -> Iterator[GaugeMetricFamily]:
        """The same as metrics."""
        psi, ks, counted = _families()
        counted.add_metric(self.labels, self.items)
        for each in self.told():
            labels = (*self.labels, each.side, each.tensor, each.feature)
            psi.add_metric(labels, each.psi)
            ks.add_metric(labels, each.ks)
        yield from (psi, ks, counted)


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    names, against = ("model", "revision", "side", "tensor", "feature"), "of a feature against the evaluation data."
    return (
        GaugeMetricFamily("fettle_server_drift_psi", f"Population stability index {against}", labels=names),
        GaugeMetricFamily("fettle_server_drift_ks", f"Kolmogorov-Smirnov statistic {against}", labels=names),
        GaugeMetricFamily(
            "fettle_server_drift_items",
            "Number of items of the last ten minutes from which drift is computed.",
            labels=names[:2],
        ),
    )


class _Side:
    """The features of the inputs, or of the outputs."""

    def __init__(self, name: str, tensors: tuple[Tensor, ...], expected: tuple[FeatureProfile, ...]) -> None:
        self.name = name
        self.expected = expected
        self.tensors = profiles.watched(tensors)
        titles = [(tensor.name, feature) for tensor in self.tensors for feature in profiles.names(tensor)]
        if [(each.tensor, each.feature) for each in expected] != titles:
            self.tensors, self.expected = (), ()  # of another version, or of a run without items
        widest = max((len(each.edges) for each in self.expected), default=0)
        self.edges = np.full((len(self.expected), widest), np.inf)
        for row, each in enumerate(self.expected):
            self.edges[row, : len(each.edges)] = each.edges
        self.rows = np.arange(len(self.expected))

    @property
    def shape(self) -> tuple[int, int]:
        """Features, and bins of each."""
        return len(self.expected), self.edges.shape[1] + 2

    def count(self, counts: Array, arrays: Mapping[str, Array]) -> None:
        """Add one item."""
        found = [value for tensor in self.tensors for value in profiles.values(tensor, arrays[tensor.name])]
        counts[self.rows, profiles.bins(self.edges, np.array(found, np.float64))] += 1


class Drift(Collector):
    """The sketch. One event loop counts, any thread may read; a collector of Prometheus as well."""

    def __init__(
        self,
        profile: Profile,
        signature: Signature,
        labels: tuple[str, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sides = (
            _Side("input", signature.inputs, profile.inputs),
            _Side("output", signature.outputs, profile.outputs),
        )
        self._labels, self._clock = labels, clock
        self._lock = threading.Lock()
        # The number of each block, and the counts of each side in it; `_items` has its number of items.
        self._blocks: deque[tuple[int, list[Array]]] = deque()
        self._items: deque[int] = deque()

    def count(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Count one item and its answer, without their batch axes."""
        with self._lock:
            counts = self._current()
            for side, own, arrays in zip(self._sides, counts, (inputs, outputs), strict=True):
                if side.expected:
                    side.count(own, arrays)
            self._items[-1] += 1

    def counted(self) -> Counted:
        """The items of the last ten minutes."""
        with self._lock:
            self._forget()
            items = sum(self._items)
            sums = [
                np.sum([np.zeros(side.shape, np.int64), *(counts[number] for _, counts in self._blocks)], axis=0)
                for number, side in enumerate(self._sides)
            ]
        sides = zip(self._sides, sums, strict=True)
        return Counted(self._labels, items, tuple(SideCounts(side.name, side.expected, own) for side, own in sides))

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Its names, to the registry."""
        yield from _families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What is told, as metrics."""
        return self.counted().metrics()

    def _current(self) -> list[Array]:
        number = int(self._clock() // BLOCK_SECONDS)
        if not self._blocks or self._blocks[-1][0] != number:
            self._blocks.append((number, [np.zeros(side.shape, np.int64) for side in self._sides]))
            self._items.append(0)
            self._forget()
        return self._blocks[-1][1]

    def _forget(self) -> None:
        oldest = int(self._clock() // BLOCK_SECONDS) - BLOCKS
        while self._blocks and self._blocks[0][0] <= oldest:
            self._blocks.popleft()
            self._items.popleft()
