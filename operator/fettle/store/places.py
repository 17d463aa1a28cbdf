"""Object stores and web servers, and how a Secret opens them: the clients of obstore, which is imported where an address needs it."""

from __future__ import annotations

import os
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

from fettle.api.reasons import Reason
from fettle.api.text import installing
from fettle.api.uris import WEB
from fettle.errors import FettleError
from fettle.store.credentials import Credentials

RETRY: dict[str, Any] = {  # longer than a server's restart takes, and well below the life of a signature
    "max_retries": 100,
    "retry_timeout": timedelta(minutes=2),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
CLIENT: dict[str, Any] = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "15m", "user_agent": "fettle"}
PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
# What says where a bucket is, and how it is named; every other variable of a provider says who asks.
_WHERE = re.compile("REGION|ENDPOINT|ACCOUNT_NAME|VIRTUAL_HOSTED")
_MORE = ("SERVICE_ACCOUNT", "SERVICE_ACCOUNT_KEY")  # which Google's client reads without its prefix, too
_environment = threading.Lock()
CA_KEYS = ("ca.crt", "AWS_CA_BUNDLE")


class Missing(Protocol):
    """Makes the error for what an address names: of a source, of data, of a store."""

    def __call__(self, message: str, *, reason: Reason | None = ..., retryable: bool = ...) -> FettleError:
        """`reason` is that of an address which leads nowhere, unless another is given."""
        ...


@dataclass(frozen=True)
class Place:
    """A bucket, or a web server: `root` is its address, without a path. `lists`: whether it can say what lies in it."""

    root: str
    client: Any
    lists: bool
    credentials: Credentials | None


def connect(uri: str, credentials: Credentials | None, missing: Missing) -> Place:
    """The place that `uri` lies in; nothing is asked of it yet. Raises what `missing` makes for an address with credentials in it, and for keys
    of a Secret that mean nothing to this kind of place."""
    parts = urlsplit(uri)
    root = f"{parts.scheme}://{parts.netloc}"
    if "@" in parts.netloc or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise missing(
            f"{shown}: an address must not contain a user, a password or a query, because anyone who can read the object can read "
            "them: put credentials into a Secret, and name it in secretName",
            reason=Reason.INVALID_SPEC,
        )
    if not parts.netloc:
        raise missing(f"{uri}: the {'host' if parts.scheme in WEB else 'bucket'} is missing")
    require_keys(uri, credentials, missing)
    headers = authorization(credentials.values if credentials is not None else {})
    return Place(root, _client(parts, root, credentials, headers, missing), parts.scheme not in WEB, credentials)


def require_keys(uri: str, credentials: Credentials | None, missing: Missing) -> None:
    """Raises what `missing` makes for a Secret that is named and is not there."""
    if credentials is not None and not credentials.values:
        message = f"{uri}: the Secret {credentials.name} does not exist in this namespace, or is empty: create it, or correct secretName"
        raise missing(message, reason=Reason.FORBIDDEN, retryable=True)


def web_server(root: str, credentials: Credentials | None, proof: Mapping[str, str], missing: Missing) -> Place:
    """The web server at `root`, which may have a path; nothing is asked of it yet. `proof`: `token`, or `username` and `password`.
    `credentials`: whose CA and proxy count."""
    headers = authorization(proof)
    return Place(root, _client(urlsplit(root), root, credentials, headers, missing), False, credentials)


def plain(endpoint: str) -> bool:
    """Whether it is a web address of a host, and nothing but a path behind it."""
    try:
        parts = urlsplit(endpoint)
    except ValueError:  # brackets that are no IPv6 address
        return False
    return parts.scheme in WEB and bool(parts.netloc) and "@" not in parts.netloc and not parts.query + parts.fragment


def stays_inside(name: Any) -> bool:
    """Whether it is a path that stays in the folder that it is relative to."""
    return isinstance(name, str) and not {"", ".", ".."} & set(name.split("/")) and not {"\\", "\0"} & set(name)


