"""Every Prometheus metric of the operator and of the server, from their registries."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from fettle.api.signature import Signature
from fettle.controller import metrics as operator
from fettle.server.drift import Drift
from fettle.server.metrics import Histogram, Metrics, Requests
from fettle.store.profile import Profile
from tools.docs.markdown import code, generated, table

HEAD = ("metric", "type", "labels", "meaning")


def page() -> str:
    """The metrics reference."""
    return "\n".join(
        [
            generated("controller/metrics.py and server/metrics.py"),
            "# Metrics\n",
            "The operator and the serving pods expose Prometheus metrics on `/metrics`. If the Prometheus operator is installed, the Helm",
            "values `metrics.serviceMonitor.enabled` and `metrics.podMonitor.enabled` create a ServiceMonitor for the operator and a",
            "PodMonitor for serving pods.\n",
            "## Operator\n",
            "Port `http` (8080) of the operator's pods and of the Service `<release>-metrics`. The standard `process_`, `python_info` and",
            "`python_gc_` metrics are also exposed.\n",
            table(HEAD, _rows(operator.REGISTRY)),
            "## Server\n",
            "Port `management` (8081) of serving pods. `model` is the ModelDeployment, and `revision` is the hash in `kubectl get mdep`.\n",
            table(HEAD, _rows(_server())),
        ]
    )


def _server() -> CollectorRegistry:
    """The server's, of a model with a profile."""
    registry = Metrics("", "").registry
    registry.register(Drift(Profile(), Signature(inputs=(), outputs=()), ("", "")))
    return registry


def _rows(registry: CollectorRegistry) -> Iterator[tuple[str, ...]]:
    """A row for each metric of ours, in the order of its name."""
    for name, kind, labels, documentation in sorted(_metrics(registry)):
        shown = f"{name}_total" if kind == "counter" else name
        yield code(shown), kind, " ".join(code(label) for label in labels), documentation


def _metrics(registry: CollectorRegistry) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name, type, labels and documentation of each metric of ours."""
    # No public way leads from a registry to the labels of metrics that have not been counted yet.
    for collector in {*registry._collector_to_names}:
        if isinstance(collector, MetricWrapperBase):
            yield collector._name, str(collector._type), tuple(collector._labelnames), collector._documentation
        elif isinstance(collector, Histogram | Requests):
            (family,) = collector.describe()
            yield collector.name, family.type, collector.label_names, collector.documentation
        elif isinstance(collector, Drift):
            for gauge in collector.describe():
                yield gauge.name, gauge.type, tuple(gauge._labelnames), gauge.documentation
