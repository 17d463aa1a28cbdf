"""How much each client may hold of what all of them share: places, bytes, streams. No limit has to be set for that.

A client may hold three times what it leaves free, and one in any case. So one alone may have three quarters, since it may be an ingress with
everybody behind it, and whoever comes next finds room all the same. (The dynamic thresholds of shared-memory switches: Choudhury and Hahne,
IEEE/ACM Transactions on Networking 6(2), 1998.)
"""

from __future__ import annotations

from collections.abc import Callable

from fettle.server.request import Code, RequestError

TIMES = 3
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


class Shares:
    """What each client holds. Used by one event loop only.

    `what`: what a client with too much holds, as a sentence with `{held}`. `alone`: how a request ends whose client shares with nobody; a queue that
    is full of an ingress's requests is as full as any other. `unread`: of the error.
    """

    def __init__(self, what: str, alone: Code = Code.LIMITED, *, unread: bool = False) -> None:
        self._what, self._alone, self._unread = what, alone, unread
        self._held: dict[str, int] = {}

    def take(self, client: str, amount: int, free: int) -> None:
        """`free`: what was left before. Raises RequestError LIMITED, or as `alone`, for more than the client's share."""
        held = self._held.get(client, 0)
        if not fits(held + amount, free - amount):
            code = self._alone if self._held.keys() <= {client} else Code.LIMITED
            raise refusal(code, self._what.format(held=held), unread=self._unread)
        self._held[client] = held + amount

    def give(self, client: str, amount: int) -> None:
        """The client holds so much less."""
        left = self._held.get(client, 0) - amount
        if left > 0:
            self._held[client] = left
        else:
            self._held.pop(client, None)