def _client(
    parts: SplitResult, root: str, credentials: Credentials | None, headers: dict[str, str], missing: Missing
) -> Any:
    try:
        from obstore import exceptions, store
    except ImportError as error:
        message = (
            f"{root}: {parts.scheme}:// needs the package obstore, which is not installed here: {installing('runtime')}"
        )
        raise missing(message) from error
    given = dict(credentials.values) if credentials is not None else {}
    options = _client_options(given)
    try:
        if parts.scheme in WEB:
            options |= {"allow_http": parts.scheme == "http", "default_headers": headers}
            return store.HTTPStore(root, client_options=options, retry_config=RETRY)
        config = {key: value for key, value in given.items() if key.startswith(PREFIXES[parts.scheme])}
        config = {key: value for key, value in config.items() if key not in CA_KEYS}
        if credentials is not None and "GOOGLE_APPLICATION_CREDENTIALS" in config:
            config["GOOGLE_APPLICATION_CREDENTIALS"] = str(credentials.folder / "GOOGLE_APPLICATION_CREDENTIALS")
        kinds: dict[str, Callable[..., Any]] = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}
        with _hidden(parts.scheme, config):
            endpoints = (os.environ | config).items()
            options["allow_http"] = any(_plain_endpoint(parts.scheme, *endpoint) for endpoint in endpoints)
            return kinds[parts.scheme](parts.netloc, config=config, client_options=options, retry_config=RETRY)
    except exceptions.UnknownConfigurationKeyError as error:
        key = re.search(r"'(\w+)'", str(error))
        name = key[1].upper() if key is not None else ""
        message = f"{root}: {holder(credentials)} has a key that is unknown for {parts.scheme}://: {name}"
        raise missing(message, reason=Reason.INVALID_SPEC) from None
    except (exceptions.BaseError, ValueError):
        keys = ", ".join(sorted(given)) or PREFIXES.get(parts.scheme, "")
        message = f"{root}: {holder(credentials)} has a value that cannot be used: {keys}"
        raise missing(message, reason=Reason.INVALID_SPEC) from None


def _plain_endpoint(scheme: str, key: str, value: str) -> bool:
    return key.startswith(PREFIXES[scheme]) and "ENDPOINT" in key and value.startswith("http://")


def _kind(variable: str) -> str | None:
    """What a provider's variable says of where a bucket is; None for one that says who asks."""
    found = _WHERE.search(variable)
    return found[0] if found is not None else None


def _of_provider(scheme: str) -> list[str]:
    """The variables of the environment that the client of `scheme` reads."""
    more = _MORE if scheme == "gs" else ()
    return sorted(name for name in os.environ if name.startswith(PREFIXES[scheme]) or name in more)


def _replaced(scheme: str, config: Iterable[str]) -> list[str]:
    """Variables of the environment that must not be read beside the keys of a Secret, `config`: those of the same kinds. A session token of
    one identity with the key of another is nobody's."""
    given = {_kind(key) for key in config}
    return [name for name in _of_provider(scheme) if _kind(name) in given]


def identity_in_environment(scheme: str) -> list[str]:
    """The variables of the environment that say who asks, for an address without a Secret."""
    with _environment:
        return [name for name in _of_provider(scheme) if _kind(name) is None] if scheme in PREFIXES else []


@contextmanager
def _hidden(scheme: str, config: Iterable[str]) -> Iterator[None]:
    """Without the variables that `config` replaces: the client reads them while it is made, and no value of a key means "not given"."""
    with _environment:  # and not before: another thread may have hidden them
        kept = {name: os.environ.pop(name) for name in _replaced(scheme, config)}
        try:
            yield
        finally:
            os.environ.update(kept)


def holder(credentials: Credentials | None) -> str:
    """What a message calls the place where keys and values come from."""
    return f"Secret {credentials.name}" if credentials is not None else "the environment"


def given_by(credentials: Credentials | None) -> Mapping[str, str]:
    """Where keys and values come from: the Secret if there is one, else the environment."""
    return credentials.values if credentials is not None else os.environ


def server_of(variable: str, default: str, credentials: Credentials | None, title: str, missing: Missing) -> str:
    """The web address of the server that `variable` names; `title` is what a person knows the place on it as.

    Raises what `missing` makes (InvalidSpec) for anything else.
    """
    server = (given_by(credentials).get(variable) or default).rstrip("/")
    if not plain(server):
        message = f"{title}: expected {variable} in {holder(credentials)}: https://HOST or https://HOST/PATH"
        raise missing(message, reason=Reason.INVALID_SPEC)
    return server


def authority_of(given: Mapping[str, str]) -> str | None:
    """The certificates of a private CA, in PEM."""
    return next((given[key] for key in CA_KEYS if key in given), None)


def proxy_of(given: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The proxy, and the hosts that are reached without it."""
    return next((given[key] for key in ("HTTPS_PROXY", "HTTP_PROXY") if key in given), None), given.get("NO_PROXY")


def _client_options(given: dict[str, str]) -> dict[str, Any]:
    proxy, excludes = proxy_of(given)
    told = {"root_certificate": authority_of(given), "proxy_url": proxy, "proxy_excludes": excludes}
    return CLIENT | {option: value for option, value in told.items() if value}


def authorization(given: Mapping[str, str]) -> dict[str, str]:
    """The header that shows who asks: with a `token`, or with `username` and `password`. None where there is neither."""
    if "token" in given:
        return {"Authorization": f"Bearer {given['token']}"}
    if "username" in given or "password" in given:
        pair = f"{given.get('username', '')}:{given.get('password', '')}"
        return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
    return {}
