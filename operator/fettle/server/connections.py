"""Connections grow old: kube-proxy balances connections, not requests, so one that lives for ever would never meet the canary."""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

JITTER = 0.25  # so that connections opened together do not end together
MOST_KNOWN = 1 << 14  # beyond it the one that was silent longest is forgotten: it begins anew if it is still there


@dataclass(slots=True)
class _Connection:
    requests_left: int
    ends_at: float
    seen_at: float


class Connections:
    """Says for each answer whether its connection should end. A connection is told by the client's address and port."""

    def __init__(
        self,
        max_requests: int,
        max_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._max_requests, self._max_seconds = max_requests, max_seconds
        self._silence = 2 * max_seconds  # after which one is gone: clients that hung up are not reported
        self._clock, self._random = clock, rng or random.Random()
        self._open: OrderedDict[str, _Connection] = OrderedDict()  # the one that was silent longest first

    def should_close(self, client: str) -> bool:
        """Count one answer on `client`'s connection; True = answer with `Connection: close`."""
        now = self._clock()
        known = self._open.get(client)
        if known is None or known.seen_at <= now - self._silence:
            known = self._begun(client, now)
        known.requests_left -= 1
        known.seen_at = now
        self._open.move_to_end(client)
        if known.requests_left > 0 and now < known.ends_at:
            return False
        del self._open[client]
        return True

    def _begun(self, client: str, now: float) -> _Connection:
        self._sweep(now)
        requests = max(1, round(self._max_requests * self._jitter()))
        self._open[client] = begun = _Connection(requests, now + self._max_seconds * self._jitter(), now)
        return begun

    def _jitter(self) -> float:
        return 1 + JITTER * (2 * self._random.random() - 1)

    def _sweep(self, now: float) -> None:
        while self._open:
            first = next(iter(self._open.values()))
            if first.seen_at > now - self._silence and len(self._open) < MOST_KNOWN:
                return
            self._open.popitem(last=False)
