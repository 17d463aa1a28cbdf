"""A client for the API server: paths and plain dictionaries over `kubernetes.aio`, with errors as `ClusterError`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTResponse
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from fettle.api.reasons import Reason
from fettle.api.text import error_text
from fettle.cluster.kinds import LEASE, POD, Object, ResourceKind
from fettle.cluster.refusal import Refusal
from fettle.errors import ClusterError, MissingError, UsageError

FIELD_MANAGER = "fettle"
PAGE = 500  # objects per page of a list
TIMEOUT = 30.0  # seconds for one request
CONNECTIONS = 320  # more than there can be workers (256): the renewal of the Lease never waits for one
JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"

Written = Callable[[ResourceKind, Object], object]
Deleted = Callable[[ResourceKind, str, str, str | None], object]


@dataclass(frozen=True)
class ObjectListing:
    """All objects of a kind in one consistent snapshot."""

    items: tuple[Object, ...]
    resource_version: str


def connection_refused(error: BaseException) -> ClusterError:
    """The error if the API server does not answer."""
    return ClusterError(
        f"the API server did not answer: {error_text(error)}",
        reason=Reason.CLUSTER_UNREACHABLE,
        retryable=True,
    )


def error_of(status: int, body: bytes, what: str) -> ClusterError:
    """The error for a response with `status`. `what` describes the request for people."""
    refusal = Refusal.of(status, body)
    return refusal.error(f"{what}: {refusal.message}")


def rbac_request(method: str, path: str) -> tuple[str, str]:
    """The RBAC verb and resource of a request: ("get", "pods/log"), ("list", "jobs.batch")."""
    parts = path.strip("/").split("/")
    group, rest = (parts[1], parts[3:]) if parts[0] == "apis" else ("", parts[2:])
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    plural, name, sub = (*rest, "", "")[:3]
    verbs = {"GET": "get" if name else "list", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    return verbs[method], plural + (f".{group}" if group else "") + (f"/{sub}" if sub else "")


class Client:
    """A connection pool to one API server. Every write is reported to `on_write` (with its result) or `on_delete`, to keep a cache up to date.

    `writes` counts the writing requests by kind; `requests` counts all requests by RBAC verb and resource. `may_write`, if set, returns the
    number of seconds for which writes may still be sent: a leader may write while its Lease lasts. Writes to the Lease itself are exempt.
    A `namespace` of None means a cluster-scoped object. Each method raises ClusterError: ConflictError, ExistsError, MissingError, or one with
    the reason Forbidden, QuotaExceeded, InvalidSpec (the server refused the object's content) or ClusterUnreachable.
    """

    def __init__(self, api: ApiClient, *, on_write: Written | None = None, on_delete: Deleted | None = None) -> None:
        self._api = api
        self.on_write = on_write
        self.on_delete = on_delete
        self.may_write: Callable[[], float] | None = None
        self.writes: Counter[str] = Counter()
        self.requests: Counter[tuple[str, str]] = Counter()

    @classmethod
    async def connect(cls, kubeconfig: str | None = None) -> Client:
        """A client with the credentials of a kubeconfig file, or of the pod's ServiceAccount.

        Raises UsageError when there are none."""
        configuration = Configuration()
        configuration.connection_pool_maxsize = CONNECTIONS
        try:
            if kubeconfig:
                await load_kube_config(config_file=kubeconfig, client_configuration=configuration, persist_config=False)
            else:
                load_incluster_config(client_configuration=configuration)
        except (ConfigException, OSError) as error:
            raise UsageError(
                f"no cluster credentials ({error}): set FETTLE_KUBECONFIG, or run in a pod with a ServiceAccount"
            ) from error
        # As kopf does: a proxy is used where the kubeconfig says so, never because the environment has one.
        configuration.client_session_kwargs = {"trust_env": False}
        return cls(ApiClient(configuration))

    @property
    def configuration(self) -> Configuration:
        """Host and credentials, for kopf's own connection."""
        return self._api.configuration

    async def close(self) -> None:
        """Close the connection pool."""
        await self._api.close()

    # ------------------------------------------------------------------------------------------------------------ reads

    async def get(self, kind: ResourceKind, namespace: str | None, name: str) -> Object | None:
        """The current object, or None."""
        try:
            return await self._json("GET", kind.path(namespace, name))
        except MissingError:
            return None

    async def list(
        self, kind: ResourceKind, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> ObjectListing:
        """All objects that match the selectors, in one namespace or in all, read in pages of one consistent snapshot."""
        selectors = [(key, value) for key, value in (("labelSelector", labels), ("fieldSelector", fields)) if value]
        items: list[Object] = []
        token = ""
        while True:
            query = [*selectors, ("limit", str(PAGE)), *([("continue", token)] if token else [])]
            page = await self._json("GET", kind.path(namespace), query)
            for item in page.get("items") or ():  # which come without their kind
                item["metadata"].pop("managedFields", None)
                items.append({"apiVersion": kind.api_version, "kind": kind.kind, **item})
            token = page["metadata"].get("continue") or ""
            if not token:
                return ObjectListing(tuple(items), page["metadata"]["resourceVersion"])

    async def log(self, namespace: str, pod: str, container: str) -> str:
        """The whole log of a container. Raises MissingError if the pod is gone."""
        return await self._log(namespace, pod, [("container", container)])

    async def log_end(self, namespace: str, pod: str, container: str, lines: int, most_bytes: int) -> str:
        """At most so many bytes of the last `lines` lines of a container's log. Raises MissingError if the pod is gone."""
        query = [("container", container), ("tailLines", str(lines)), ("limitBytes", str(most_bytes))]
        return await self._log(namespace, pod, query)

    async def _log(self, namespace: str, pod: str, query: Sequence[tuple[str, str]]) -> str:
        path = POD.path(namespace, pod, "log")
        body = await self._request("GET", path, query, what=f"log of pod {namespace}/{pod}")
        return body.decode(errors="replace")

    # ----------------------------------------------------------------------------------------------------------- writes

    async def create(self, kind: ResourceKind, body: Object) -> Object:
        """Create `body`. Raises ExistsError if the name is in use."""
        return await self._write("POST", kind, body, kind.path(_namespace(body)))

    async def apply(self, kind: ResourceKind, body: Object, *, force: bool = True) -> Object:
        """Server-side apply: Fettle becomes the manager of exactly the fields in `body`.

        With `metadata.uid` in `body`, only that very object is changed; otherwise ConflictError. Without `force`, a field that somebody else
        manages is also a ConflictError."""
        path = kind.path(_namespace(body), body["metadata"]["name"])
        query = [("force", "true" if force else "false")]
        return await self._write("PATCH", kind, body, path, query, content=APPLY)

    async def replace(self, kind: ResourceKind, body: Object) -> Object:
        """PUT the whole object. Raises ConflictError unless its resourceVersion is current."""
        return await self._write("PUT", kind, body, kind.path(_namespace(body), body["metadata"]["name"]))

    async def put_status(self, kind: ResourceKind, snapshot: Object, status: Object) -> Object:
        """PUT `status` on the object in `snapshot`. Raises ConflictError if the object has changed since; this also fences a former leader."""
        body = {**snapshot, "apiVersion": kind.api_version, "kind": kind.kind, "status": status}
        path = kind.path(_namespace(body), body["metadata"]["name"], "status")
        return await self._write("PUT", kind, body, path)

    async def annotate(
        self,
        kind: ResourceKind,
        namespace: str,
        name: str,
        *,
        annotations: dict[str, str | None],
        resource_version: str | None = None,
    ) -> Object:
        """Set annotations (None removes one). With `resource_version`, raises ConflictError if the object has changed since."""
        metadata: Object = {"annotations": annotations}
        if resource_version is not None:
            metadata["resourceVersion"] = resource_version
        return await self._write("PATCH", kind, {"metadata": metadata}, kind.path(namespace, name), content=MERGE)

    async def delete(self, kind: ResourceKind, namespace: str | None, name: str, *, uid: str | None = None) -> None:
        """Delete the object; with `uid`, only that very one (ConflictError). An object that is already gone is not an error."""
        options: Object = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        self.writes[kind.kind] += 1
        try:
            answer = await self._json("DELETE", kind.path(namespace, name), body=options, fenced=kind is not LEASE)
        except MissingError:
            answer = {"kind": "Status"}
        if answer.get("kind") == "Status" and self.on_delete is not None:
            self.on_delete(kind, namespace or "", name, uid)
        elif answer.get("kind") == kind.kind and self.on_write is not None:  # it lives on until its finalizers are done
            self.on_write(kind, answer)

    # -------------------------------------------------------------------------------------------------------- transport

    async def _write(
        self,
        method: str,
        kind: ResourceKind,
        body: Object,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        content: str = JSON,
    ) -> Object:
        self.writes[kind.kind] += 1
        query = [*query, ("fieldManager", FIELD_MANAGER)]
        answer = await self._json(method, path, query, body=body, content=content, fenced=kind is not LEASE)
        if self.on_write is not None:
            self.on_write(kind, answer)
        return answer

    async def _json(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        *,
        body: Object | None = None,
        content: str = JSON,
        fenced: bool = False,
    ) -> Object:
        data = await self._request(method, path, query, body=body, content=content, fenced=fenced)
        try:
            answer: Object = json.loads(data)
            answer.get("metadata", {}).pop(
                "managedFields", None
            )  # half of an object's bytes, and nobody here reads them
        except (ValueError, AttributeError) as error:  # a proxy's page, an answer that was cut off
            raise ClusterError(
                f"{method} {path}: the API server's response is not a JSON object: {data[:128].decode(errors='replace')}",
                reason=Reason.CLUSTER_UNREACHABLE,
                retryable=True,
            ) from error
        return answer

    async def _request(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        *,
        body: Object | None = None,
        content: str = JSON,
        what: str = "",
        fenced: bool = False,
    ) -> bytes:
        try:
            seconds = min(TIMEOUT, self._seconds_left()) if fenced else TIMEOUT
            response = await self._send(method, path, query, patience=seconds, body=body, content=content)
            data: bytes = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise connection_refused(error) from error
        if not 200 <= response.status < 300:
            raise error_of(response.status, data, what or f"{method} {path}")
        return data

    async def _send(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        *,
        patience: float | aiohttp.ClientTimeout,
        body: Object | None = None,
        content: str = JSON,
    ) -> RESTResponse:
        """The answer, whose body is not read yet."""
        prepared = await self._api.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params={"Accept": JSON, "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        verb, resource = rbac_request(method, path)
        self.requests[verb, resource] += 1
        response: RESTResponse = await self._api.call_api(*prepared, _request_timeout=patience)
        if verb == "patch" and response.status == 201:  # an apply that creates needs both
            self.requests["create", resource] += 1
        return response

    def _seconds_left(self) -> float:
        """The number of seconds for which a write may be sent. A write that waits longer for a connection is never sent. Raises ClusterError."""
        left = self.may_write() if self.may_write is not None else TIMEOUT
        if left <= 0:
            text = "the Lease has expired, and another replica may be the leader: writes are refused"
            raise ClusterError(text, reason=Reason.CLUSTER_UNREACHABLE, retryable=True)
        return left


def _namespace(body: Object) -> str | None:
    namespace: str | None = body["metadata"].get("namespace")
    return namespace
