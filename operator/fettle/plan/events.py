"""Kubernetes Events as the plan asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from fettle.api.reasons import Reason


@dataclass(frozen=True)
class EventDraft:
    """An Event to emit once: type Normal or Warning.

    `occurrence` distinguishes it from an earlier Event with the same message, for example by a command's token. It is not shown.
    """

    type: str
    reason: Reason
    message: str
    occurrence: str = ""
