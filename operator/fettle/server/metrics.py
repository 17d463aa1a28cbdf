"""Prometheus metrics of the server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fettle.store.comparison import Outcome

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The server's own registry: requests by code, latency, queue and inference."""

    def __init__(self, model: str, revision: str) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "fettle_server_requests", "Answers by HTTP status.", ["model", "revision", "code"], registry=self.registry
        )
        self._labels = (model, revision)
        self.latency = Histogram(
            "fettle_server_request_seconds",
            "Time of an infer request in the server.",
            ["model", "revision"],
            buckets=_LATENCY,
            registry=self.registry,
        ).labels(model, revision)
        self.inference = Histogram(
            "fettle_server_inference_seconds",
            "Time of an infer request in queue and model.",
            ["model", "revision"],
            buckets=_LATENCY,
            registry=self.registry,
        ).labels(model, revision)
        self.waiting = Gauge(
            "fettle_server_waiting", "Requests in queue and model.", ["model", "revision"], registry=self.registry
        ).labels(model, revision)
        self.samples = Gauge(
            "fettle_server_samples",
            "Items kept for canaries to compare with.",
            ["model", "revision"],
            registry=self.registry,
        ).labels(model, revision)
        self._compared = Counter(
            "fettle_server_compared_items",
            "Items on which this pod was compared with the stable revision: agreed, disagreed, or unsure (stable was).",
            ["model", "revision", "outcome"],
            registry=self.registry,
        )
        self._replays = Counter(
            "fettle_server_replay_seconds",
            "Time spent on answering the stable revision's items again.",
            ["model", "revision"],
            registry=self.registry,
        ).labels(model, revision)
        self._codes: dict[int, Counter] = {}

    def compare(self, outcome: Outcome | None, seconds: float) -> None:
        """Count a replay; None: it was interrupted."""
        self._replays.inc(seconds)
        if outcome is not None:
            self._compared.labels(*self._labels, outcome.value).inc()

    def count(self, status: int) -> None:
        """Count an answer of the data port."""
        counter = self._codes.get(status)
        if counter is None:
            counter = self._codes[status] = self._requests.labels(*self._labels, str(status))
        counter.inc()

    def text(self) -> bytes:
        """The metrics in Prometheus' text form."""
        return generate_latest(self.registry)
