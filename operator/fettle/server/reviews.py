"""Tokens that the Kubernetes API server knows, such as those of ServiceAccounts: each is asked for in a TokenReview, and the answer kept a while.

Strangers who send tokens without end must not shut out those who have good ones. So good tokens are kept apart from others and asked for again by
threads of their own, and only so many unknown tokens are asked for in a second. Whom nobody can ask for is not let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import logging
import re
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from fettle.api.text import clip, error_text
from fettle.errors import ClusterError
from fettle.server.request import Code, RequestError
from fettle.server.settings import ServerSettings

log = logging.getLogger(__name__)

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
_TOKEN = re.compile(r"[!-~]{1,16384}")  # those of Kubernetes have about a thousand characters
MOST_KEPT = 4096  # good tokens, and others; beyond, the one that came longest ago is forgotten
REFUSED_SECONDS = 10.0  # for which a token that is no good stays so
MOST_WAITING = 64  # unknown tokens that are asked for at the same time, or wait for it; good ones: four times as many
MOST_A_SECOND, BURST = 50.0, 500.0  # unknown tokens
ANSWER_SECONDS, WAIT_SECONDS = 5.0, 10.0
_MOST_ANSWER_BYTES = 1 << 20
_AT_ONCE = 4
_LOG_SECONDS = 10.0
_NOBODYS = "nobodys"  # a token


class ReviewError(Exception):
    """The API server did not say whose token it is."""


class NotAllowed(ReviewError):
    """This pod may not ask it."""


@dataclass(frozen=True)
class User:
    """Whose token it is."""

    name: str
    groups: frozenset[str] = frozenset()


Ask = Callable[[str], User | None]
# RuntimeError: no thread could be started.
ASK_ERRORS = (OSError, http.client.HTTPException, ReviewError, ValueError, RuntimeError)


class ApiServer:
    """Asks the API server, with this pod's own token: `token_review_folder` has the files token and ca.crt, which the kubelet renews."""

    def __init__(self, settings: ServerSettings) -> None:
        self._address, self._audiences = urlsplit(settings.token_review_server), settings.token_review_audiences
        self._folder = settings.token_review_folder or Path()

    def __call__(self, token: str) -> User | None:
        """Whose token it is; None if it is not valid for one of the audiences. Raises OSError, HTTPException, ReviewError."""
        spec = {"token": token, "audiences": list(self._audiences)}
        body = orjson.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec})
        own = (self._folder / "token").read_text().strip()
        if not (own.isascii() and own.isprintable()):  # the library's error for such a header would show it
            raise ReviewError(f"{self._folder / 'token'} is not a token: expected that of the pod's service account")
        headers = {"Authorization": f"Bearer {own}", "Content-Type": "application/json", "Accept": "application/json"}
        connection = self._connection()
        try:
            connection.request("POST", PATH, body, headers)
            answer = connection.getresponse()
            content = answer.read(_MOST_ANSWER_BYTES)
        finally:
            connection.close()
        said = f"the Kubernetes API server answered {answer.status} {answer.reason}"
        if answer.status == 403:
            raise NotAllowed(f"{said}: expected a service account that may create tokenreviews")
        if answer.status not in (200, 201):
            raise ReviewError(said)
        return self._user(content)

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._address.hostname or "", self._address.port
        if self._address.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
        trusted = ssl.create_default_context(cafile=str(self._folder / "ca.crt"))
        return http.client.HTTPSConnection(host, port, timeout=ANSWER_SECONDS, context=trusted)

    def _user(self, content: bytes) -> User | None:
        try:
            status: dict[str, Any] = orjson.loads(content)["status"]
            if status.get("authenticated") is not True:
                return None
            # An API server that does not look at audiences names none.
            if not set(self._audiences) & set(status.get("audiences") or ()):
                return None
            return User(str(status["user"]["username"]), frozenset(status["user"].get("groups") or ()))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ReviewError(f"the Kubernetes API server did not answer with a TokenReview: {error!r}") from error


@dataclass(frozen=True)
class ReviewResult:
    """Who may come in with a token, None = nobody, and until when that is known."""

    name: str | None
    until: float


