"""What the management port tells of: one process here, and in `pod_state` all processes that share the ports of the inference protocol."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from prometheus_client.core import Metric

from fettle.api.window import WindowsHead, written
from fettle.server import logs
from fettle.server.drift import Counted
from fettle.server.replay import Replay
from fettle.server.samples import SamplesHead, pack
from fettle.server.service import InferenceService


class Condition(StrEnum):
    """Whether requests should come. The value is what a probe is told."""

    LOADING = "the model is loading"
    READY = "ready"
    DRAINING = "draining"


class NotTold(Exception):
    """A process does not say what it has counted; the message says why."""


class State(Protocol):
    """What the management port tells. `metrics`, `window` and `samples` are only called once the model is loaded, and raise NotTold."""

    @property
    def condition(self) -> Condition:
        """Whether requests should come."""

    def silence(self) -> float:
        """Seconds since an event loop that answers requests turned last."""

    async def metrics(self) -> bytes:
        """The metrics in Prometheus' text form."""

    async def window(self, since: float) -> bytes:
        """The seconds from `since` on, as api/window.py has them."""

    async def samples(self, most: int) -> bytes:
        """At most so many samples, which are handed out with it."""

    async def set_level(self, level: str) -> None:
        """Change what is logged. Raises ValueError."""


@dataclass(frozen=True)
class ProcessWindow:
    """The windows of one process: its seconds as JSON, and what drift is computed from."""

    head: WindowsHead
    seconds: list[bytes]
    drift: Counted | None


class ProcessState:
    """This process. `service` and `replay` are None until the model is loaded and warmed up.

    `beat` is called by the data port's event loop each second: a process is live while that loop turns.
    """

    def __init__(self) -> None:
        self.service: InferenceService | None = None
        self.replay: Replay | None = None
        self._beaten_at = time.monotonic()

    def beat(self) -> None:
        """The data port's event loop turns."""
        self._beaten_at = time.monotonic()

    def silence(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._beaten_at

    @property
    def condition(self) -> Condition:
        """Whether requests should come."""
        if self.service is None:
            return Condition.LOADING
        return Condition.DRAINING if self.service.draining else Condition.READY

    async def metrics(self) -> bytes:
        """The metrics in Prometheus' text form."""
        return self._loaded().metrics.text()

    async def window(self, since: float) -> bytes:
        """The seconds from `since` on."""
        told = self.told_window(since)
        drift = told.drift.window() if told.drift is not None else None
        return written(told.head.model_copy(update={"drift": drift}), told.seconds)

    async def samples(self, most: int) -> bytes:
        """At most so many samples, which are handed out with it."""
        return self.told_samples(most)[1]

    async def set_level(self, level: str) -> None:
        """Change what is logged. Raises ValueError."""
        logs.set_level(level)

    # ------------------------------------------------------------------------------ what is summed over a pod's processes

    def told_metrics(self) -> tuple[list[Metric], Counted | None]:
        """The metrics, and what drift is computed from."""
        service = self._loaded()
        return service.metrics.families(), service.drift.counted() if service.drift is not None else None

    def told_window(self, since: float) -> ProcessWindow:
        """The seconds from `since` on."""
        service = self._loaded()
        head, seconds = service.windows.since(since)
        if self.replay is not None:
            head = head.model_copy(update={"agreement": self.replay.state()})
        return ProcessWindow(head, seconds, service.drift.counted() if service.drift is not None else None)

    def told_samples(self, most: int) -> tuple[int, bytes]:
        """At most so many samples, which are handed out with it; and how many they are."""
        service, manifest = self._loaded(), self._loaded().model.manifest
        head = SamplesHead(
            revision=service.settings.revision, signature=manifest.signature, comparisons=manifest.comparisons
        )
        taken = service.samples.take(most)
        return len(taken), pack(head, taken)

    def _loaded(self) -> InferenceService:
        if self.service is None:
            raise NotTold(Condition.LOADING)
        return self.service
