"""Times as status keeps them: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def write(time: datetime) -> str:
    """`time` as text; fractions of a second are cut off, so that what is read back is never in the future."""
    return time.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def read(text: str | None) -> datetime | None:
    """The time in `text`, in UTC, or None where there is none, or it is no RFC 3339 or lies beyond all years."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo is not None else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
