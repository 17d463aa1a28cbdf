"""A ring of one-second windows: requests, errors, latency buckets, comparisons. What the rollout's analysis reads."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fettle.store.comparison import Outcome

BUCKET_BASE = 0.05  # milliseconds; bucket 0 holds everything faster
BUCKET_RATIO = 1.05  # so a percentile is off by at most 5 %
_LOG_RATIO = math.log(BUCKET_RATIO)


def bucket(milliseconds: float) -> int:
    """Smallest index i with milliseconds <= BUCKET_BASE * BUCKET_RATIO**i."""
    if milliseconds <= BUCKET_BASE:
        return 0
    return math.ceil(math.log(milliseconds / BUCKET_BASE) / _LOG_RATIO - 1e-9)


@dataclass
class Window:
    """One second."""

    second: int
    requests: int = 0
    errors: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    buckets: Counter[int] = field(default_factory=Counter)


class Windows:
    """The last `keep` seconds. Called from one thread (the event loop's)."""

    def __init__(self, keep: int = 900, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._windows: deque[Window] = deque(maxlen=keep)
        self.start = clock()

    def record(self, milliseconds: float, *, error: bool) -> None:
        """Count one answer; `error`: the model failed to give it (5xx)."""
        window = self._current()
        window.requests += 1
        window.errors += error
        if not error:  # how fast a failure came says nothing of the model: buckets hold what it answered
            window.buckets[bucket(milliseconds)] += 1

    def compare(self, outcome: Outcome) -> None:
        """Count one item on which this pod was compared with the stable revision."""
        self._current().outcomes[outcome] += 1

    def _current(self) -> Window:
        second = int(self._clock())
        if not self._windows or self._windows[-1].second < second:
            self._windows.append(Window(second))
        return self._windows[-1]

    def since(self, second: float) -> dict[str, Any]:
        """The whole seconds from `second` on, with the process's start time; a second that is not over yet is left out."""
        now = self._clock()
        return {
            "start": self.start,
            "now": now,
            "bucketBase": BUCKET_BASE,
            "bucketRatio": BUCKET_RATIO,
            "windows": [
                {
                    "second": window.second,
                    "requests": window.requests,
                    "errors": window.errors,
                    "outcomes": {outcome.value: count for outcome, count in window.outcomes.items()},
                    "buckets": {str(index): count for index, count in window.buckets.items()},
                }
                for window in self._windows
                if second <= window.second < int(now)
            ],
        }
