"""Prometheus metrics of the server."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from fettle.errors import RuntimeFailure
from fettle.server.request import Code
from fettle.store.comparison import Outcome

LABELS = ("model", "revision")
_LATENCY = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Metrics of a pod that are not the sum of those of its processes.
_NO_SUMS: dict[str, Callable[[list[float]], float]] = {
    "fettle_server_certificate_expiration_timestamp_seconds": min,
    "fettle_server_gpu_memory_free_bytes": min,
    "fettle_server_gpu_memory_bytes": max,
}


class Histogram(Collector):
    """A histogram of one model and revision. One event loop observes, any thread may read.

    The library's own costs five times as much, with a lock and a search from the first bound on, which is seen at several thousand requests
    a second.
    """

    label_names = LABELS

    def __init__(self, name: str, documentation: str, bounds: tuple[float, ...], labels: tuple[str, ...]) -> None:
        self.name, self.documentation, self._labels = name, documentation, labels
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Its name, to the registry."""
        yield HistogramMetricFamily(self.name, self.documentation, labels=LABELS)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What was counted."""
        family = HistogramMetricFamily(self.name, self.documentation, labels=LABELS)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        counted = list(zip(bounds, accumulate(self._counts), strict=True))
        family.add_metric(self._labels, buckets=counted, sum_value=self._sum)
        yield family


class Requests(Collector):
    """The counter of one model's and revision's requests, by code; as `Histogram`."""

    name = "fettle_server_requests"
    documentation = "Number of requests by outcome, as an HTTP status code, over all protocols."
    label_names = (*LABELS, "code")

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = labels
        self.counts: dict[str, int] = {}

    def count(self, code: Code) -> None:
        """Count one that came through a front."""
        told = code._value_  # as `value`, without a descriptor's detour
        self.counts[told] = self.counts.get(told, 0) + 1

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Its name, to the registry."""
        yield CounterMetricFamily(self.name, self.documentation, labels=self.label_names)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What was counted."""
        family = CounterMetricFamily(self.name, self.documentation, labels=self.label_names)
        for code, count in sorted(self.counts.copy().items()):
            family.add_metric((*self._labels, code), count)
        yield family


class Metrics:
    """The server's own registry: requests by code, latency, queue and inference."""

    def __init__(self, model: str, revision: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = (model, revision)
        own: dict[str, Any] = {"labelnames": LABELS, "registry": self.registry}
        self.requests = Requests(self._labels)
        self.registry.register(self.requests)
        self.count = self.requests.count
        self.latency = self._histogram(
            "fettle_server_request_seconds", "Time that an infer request spends in the server, in seconds.", _LATENCY
        )
        self.inference = self._histogram(
            "fettle_server_inference_seconds",
            "Time that an infer request spends in the queue and the model, in seconds.",
            _LATENCY,
        )
        self._queue = self._histogram(
            "fettle_server_queue_seconds",
            "Time that an infer request waits for its run, in seconds. A request that the event loop runs itself does not wait.",
            _LATENCY,
        )
        self._runs = self._histogram("fettle_server_run_seconds", "Time of a run of the model, in seconds.", _LATENCY)
        self._items = self._histogram("fettle_server_run_items", "Number of items in a run of the model.", _ITEMS)
        self.waiting = Gauge("fettle_server_waiting", "Number of requests in the queue and the model.", **own).labels(
            *self._labels
        )
        self.samples = Gauge(
            "fettle_server_samples", "Number of items kept for comparison with a canary.", **own
        ).labels(*self._labels)
        self._compared = Counter(
            "fettle_server_compared_items",
            "Number of items compared with the stable revision: agreed, disagreed, or unsure (stable was unsure of its own answer).",
            (*LABELS, "outcome"),
            registry=self.registry,
        )
        self.logged_items = Counter(
            "fettle_server_logged_items", "Number of items written to the request log.", **own
        ).labels(*self._labels)
        self.request_log_failures = Counter(
            "fettle_server_request_log_failures",
            "Number of files of the request log that could not be written. Their items are lost.",
            **own,
        ).labels(*self._labels)
        self._refused_tokens = Counter(
            "fettle_server_refused_tokens", "Number of requests with a missing or unknown token.", **own
        ).labels(*self._labels)
        self._gpu_free = Gauge("fettle_server_gpu_memory_free_bytes", "Free memory of the GPU, in bytes.", **own)
        self._gpu_total = Gauge("fettle_server_gpu_memory_bytes", "Memory of the GPU, in bytes.", **own)
        self._replays = Counter(
            "fettle_server_replay_seconds", "Time spent on replaying the stable revision's items, in seconds.", **own
        ).labels(*self._labels)

        self._certificate = Gauge(
            "fettle_server_certificate_expiration_timestamp_seconds",
            "Time at which the certificate of the TLS Secret expires, in seconds since the epoch. Only with TLS.",
            **own,
        )

    def certificate(self, expires: Callable[[], float]) -> None:
        """Say when the certificate expires: `expires` returns it in seconds since the epoch."""
        self._certificate.labels(*self._labels).set_function(expires)

    def _histogram(self, name: str, documentation: str, bounds: tuple[float, ...]) -> Histogram:
        made = Histogram(name, documentation, bounds, self._labels)
        self.registry.register(made)
        return made

    def watch_gpu(self, memory: Callable[[], tuple[int, int]]) -> None:
        """Show what `memory` says at each scrape: bytes that are free, and all. NaN while it fails."""

        def shown(place: int) -> Callable[[], float]:
            def ask() -> float:
                try:
                    return float(memory()[place])
                except RuntimeFailure:
                    return math.nan

            return ask

        self._gpu_free.labels(*self._labels).set_function(shown(0))
        self._gpu_total.labels(*self._labels).set_function(shown(1))

    def ran(self, items: int, seconds: float) -> None:
        """Count a run of the model."""
        self._items.observe(items)
        self._runs.observe(seconds)

    def waited(self, seconds: float) -> None:
        """Count the wait of a request for its run."""
        self._queue.observe(seconds)

    def compare(self, outcome: Outcome | None, seconds: float) -> None:
        """Count a replay; None: it was interrupted."""
        self._replays.inc(seconds)
        if outcome is not None:
            self._compared.labels(*self._labels, outcome.value).inc()

    def refuse(self, code: Code) -> None:
        """Count a request that was not let in."""
        self.count(code)
        if code is Code.UNAUTHENTICATED:
            self._refused_tokens.inc()

    def text(self) -> bytes:
        """The metrics in Prometheus' text form."""
        return generate_latest(self.registry)

    def families(self) -> list[Metric]:
        """The metrics as they are now."""
        return list(self.registry.collect())


class Sum(Collector):
    """The metrics of a pod whose processes count separately: `parts` are those of each process."""

    def __init__(self, parts: Iterable[Iterable[Metric]]) -> None:
        self._families: dict[str, Metric] = {}
        values: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[float]] = {}
        for metric in chain.from_iterable(parts):
            self._families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                values.setdefault((metric.name, sample.name, tuple(sample.labels.items())), []).append(sample.value)
        for (family, name, labels), found in values.items():
            # A counter is complete from when on the last of its parts began.
            how: Callable[[list[float]], float] = max if name.endswith("_created") else _NO_SUMS.get(family, sum)
            self._families[family].add_sample(name, dict(labels), how(found))

    def collect(self) -> Iterator[Metric]:
        """The sums."""
        yield from self._families.values()

    def text(self) -> bytes:
        """In Prometheus' text form."""
        return generate_latest(self)
