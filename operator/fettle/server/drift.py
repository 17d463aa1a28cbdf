"""Drift: whether live requests, and the answers to them, are distributed as the evaluation data and the answers to it were.

Looked at are the items that are kept as samples, at most 32 a second, so that it costs small requests nothing. A sketch holds, for each feature
and each of the last ten minutes, how many items fell into which bin of the artifact's profile: a few kilobytes, whatever comes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

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

    def told(self, counts: Array) -> Iterator[FeatureDrift]:
        """Each feature's."""
        for each, row in zip(self.expected, counts, strict=True):
            mine = [*row[: len(each.edges) + 1], row[-1]]
            psi, ks = profiles.psi(each.counts, mine), profiles.ks(each.counts, mine)
            yield FeatureDrift(self.name, each.tensor, each.feature, psi, ks)


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
        self._blocks: deque[tuple[int, list[Array]]] = (
            deque()
        )  # number of the block, and counts of each side; of items in front
        self._items: deque[int] = deque()

    def count(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Count one item and its answer, without their batch axes."""
        with self._lock:
            counts = self._current()
            for side, own, arrays in zip(self._sides, counts, (inputs, outputs), strict=True):
                if side.expected:
                    side.count(own, arrays)
            self._items[-1] += 1

    def told(self) -> tuple[int, list[FeatureDrift]]:
        """Items of the last ten minutes, and the drift of each feature; none below `LEAST_ITEMS`."""
        with self._lock:
            self._forget()
            items = sum(self._items)
            if items < LEAST_ITEMS:
                return items, []
            sums = [
                np.sum([counts[number] for _, counts in self._blocks], axis=0) for number in range(len(self._sides))
            ]
        return items, [each for side, counts in zip(self._sides, sums, strict=True) for each in side.told(counts)]

    def window(self) -> WindowDrift:
        """The feature that has moved most, as the window tells it."""
        items, features = self.told()
        worst = max(features, key=lambda each: each.psi, default=None)
        if worst is None:
            return WindowDrift(items=items)
        return WindowDrift(items=items, tensor=worst.tensor, feature=worst.feature, psi=worst.psi, ks=worst.ks)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Its names, to the registry."""
        yield from self._families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What is told, as metrics."""
        psi, ks, counted = self._families()
        items, features = self.told()
        counted.add_metric(self._labels, items)
        for each in features:
            labels = (*self._labels, each.side, each.tensor, each.feature)
            psi.add_metric(labels, each.psi)
            ks.add_metric(labels, each.ks)
        yield from (psi, ks, counted)

    @staticmethod
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
