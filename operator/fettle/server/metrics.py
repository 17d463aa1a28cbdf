"""Prometheus metrics of the server."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fettle.server.request import Code
from fettle.store.comparison import Outcome

LABELS = ("model", "revision")
_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The server's own registry: requests by code, latency, queue and inference."""

    def __init__(self, model: str, revision: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = (model, revision)
        per_code, per_outcome = ((*LABELS, label) for label in ("code", "outcome"))
        own: dict[str, Any] = {"labelnames": LABELS, "registry": self.registry}
        self._requests = Counter(
            "fettle_server_requests",
            "Number of requests by outcome, as an HTTP status code, over all protocols.",
            per_code,
            registry=self.registry,
        )
        self.latency = Histogram(
            "fettle_server_request_seconds",
            "Time that an infer request spends in the server, in seconds.",
            buckets=_LATENCY,
            **own,
        ).labels(*self._labels)
        self.inference = Histogram(
            "fettle_server_inference_seconds",
            "Time that an infer request spends in the queue and the model, in seconds.",
            buckets=_LATENCY,
            **own,
        ).labels(*self._labels)
        self.waiting = Gauge("fettle_server_waiting", "Number of requests in the queue and the model.", **own).labels(
            *self._labels
        )
        self.samples = Gauge(
            "fettle_server_samples", "Number of items kept for comparison with a canary.", **own
        ).labels(*self._labels)
        self._compared = Counter(
            "fettle_server_compared_items",
            "Number of items compared with the stable revision: agreed, disagreed, or unsure (stable was not confident).",
            per_outcome,
            registry=self.registry,
        )
        self._replays = Counter(
            "fettle_server_replay_seconds", "Time spent on replaying the stable revision's items, in seconds.", **own
        ).labels(*self._labels)
        self._codes: dict[Code, Counter] = {}

    def compare(self, outcome: Outcome | None, seconds: float) -> None:
        """Count a replay; None: it was interrupted."""
        self._replays.inc(seconds)
        if outcome is not None:
            self._compared.labels(*self._labels, outcome.value).inc()

    def count(self, code: Code) -> None:
        """Count a request that came through a front."""
        counter = self._codes.get(code)
        if counter is None:
            counter = self._codes[code] = self._requests.labels(*self._labels, code.value)
        counter.inc()

    def text(self) -> bytes:
        """The metrics in Prometheus' text form."""
        return generate_latest(self.registry)
