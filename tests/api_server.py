"""A stand-in for the Kubernetes API server: objects in memory, versions, conflicts, pages, logs. Real HTTP, no Kubernetes.

It knows no schema and runs no controller; tests/cluster has the real one. Faults are put in with `refuse`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from fettle.cluster.client import Client
from fettle.cluster.kinds import EVENT, LEASE, NODE, WATCHED, Object

PLURALS = {kind.plural for kind in (*WATCHED, EVENT, LEASE, NODE)}
Refusal = Callable[[str, str], tuple[int, Object] | None]


def status(code: int, reason: str, message: str = "") -> tuple[int, Object]:
    """A Kubernetes Status as the API server answers it."""
    return code, {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message or reason}


@dataclass
class ApiServer:
    """The objects, by path. `requests` has method and path of each request; `refuse` may answer one instead.

    A write lands `write_seconds` after it was read, also when nobody waits for the answer any more.
    """

    objects: dict[str, Object] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)  # pod's name -> its log
    requests: list[tuple[str, str]] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)  # of each request
    refuse: Refusal = lambda method, path: None
    page: int = 500
    write_seconds: float = 0.0
    _versions: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def writes(self) -> list[tuple[str, str]]:
        """The requests that were not reads."""
        return [request for request in self.requests if request[0] != "GET"]

    def store(self, path: str, obj: Object) -> Object:
        """Put an object there as a new version."""
        version = next(self._versions)
        before = self.objects.get(path)
        generation = 1
        if before is not None:
            changed = before.get("spec") != obj.get("spec")
            generation = before["metadata"].get("generation", 1) + changed
        namespace = path.split("/namespaces/")[1].split("/")[0] if "/namespaces/" in path else None
        metadata = {
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "uid": f"uid-{version}",
            **({"namespace": namespace} if namespace else {}),
            **obj["metadata"],
            "name": path.rsplit("/", 1)[-1],
            "generation": generation,
            "resourceVersion": str(version),
        }
        if before is not None:
            metadata["uid"] = before["metadata"]["uid"]
        self.objects[path] = {**obj, "metadata": metadata}
        return self.objects[path]

    async def answer(self, request: web.Request) -> web.Response:
        """One request."""
        path, method = request.path, request.method
        self.requests.append((method, path))
        self.queries.append(dict(request.query))
        refused = self.refuse(method, path)
        if refused is not None:
            return web.json_response(refused[1], status=refused[0])
        if path.endswith("/log"):
            name = path.split("/")[-2]
            return web.Response(text=self.logs[name]) if name in self.logs else _missing(path)
        body = json.loads(await request.read() or b"null")
        await asyncio.sleep(0 if method == "GET" else self.write_seconds)
        handlers = {
            "GET": self._get,
            "POST": self._post,
            "PUT": self._put,
            "PATCH": self._patch,
            "DELETE": self._delete,
        }
        return handlers[method](path, body, request)

    def _get(self, path: str, _: Any, request: web.Request) -> web.Response:
        if path in self.objects:
            return web.json_response(self.objects[path])
        plural = path.rsplit("/", 1)[-1]
        found = [obj for where, obj in sorted(self.objects.items()) if _listed(where, path, plural)]
        if plural not in PLURALS:
            return _missing(path)
        found = [obj for obj in found if _matches(obj, request.query.get("labelSelector", ""))]
        start = int(request.query.get("continue", "0"))
        end = start + min(self.page, int(request.query.get("limit", "500")))
        metadata = {"resourceVersion": str(next(self._versions))}
        if end < len(found):
            metadata["continue"] = str(end)
        return web.json_response({"kind": "List", "metadata": metadata, "items": found[start:end]})

    def _post(self, path: str, body: Any, _: web.Request) -> web.Response:
        path = f"{path}/{body['metadata']['name']}"
        if path in self.objects:
            return web.json_response(status(409, "AlreadyExists")[1], status=409)
        return web.json_response(self.store(path, body), status=201)

    def _put(self, path: str, body: Any, _: web.Request) -> web.Response:
        whole = path.removesuffix("/status")
        if whole not in self.objects:
            return _missing(path)
        before = self.objects[whole]
        if body["metadata"].get("resourceVersion") != before["metadata"]["resourceVersion"]:
            return web.json_response(status(409, "Conflict", "the object has been modified")[1], status=409)
        after = {**before, "status": body["status"]} if whole != path else {**body, "status": before.get("status", {})}
        return web.json_response(self.store(whole, after))

    def _patch(self, path: str, body: Any, _: web.Request) -> web.Response:
        before = self.objects.get(path, {"metadata": {}})
        uid = body["metadata"].get("uid")
        if uid is not None and uid != before["metadata"].get("uid"):
            return web.json_response(status(409, "Conflict", "UID")[1], status=409)
        return web.json_response(self.store(path, _merge(before, body)))

    def _delete(self, path: str, body: Any, _: web.Request) -> web.Response:
        if path not in self.objects:
            return _missing(path)
        uid = ((body or {}).get("preconditions") or {}).get("uid")
        if uid is not None and uid != self.objects[path]["metadata"]["uid"]:
            return web.json_response(status(409, "Conflict", "UID")[1], status=409)
        del self.objects[path]
        return web.json_response({"kind": "Status", "status": "Success"})


def _listed(where: str, path: str, plural: str) -> bool:
    folder = where.rsplit("/", 1)[0]
    if "/namespaces/" in path:
        return folder == path
    return folder.startswith(path.removesuffix(plural)) and folder.endswith(f"/{plural}")


def _matches(obj: Object, selector: str) -> bool:
    labels = obj["metadata"].get("labels") or {}
    wanted = [term.partition("=")[::2] for term in selector.split(",") if term]
    return all(labels.get(key) == value for key, value in wanted)


def _merge(before: Any, after: Any) -> Any:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    return {**before, **{key: _merge(before.get(key), value) for key, value in after.items()}}


def _missing(path: str) -> web.Response:
    return web.json_response(status(404, "NotFound", f"{path} not found")[1], status=404)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[ApiServer, Client]]:
    """A server on a free port of loopback, and a client of it."""
    server = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    configuration.client_session_kwargs = {"trust_env": False}
    client = Client(ApiClient(configuration))
    try:
        yield server, client
    finally:
        await client.close()
        await runner.cleanup()
