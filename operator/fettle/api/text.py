"""Text within bounds: what a person is told must fit where Kubernetes and the API keep it."""

from __future__ import annotations

CONDITION_LIMIT = 2048  # bytes of a condition's message; Kubernetes' own would be 32768, which nobody reads
EVENT_LIMIT = 1024  # bytes of an Event's message; the API server refuses more
MESSAGE_LIMIT = 512  # bytes of every other message: candidates, terminations, analysis
MARK = " … "


def clip(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """`text` in at most `limit` bytes of UTF-8. Too long, it loses its middle: what happened stands at the beginning of an
    error, and its cause at the end."""
    data = text.encode()
    if len(data) <= limit:
        return text
    room = limit - len(MARK.encode())
    tail = room // 3
    head = data[: room - tail].decode(errors="ignore").rstrip()
    return f"{head}{MARK}{data[-tail:].decode(errors='ignore').lstrip()}"
