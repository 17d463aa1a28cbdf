"""How much each client may hold of what all of them share: places, bytes, streams. No limit has to be set for that.

A client may hold three times what it leaves free, and one in any case. So one alone may have three quarters, since it may be an ingress with
everybody behind it, and whoever comes next finds room all the same. (The dynamic thresholds of shared-memory switches: Choudhury and Hahne,
IEEE/ACM Transactions on Networking 6(2), 1998.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from fettle.server.request import Code, RequestError

TIMES = 3
_EACH, _LOOK_SECONDS = 32, 1.0  # whose client is looked up: one request in so many, and at least one in so long
_REMEMBERED, _LATELY_SECONDS = 64, 10.0
Who = Callable[[], str]  # the client of a request: its token's name, or else its address. Called only where it matters


def nobody() -> str:
    """The client of a request of which nobody told where it came from."""
    return ""


def fits(held: int, free: int) -> bool:
    """Whether a client may hold so much where it leaves so much free."""
    return held <= max(1, TIMES * free)


def most_of(total: int) -> int:
    """How much of so much a client may hold that is alone."""
    return max(1, total * TIMES // (TIMES + 1))


def total_for(most: int) -> int:
    """The least of which a client that is alone may hold so much."""
    return -(-most * (TIMES + 1) // TIMES)


def refusal(code: Code, what: str, *, unread: bool = False) -> RequestError:
    """The error for a client that holds its share already. `what`: what it holds, as a sentence."""
    message = f"{what}, and the rest is kept for other clients: try again later"
    return RequestError(code, message, unread=unread, retry_after=1)


class Crowd:
    """Who has asked lately: a sample, since looking up a client costs as much as a tenth of a small request. Used by one event loop only."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._asked, self._next = clock, 0, 0.0
        self._seen: deque[tuple[float, str]] = deque(maxlen=_REMEMBERED)

    def note(self, who: Who, now: float) -> None:
        """A client asks. `now`: by the clock."""
        self._asked += 1
        if not self._asked % _EACH or now >= self._next:
            self._next = now + _LOOK_SECONDS
            self._seen.append((now, who()))

    def is_only(self, client: str) -> bool:
        """Whether nobody else has asked in the last ten seconds, as far as is known."""
        since = self._clock() - _LATELY_SECONDS
        return not any(other != client and at >= since for at, other in self._seen)


class Slots:
    """Places that requests have for a short time. Whose each is, is looked up only where most of them are taken, and once, since there are many.
    Used by one event loop only.

    `nouns` are `doing` what they have places for, as errors say. With a `crowd`, a client that is alone may have all. `unread`: of the errors.
    `taken`: a table of who has one that somebody else keeps.
    """

    def __init__(
        self,
        most: int,
        nouns: str,
        doing: str,
        *,
        crowd: Crowd | None = None,
        unread: bool = False,
        taken: dict[Any, Any] | None = None,
    ) -> None:
        self._most, self._plenty = most, most_of(most)  # of so many, all may be one client's
        self._nouns, self._doing, self._crowd, self._unread = nouns, doing, crowd, unread
        self._taken: dict[Any, Who | str] = {} if taken is None else taken

    def require(self, who: Who) -> None:
        """Raises RequestError UNAVAILABLE where all are taken, LIMITED where this client would have more than its share."""
        if len(self._taken) >= self._plenty:
            self._require_share(who)

    def take(self, slot: Any, who: Who) -> None:
        """A request has this `slot` until it gives it back. Raises RequestError as `require`."""
        self.require(who)
        self._taken[slot] = who

    def give(self, slot: Any) -> None:
        """The slot is free."""
        del self._taken[slot]

    def _require_share(self, who: Who) -> None:
        taken = len(self._taken)
        if taken >= self._most:
            raise RequestError(
                Code.UNAVAILABLE, f"{taken} {self._nouns} are already {self._doing}", unread=self._unread
            )
        client = who()
        held, alone = self._held_by(client), self._crowd is not None and self._crowd.is_only(client)
        if not alone and not fits(held + 1, self._most - taken - 1):
            what = f"{held} {self._nouns} of this client are already {self._doing}"
            raise refusal(Code.LIMITED, what, unread=self._unread)

    def _held_by(self, client: str) -> int:
        held = 0
        for slot, other in self._taken.items():
            self._taken[slot] = known = other if isinstance(other, str) else other()
            held += known == client
        return held


class Shares:
    """What each client holds. Used by one event loop only.

    `what`: what a client with too much holds, as a sentence with `{held}`. `alone`: how a request ends whose client is the only one of the `crowd`; a
    queue that is full of an ingress's requests is as full as any other. `unread`: of the error.
    """

    def __init__(
        self, what: str, alone: Code = Code.LIMITED, *, crowd: Crowd | None = None, unread: bool = False
    ) -> None:
        self._what, self._alone, self._unread, self._crowd = what, alone, unread, crowd or Crowd()
        self._held: dict[str, int] = {}

    def take(self, client: str, amount: int, free: int) -> None:
        """`free`: what was left before. Raises RequestError LIMITED, or as `alone`, for more than the client's share."""
        held = self._held.get(client, 0)
        if not fits(held + amount, free - amount):
            alone = self._held.keys() <= {client} and self._crowd.is_only(client)
            code = self._alone if alone else Code.LIMITED
            raise refusal(code, self._what.format(held=held), unread=self._unread)
        self._held[client] = held + amount

    def give(self, client: str, amount: int) -> None:
        """The client holds so much less."""
        left = self._held.get(client, 0) - amount
        if left > 0:
            self._held[client] = left
        else:
            self._held.pop(client, None)


class Places:
    """Places that clients have for longer. Used by one event loop only. `nouns` and `doing` as of `Slots`; `alone` and `crowd` as of `Shares`."""

    def __init__(
        self, most: int, nouns: str, doing: str, alone: Code = Code.LIMITED, *, crowd: Crowd | None = None
    ) -> None:
        self.taken = 0
        self._most, self._full = most, f"{nouns} are already {doing}"
        self._shares = Shares(f"{{held}} {nouns} of this client are already {doing}", alone, crowd=crowd)

    def take(self, client: str) -> None:
        """Raises RequestError UNAVAILABLE where all are taken; LIMITED, or as `alone`, where the client has its share."""
        if self.taken >= self._most:
            raise RequestError(Code.UNAVAILABLE, f"{self.taken} {self._full}")
        self._shares.take(client, 1, self._most - self.taken)
        self.taken += 1

    def give(self, client: str) -> None:
        """One of the client's is free."""
        self.taken -= 1
        self._shares.give(client, 1)
