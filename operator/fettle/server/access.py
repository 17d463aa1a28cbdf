"""Who may ask, and how much: bearer tokens of a mounted Secret or of Kubernetes, and each client's own bounds of rate and concurrency."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from fettle.errors import UsageError
from fettle.server import proxies
from fettle.server.mounted import RENEW_SECONDS, MountedFolder
from fettle.server.request import Code, RequestError
from fettle.server.reviews import Reviews, digest_of
from fettle.server.settings import ServerSettings

log = logging.getLogger(__name__)

SCHEME = "bearer"
MOST_CLIENTS = 4096  # whose rate is remembered; beyond, the one that was silent longest begins anew
MOST_TOKEN_BYTES = 1 << 20  # of a client; Kubernetes holds no more in a whole Secret


class Tokens:
    """The tokens of a mounted Secret: each key is a client's name, each line of its value one of its tokens.

    Several lines let a client go from one token to the next while both are valid.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises UsageError where there is none."""
        self._mounted, self._clock = MountedFolder(folder), clock
        self._mounted.changed()
        self._names: dict[bytes, str] = {}
        self._names = self._read()
        self._next_look = clock() + RENEW_SECONDS
        if not self._names:
            raise UsageError(f"no token in {folder}: expected a Secret with a key for each client, its value a token")

    def name(self, token: str) -> str | None:
        """Whose token it is; None for one that nobody has."""
        self._look()
        return self._names.get(digest_of(token))

    def _look(self) -> None:
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + RENEW_SECONDS
        if self._mounted.changed():
            self._names = self._read()
            log.info("tokens reloaded: %d clients", len(set(self._names.values())))

    def _read(self) -> dict[bytes, str]:
        """What is there now; where it cannot be read, what was known before: a file that is exchanged meanwhile shuts nobody out."""
        names: dict[bytes, str] = {}
        try:
            for path in self._mounted.folder.iterdir():
                if not path.name.startswith(".") and path.is_file():
                    lines = path.read_bytes()[:MOST_TOKEN_BYTES].splitlines()
                    names |= {digest_of(line.strip()): path.name for line in lines if line.strip()}
        except OSError as error:
            self._mounted.forget()
            log.error("the tokens in %s could not be read: %s", self._mounted.folder, error)
            return self._names
        return names


def bearer(authorization: str | None) -> str | None:
    """The token of a header `Authorization: Bearer TOKEN`."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() if scheme.lower() == SCHEME else None


class _Client:
    """What a client has under way, and how many requests it may begin now."""

    __slots__ = ("allowed", "at", "running")

    def __init__(self, allowed: float, now: float) -> None:
        self.running, self.allowed, self.at = 0, allowed, now


class Access:
    """Lets requests in. Used by one event loop only."""

    def __init__(self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises UsageError where tokens are asked for and there is none."""
        self._tokens = Tokens(settings.tokens_folder, clock) if settings.tokens_folder is not None else None
        self._reviews = Reviews(settings, clock=clock) if settings.token_review_folder is not None else None
        self._rate, self._most = settings.client_max_requests_per_second, settings.client_max_concurrent
        self._burst = max(self._rate or 0.0, 1.0)
        self._clients: OrderedDict[str, _Client] = OrderedDict()  # the one that was silent longest first
        self._clock = clock
        self._trusted = settings.trusted_proxies
        self.limits = self._rate is not None or self._most is not None
        self._guarded = self._tokens is not None or self._reviews is not None
        self.open = not self._guarded and not self.limits  # nobody is asked for anything

    def client(self, name: str | None, told: str, forwarded: Callable[[], Sequence[str]]) -> str:
        """Who sent a request: the `name` under which it was let in, or else the address, or of IPv6 the network, behind the connection that is
        `told` as address:port. `forwarded`: the values of X-Forwarded-For.
        """
        if name is not None:
            return name
        address = proxies.client(told, forwarded(), self._trusted) if self._trusted else proxies.host(told)
        return proxies.identity(address)

    async def identify(self, authorization: str | None, address: str) -> str:
        """Who asks: the name of its token, or else its `address`.

        Raises RequestError UNAUTHENTICATED, or UNAVAILABLE where nobody can say whose token it is.
        """
        if not self._guarded:
            return address
        token = bearer(authorization)
        name = await self._name(token) if token else None
        if name is None:
            unknown = "one that is not known" + (", or whose user is not allowed" if self._reviews is not None else "")
            found = unknown if authorization else "no token"
            raise RequestError(
                Code.UNAUTHENTICATED,
                f"expected a token for this model (Authorization: Bearer …), found {found}",
                unread=True,
            )
        return name

    async def _name(self, token: str) -> str | None:
        name = self._tokens.name(token) if self._tokens is not None else None
        if name is None and self._reviews is not None:
            return await self._reviews.name(token)
        return name

    def enter(self, client: str) -> None:
        """A request of `client` begins; `leave` when it is over. Raises RequestError LIMITED."""
        if not self.limits:
            return
        now = self._clock()
        known = self._known(client, now)
        if self._rate is not None:
            known.allowed = min(self._burst, known.allowed + (now - known.at) * self._rate)
            known.at = now
            if known.allowed < 1:
                wait = math.ceil((1 - known.allowed) / self._rate)
                raise _limited(f"at most {self._rate:g} requests a second", wait)
        if self._most is not None and known.running >= self._most:
            raise _limited(f"at most {self._most} requests at the same time", 1)
        known.allowed -= 1
        known.running += 1

    def leave(self, client: str) -> None:
        """A request that entered is over."""
        known = self._clients.get(client)
        if known is not None and known.running:
            known.running -= 1

    def close(self) -> None:
        """End its threads."""
        if self._reviews is not None:
            self._reviews.close()

    def _known(self, client: str, now: float) -> _Client:
        known = self._clients.get(client)
        if known is None:
            known = self._clients[client] = _Client(self._burst, now)
            if len(self._clients) > MOST_CLIENTS:
                idle = next((name for name, other in self._clients.items() if not other.running), None)
                if idle is not None and idle != client:
                    del self._clients[idle]
        else:
            self._clients.move_to_end(client)
        return known


def _limited(bound: str, seconds: int) -> RequestError:
    return RequestError(Code.LIMITED, f"a client may send {bound}: try again later", unread=True, retry_after=seconds)
