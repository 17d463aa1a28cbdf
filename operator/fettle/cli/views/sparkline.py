"""Small charts made of characters: the history of a figure, and the parts of a whole."""

from __future__ import annotations

from collections.abc import Sequence

LEVELS = "▁▂▃▄▅▆▇█"
GAP = "·"  # nothing was measured
BAR = 20  # letters


def sparkline(values: Sequence[float | None], bound: float | None = None) -> str:
    """One character per value, on a scale from the smallest to the largest value, including `bound`."""
    known = [value for value in (*values, bound) if value is not None]
    if not known:
        return GAP * len(values)
    low, span = min(known), max(known) - min(known)
    return "".join(GAP if value is None else LEVELS[_level((value - low) / span if span else 0.5)] for value in values)


def _level(share: float) -> int:
    return min(int(share * len(LEVELS)), len(LEVELS) - 1)


def bar(percent: float) -> tuple[str, str]:
    """The filled and the empty part of a bar."""
    filled = round(BAR * min(max(percent, 0), 100) / 100)
    return "━" * filled, "─" * (BAR - filled)
