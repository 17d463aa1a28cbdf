"""A small client of the API server: as much as starting, watching and asking for its state needs."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from tools.cluster.errors import ClusterError
from tools.cluster.paths import Paths

Object = dict[str, Any]
_PLURALS = {"StorageClass": "storageclasses"}


def path_of(thing: Mapping[str, Any]) -> str:
    """The URL path of an object, from its kind and name."""
    version, kind, metadata = thing["apiVersion"], thing["kind"], thing["metadata"]
    prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
    scope = f"/namespaces/{metadata['namespace']}" if metadata.get("namespace") else ""
    return f"{prefix}{scope}/{_PLURALS.get(kind, kind.lower() + 's')}/{metadata['name']}"


class Api:
    """The API server as its administrator sees it. Raises ClusterError for an answer that is no success."""

    def __init__(self, paths: Paths) -> None:
        pki = paths.pki
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        # Neither a proxy nor certificates of the environment concern an address of our own.
        self._http = httpx.Client(base_url=paths.cluster.server, verify=context, timeout=10, trust_env=False)

    def ready(self) -> bool:
        try:
            return self._http.get("/readyz", timeout=3).status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str) -> Object:
        return self._request("GET", path)

    def items(self, path: str) -> list[Object]:
        items: list[Object] = self._request("GET", path)["items"]
        return items

    def create(self, path: str, thing: Object) -> None:
        self._request("POST", path, thing)

    def delete(self, path: str) -> None:
        self._request("DELETE", path)

    def apply(self, thing: Object) -> None:
        """Server-side apply."""
        path = f"{path_of(thing)}?fieldManager=fettle-cluster&force=true"
        self._request("PATCH", path, thing, "application/apply-patch+yaml")

    def patch(self, path: str, change: Object) -> None:
        self._request("PATCH", path, change, "application/strategic-merge-patch+json")

    def watch(self, path: str, seconds: int) -> Iterator[Object]:
        """Every object there is, then every change, until the time is over."""
        query = f"{path}?watch=1&timeoutSeconds={seconds}"
        with self._http.stream("GET", query, timeout=httpx.Timeout(10, read=seconds + 10)) as answer:
            if answer.status_code != 200:
                raise ClusterError(f"watch {path}: HTTP {answer.status_code}")
            for line in answer.iter_lines():
                yield json.loads(line)

    def _request(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
        content = None if body is None else json.dumps(body)
        try:
            answer = self._http.request(method, path, content=content, headers={"content-type": kind})
        except httpx.TransportError as error:
            raise ClusterError(f"the API server does not respond to {method} {path}: {error}") from error
        if answer.is_error:
            raise ClusterError(f"{method} {path.partition('?')[0]}: HTTP {answer.status_code} {_message(answer)}")
        result: Object = answer.json()
        return result


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("message", ""))
    except ValueError:
        return answer.text[:200]
