"""Kubernetes Events as the plan asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from fettle.api.reasons import Reason


@dataclass(frozen=True)
class EventDraft:
    """An Event to emit once: type Normal or Warning."""

    type: str
    reason: Reason
    message: str
