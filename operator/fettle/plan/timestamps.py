"""Moments as status keeps them: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def write(moment: datetime) -> str:
    """`moment` as text; fractions of a second are cut off, so that what is read back is never in the future."""
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def read(text: str | None) -> datetime | None:
    """The moment in `text`, in UTC, or None where there is none, or it is no RFC 3339 or lies beyond all years."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