class Reviews:
    """What is known of tokens. Used by one event loop only."""

    def __init__(
        self, settings: ServerSettings, ask: Ask | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask or ApiServer(settings)
        self._users, self._groups = frozenset(settings.token_review_users), frozenset(settings.token_review_groups)
        self._seconds, self._clock = settings.token_review_cache_seconds, clock
        # Kept as long as there is room: who was good is asked for first.
        self._good: OrderedDict[bytes, ReviewResult] = OrderedDict()
        self._others: OrderedDict[bytes, ReviewResult] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[ReviewResult | None]] = {}
        self._strangers = 0  # of them
        self._allowed, self._at = BURST, clock()
        self._threads, self._threads_of_strangers = (
            ThreadPoolExecutor(_AT_ONCE, name) for name in ("tokens", "strangers")
        )
        self._next_log = clock()

    async def name(self, token: str) -> str | None:
        """Whose token it is; None where nobody is let in with it. Raises RequestError UNAVAILABLE where nobody can be asked, or for too many."""
        if not _TOKEN.fullmatch(token):
            return None
        digest = digest_of(token)
        found = self._found(digest) or await self._asked(digest, token)
        return found.name

    def close(self) -> None:
        """End the threads, once they have heard what they asked for."""
        for threads in (self._threads, self._threads_of_strangers):
            threads.shutdown(wait=False, cancel_futures=True)

    def _found(self, digest: bytes) -> ReviewResult | None:
        for kept in (self._good, self._others):
            found = kept.get(digest)
            if found is not None:
                kept.move_to_end(digest)
                return found if self._clock() < found.until else None
        return None

    async def _asked(self, digest: bytes, token: str) -> ReviewResult:
        """What the API server says of it. Raises RequestError UNAVAILABLE."""
        asking = self._asking.get(digest)
        if asking is None:
            known = digest in self._good
            self._require_room(known)
            self._strangers += not known
            asking = self._asking[digest] = asyncio.create_task(self._review(digest, token, known))
        found: ReviewResult | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                found = await asyncio.shield(asking)  # who hangs up ends nothing that others wait for
        if found is None:
            message = "the token cannot be checked, because the Kubernetes API server does not answer as expected: try again later"
            raise RequestError(Code.UNAVAILABLE, message, unread=True)
        return found

    def _require_room(self, known: bool) -> None:
        """Raises RequestError UNAVAILABLE."""
        waiting = len(self._asking) - self._strangers
        room = waiting < 4 * MOST_WAITING if known else self._strangers < MOST_WAITING and self._turn()
        if not room:
            message = "too many tokens are being checked: try again later"
            raise RequestError(Code.UNAVAILABLE, message, unread=True)

    def _turn(self) -> bool:
        """Whether one more unknown token may be asked for in this second, which is then taken."""
        now = self._clock()
        self._allowed = min(BURST, self._allowed + (now - self._at) * MOST_A_SECOND)
        self._at = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True

    async def _review(self, digest: bytes, token: str, known: bool) -> ReviewResult | None:
        """None where the API server does not say whose token it is, or that it is nobody's."""
        threads = self._threads if known else self._threads_of_strangers
        try:
            user = await asyncio.get_running_loop().run_in_executor(threads, self._ask, token)
        except ASK_ERRORS as error:
            if self._clock() >= self._next_log:
                self._next_log = self._clock() + _LOG_SECONDS
                log.warning("a token could not be reviewed: %s", clip(error_text(error)))
            return None
        finally:
            self._strangers -= not known
            del self._asking[digest]
        return self._keep(digest, user.name if user is not None and self._may(user) else None)

    def _may(self, user: User) -> bool:
        everybody = not self._users and not self._groups
        return everybody or user.name in self._users or bool(user.groups & self._groups)

    def _keep(self, digest: bytes, name: str | None) -> ReviewResult:
        self._good.pop(digest, None)
        self._others.pop(digest, None)
        kept, seconds = (self._others, REFUSED_SECONDS) if name is None else (self._good, self._seconds)
        found = kept[digest] = ReviewResult(name, self._clock() + seconds)
        if len(kept) > MOST_KEPT:
            kept.popitem(last=False)
        return found


def digest_of(token: str | bytes) -> bytes:
    """What is kept and compared of a token: how long that takes, and a memory dump, say nothing of it."""
    return hashlib.sha256(token if isinstance(token, bytes) else token.encode(errors="surrogatepass")).digest()


async def require_permission(settings: ServerSettings) -> None:
    """Ask for a token that is nobody's, before a client's has to be checked. Raises ClusterError where this pod may not ask.

    An API server that does not answer is only logged: it may by the first request.
    """
    if settings.token_review_folder is None:
        return
    try:
        thread = ThreadPoolExecutor(1)  # of its own, for which nothing waits at the end of the process
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.get_running_loop().run_in_executor(thread, ApiServer(settings), _NOBODYS)
    except NotAllowed as error:
        advice = "list template.serviceAccountName in the chart's rbac.tokenReviewers"
        raise ClusterError(f"server.auth.tokenReview: {error}; {advice}") from error
    except ASK_ERRORS as error:
        log.warning("tokens of Kubernetes cannot be checked yet: %s", clip(error_text(error)))
