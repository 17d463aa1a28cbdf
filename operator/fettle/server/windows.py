"""One-second windows: requests, errors, latency buckets, comparisons. What the rollout's analysis reads."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fettle.api.window import BUCKET_BASE, BUCKET_RATIO, Outcomes, Window, WindowsHead
from fettle.store.comparison import Outcome

KEEP_SECONDS = 7 * 3600  # six intervals of an hour, which an analysis may ask for, and one in which it may be late
# 600 bytes a second, which is 60 different latencies; a pod that needs more forgets earlier, and says so.
MOST_BYTES = 16 << 20
STEP_SECONDS = 1.0  # by which a clock that is set differs from one that is slowed or sped up
LAST_BUCKET = 500  # half a million seconds
_BOUNDS = [BUCKET_BASE * BUCKET_RATIO**index * (1 + 1e-12) for index in range(LAST_BUCKET)]


def bucket(milliseconds: float) -> int:
    """Smallest index i with milliseconds <= BUCKET_BASE * BUCKET_RATIO**i."""
    return bisect_left(_BOUNDS, milliseconds)


@dataclass
class _Counts:
    """The second that goes on."""

    second: int
    requests: int = 0
    errors: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    buckets: Counter[int] = field(default_factory=Counter)

    def told(self) -> bytes:
        """As the operator reads it."""
        outcomes = Outcomes(**{outcome.value: count for outcome, count in self.outcomes.items()})
        return Window(
            second=self.second,
            requests=self.requests,
            errors=self.errors,
            outcomes=outcomes,
            buckets=dict(self.buckets),
        ).written()


class Windows:
    """The seconds in which something happened, as far back as an analysis may ask. Callable from several threads.

    A second that is over is kept as the JSON that tells it, so that the bound on what is kept bounds the answer as well, and an answer
    of hours is put together at once. The clock is the machine's, and a step of it is a new beginning: seconds told by the old one
    have no place on the new one.
    """

    def __init__(
        self,
        keep: int = KEEP_SECONDS,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep, self._most_bytes = keep, most_bytes
        self._clock, self._ticks = clock, ticks
        self._lock = threading.Lock()
        self._over: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._current: _Counts | None = None
        self._offset = clock() - ticks()
        self._began = ticks()
        self._kept = self._now()

    def record(self, milliseconds: float, *, error: bool) -> None:
        """Count one answer; `error`: the model failed to give it (5xx)."""
        with self._lock:
            window, now = self._current, self._ticks() + self._offset
            # Most of the time it still is the second that it was.
            if window is None or now >= window.second + 1 or abs(self._clock() - now) > STEP_SECONDS:
                window = self._window()
            window.requests += 1
            window.errors += error
            if not error:  # how fast a failure came says nothing of the model: buckets hold what it answered
                window.buckets[bucket(milliseconds)] += 1

    def compare(self, outcome: Outcome) -> None:
        """Count one item on which this pod was compared with the stable revision."""
        with self._lock:
            self._window().outcomes[outcome] += 1

    def since(self, second: float) -> tuple[WindowsHead, list[bytes]]:
        """When this process began, what time it is, and from when on every second is known; and, each as JSON, the whole seconds from
        `second` on in which something happened. A second that is not over yet is left out. At most MOST_BYTES and some."""
        with self._lock:
            now = self._turn()
            head = WindowsHead(
                start=self._began + self._offset,
                kept=self._kept,
                now=now,
                bucket_base=BUCKET_BASE,
                bucket_ratio=BUCKET_RATIO,
            )
            return head, [told for at, told in self._over if at >= second]

    def _now(self) -> float:
        """The time, by a clock that only moves forward unless the machine's is set."""
        offset = self._clock() - self._ticks()
        if abs(offset - self._offset) > STEP_SECONDS:
            self._over.clear()
            self._bytes, self._current, self._offset = 0, None, offset
            self._kept = self._ticks() + offset
        return self._ticks() + self._offset

    def _turn(self) -> float:
        """Put the current second away once it is over; forget what is too old, or too much."""
        now = self._now()
        if self._current is not None and self._current.second < int(now):
            told = self._current.told()
            self._over.append((self._current.second, told))
            self._bytes += len(told)
            self._current = None
        while self._over and (self._over[0][0] < int(now) - self._keep or self._bytes > self._most_bytes):
            second, told = self._over.popleft()
            self._bytes -= len(told)
            self._kept = max(self._kept, second + 1)
        return now

    def _window(self) -> _Counts:
        second = int(self._turn())
        if self._current is None:
            self._current = _Counts(second)
        return self._current
