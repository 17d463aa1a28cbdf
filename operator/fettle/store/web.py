"""Requests to the API of a registry or a tracking server. They have headers, queries and answers that obstore's client of files does not know.

The client is that of the standard library. A request is tried again for as long as obstore tries.
"""

from __future__ import annotations

import json
import math
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPException, HTTPMessage, IncompleteRead
from typing import IO, Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urljoin, urlsplit
from urllib.request import (
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from fettle.api.reasons import Reason
from fettle.api.uris import WEB
from fettle.errors import FettleError
from fettle.store import places
from fettle.store.credentials import Credentials
from fettle.store.failures import Failure, error_of
from fettle.store.files import CHUNK, DISK_FULL
from fettle.store.places import Missing, Place, authority_of, authorization, proxy_of

MOST = 4 << 20  # bytes of an answer that is held in memory: registries take manifests up to this size
SILENCE_SECONDS = 60.0
DIGESTING_SECONDS = 600.0  # that a registry may take with a blob that it has received
Found = TypeVar("Found")


@dataclass(frozen=True)
class Asked:
    """A request. `proof`: what shows who asks, as in `places.authorization`. `once`: it is not tried again."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    proof: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | IO[bytes] | None = None
    once: bool = False

    @property
    def streams(self) -> bool:
        """Whether it sends a file. Such a request is made once: who asks may have to begin elsewhere."""
        return self.body is not None and not isinstance(self.body, bytes)


@dataclass(frozen=True)
class Answer:
    """What a server said, whether it is good or bad news. `url`: the one that redirects led to."""

    url: str
    status: int
    headers: Message
    body: bytes

    @property
    def good(self) -> bool:
        """Whether it is what was asked for."""
        return 200 <= self.status < 300


class WebApi:
    """A web server at `place.root` that is asked with more than a path; `credentials` say which CA and which proxy count."""

    def __init__(self, root: str, credentials: Credentials | None, missing: Missing) -> None:
        self.place = Place(root, None, False, credentials)
        self._missing = missing
        self._given = credentials.values if credentials is not None else {}
        self._tls = ssl.create_default_context()
        try:
            if authority := authority_of(self._given):
                self._tls.load_verify_locations(cadata=authority)
        except (ssl.SSLError, ValueError):
            message = f"{root}: {places.holder(credentials)} has a value that cannot be used: ca.crt"
            raise missing(message, reason=Reason.INVALID_SPEC) from None

    def ask(self, asked: Asked) -> Answer:
        """The answer, in memory. Raises what `missing` makes where there is none."""
        return self._answered(asked, lambda response: self._read(response, asked.url))

    def fetch(self, asked: Asked, target: IO[bytes], size: int) -> Answer:
        """The answer, its body written to `target`, which holds nothing else: exactly `size` bytes. Raises what `missing` makes."""

        def copy(response: Any) -> bytes:
            if response.status != 200:
                return self._read(response, asked.url)
            target.seek(0)
            target.truncate()
            while chunk := response.read(CHUNK):
                target.write(chunk)
                self._bound(target.tell(), size, asked.url)
            if target.tell() < size:
                raise IncompleteRead(b"", size - target.tell())
            target.flush()
            return b""

        return self._answered(asked, copy)

    def error(self, url: str, answer: Answer) -> FettleError:
        """What is told of an answer that is not good."""
        return self._error(url, Failure("", answer.status == 404, str(answer.status), ""))

    def _answered(self, asked: Asked, read: Callable[[Any], bytes]) -> Answer:
        if asked.streams or asked.once:
            return self._once(asked, read)
        return patiently(lambda: self._once(asked, read))

    def _once(self, asked: Asked, read: Callable[[Any], bytes]) -> Answer:
        headers = {"User-Agent": places.CLIENT["user_agent"], **asked.headers}
        if asked.body is not None and not isinstance(asked.body, bytes):
            asked.body.seek(0)
        request = Request(asked.url, asked.body, headers, method=asked.method)
        for name, value in authorization(asked.proof).items():
            request.add_unredirected_header(name, value)
        try:
            with self._opened(request, DIGESTING_SECONDS if asked.streams else SILENCE_SECONDS) as response:
                answer = Answer(response.geturl(), response.status, response.headers, read(response))
                if response.length:
                    raise IncompleteRead(b"", response.length)
        except (OSError, HTTPException, ValueError) as error:
            if getattr(error, "errno", None) in DISK_FULL:
                raise
            raise self._error(asked.url, Failure(str(error), False, "", "")) from None
        if Failure("", False, str(answer.status), "").passing:
            raise self.error(asked.url, answer)
        return answer

    def _opened(self, request: Request, timeout: float) -> Any:
        try:
            return self._opener(request.host).open(request, timeout=timeout)
        except HTTPError as error:
            return error

    def _opener(self, host: str) -> OpenerDirector:
        proxy, excludes = proxy_of(self._given)
        proxies: dict[str, str] | None = None  # those of the environment
        if proxy is not None:
            excluded = excludes is not None and urllib.request.proxy_bypass_environment(host, {"no": excludes})  # type: ignore[attr-defined]
            proxies = {} if excluded else {"http": proxy, "https": proxy}
        return build_opener(HTTPSHandler(context=self._tls), ProxyHandler(proxies), _Redirects())

    def _read(self, response: Any, url: str) -> bytes:
        body: bytes = response.read(MOST + 1)
        self._bound(len(body), MOST, url)
        return body

    def _bound(self, size: int, most: int, url: str) -> None:
        if size > most:
            raise self._missing(f"{_shown(url)}: the server sends more than {most} bytes")

    def _error(self, url: str, failure: Failure) -> FettleError:
        return error_of(self.place, _shown(url), failure, self._missing)


class _Redirects(HTTPRedirectHandler):
    """Follows as obstore's client does: to https://, and from http:// to http://. Who asks is shown to no other host.

    Only what is read is followed: the library would read where a blob should have been written.
    """

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if after.scheme != "https" and (before.scheme, after.scheme) != ("http", "http"):
            return None
        if req.get_method() not in ("GET", "HEAD"):
            return None
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        fp.close()  # else the library reads all of the body, however long it is
        if following is not None:
            following.method = req.get_method()  # else HEAD becomes GET, which sends all of a blob
        shown = req.unredirected_hdrs.get("Authorization")
        if following is not None and shown is not None and before[:2] == after[:2]:
            following.add_unredirected_header("Authorization", shown)
        return following


def patiently(attempt: Callable[[], Found]) -> Found:
    """What `attempt` returns. It is made again while its error may pass, as often and as long as obstore's client tries: the time counts from the
    first error, since a large upload may well take longer than that before it breaks."""
    backoff, ends = places.RETRY["backoff"], math.inf
    wait: float = backoff["init_backoff"].total_seconds()
    for _ in range(places.RETRY["max_retries"]):
        try:
            return attempt()
        except FettleError as error:
            ends = min(ends, time.monotonic() + places.RETRY["retry_timeout"].total_seconds())
            if not error.retryable or time.monotonic() > ends:
                raise
        time.sleep(wait)
        wait = min(wait * backoff["base"], backoff["max_backoff"].total_seconds())
    return attempt()


def json_object(text: str | bytes) -> dict[str, Any]:
    """The object that somebody else's JSON holds. Raises ValueError for everything else, however deeply it is nested."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("expected an object")
    return document


def web_address(told: str, base: str = "") -> str | None:
    """The web address that a server told, which may be relative to `base`; None where it is none."""
    try:
        url = urljoin(base, told)
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return None
    return url if parts.scheme in WEB and host else None


def _shown(url: str) -> str:
    """`url` without its query, which may hold what nobody else may read."""
    return url.partition("?")[0]
