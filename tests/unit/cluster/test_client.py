"""The client: plain dictionaries in and out, and errors that say what kind of refusal it was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration
from tests.api_server import ApiServer, serving, status

from fettle.api.reasons import Reason
from fettle.cluster.client import Client, error_of, rbac_request
from fettle.cluster.kinds import JOB, LEASE, OPTIMIZED_MODEL, POD, Object
from fettle.errors import ClusterError, ConflictError, ExistsError, MissingError

MODEL = {"metadata": {"namespace": "team", "name": "digits"}, "spec": {"a": 1}}


@pytest.fixture
async def api() -> AsyncIterator[tuple[ApiServer, Client]]:
    async with serving() as pair:
        yield pair


Api = tuple[ApiServer, Client]


async def test_what_is_not_there_is_none(api: Api) -> None:
    assert await api[1].get(OPTIMIZED_MODEL, "team", "nobody") is None


async def test_a_list_is_read_page_by_page_and_its_items_know_their_kind(api: Api) -> None:
    server, client = api
    server.page = 2
    for number in range(5):
        await client.create(JOB, {"metadata": {"namespace": "team", "name": f"j{number}"}})
    listing = await client.list(JOB)
    assert [job["metadata"]["name"] for job in listing.items] == ["j0", "j1", "j2", "j3", "j4"]
    assert {job["kind"] for job in listing.items} == {"Job"}


async def test_a_status_write_on_an_old_snapshot_is_a_conflict(api: Api) -> None:
    _, client = api
    before = await client.create(OPTIMIZED_MODEL, MODEL)
    await client.put_status(OPTIMIZED_MODEL, before, {"observedGeneration": 1})
    with pytest.raises(ConflictError) as caught:
        await client.put_status(OPTIMIZED_MODEL, before, {"observedGeneration": 2})
    assert caught.value.retryable


async def test_a_taken_name_is_told_from_a_conflict(api: Api) -> None:
    _, client = api
    await client.create(OPTIMIZED_MODEL, MODEL)
    with pytest.raises(ExistsError):
        await client.create(OPTIMIZED_MODEL, MODEL)


async def test_deleting_what_is_gone_is_fine_and_the_wrong_uid_is_a_conflict(api: Api) -> None:
    _, client = api
    await client.delete(JOB, "team", "nobody")
    await client.create(JOB, {"metadata": {"namespace": "team", "name": "j"}})
    with pytest.raises(ConflictError):
        await client.delete(JOB, "team", "j", uid="another")


async def test_every_write_is_told_and_counted(api: Api) -> None:
    _, client = api
    told: list[tuple[str, str]] = []
    gone: list[str] = []
    client.on_write = lambda kind, obj: told.append((kind.kind, obj["metadata"]["resourceVersion"]))
    client.on_delete = lambda kind, namespace, name, uid: gone.append(name)
    made = await client.create(OPTIMIZED_MODEL, MODEL)
    await client.put_status(OPTIMIZED_MODEL, made, {})
    await client.delete(OPTIMIZED_MODEL, "team", "digits")
    assert told == [("OptimizedModel", "1"), ("OptimizedModel", "2")]
    assert gone == ["digits"]
    assert client.writes == {"OptimizedModel": 3}


async def test_the_log_of_a_pod_that_is_gone_is_missing(api: Api) -> None:
    server, client = api
    server.logs["pod"] = "one\ntwo\n"
    assert await client.log("team", "pod", "optimizer") == "one\ntwo\n"
    with pytest.raises(MissingError):
        await client.log("team", "gone", "optimizer")


async def test_a_server_that_does_not_answer_is_unreachable_and_worth_another_try(api: Api) -> None:
    _, client = api
    client.configuration.host = "http://127.0.0.1:1"
    with pytest.raises(ClusterError) as caught:
        await client.get(POD, "team", "p")
    assert caught.value.reason == Reason.CLUSTER_UNREACHABLE and caught.value.retryable


@pytest.mark.parametrize(
    ("code", "reason", "message", "expected", "retryable"),
    [
        (403, "Forbidden", 'jobs "x" is forbidden: exceeded quota: none', Reason.QUOTA_EXCEEDED, True),
        (403, "Forbidden", "cannot create resource", Reason.FORBIDDEN, False),
        (403, "Forbidden", "namespace is being terminated", Reason.FORBIDDEN, True),
        (422, "Invalid", "spec.template: Invalid value", Reason.INVALID_SPEC, False),
        (400, "BadRequest", "strict decoding error", Reason.INVALID_SPEC, False),
        (429, "TooManyRequests", "later", Reason.CLUSTER_UNREACHABLE, True),
        (500, "InternalError", "etcd", Reason.CLUSTER_UNREACHABLE, True),
    ],
)
def test_a_refusal_says_what_it_was(code: int, reason: str, message: str, expected: Reason, retryable: bool) -> None:
    import json

    error = error_of(code, json.dumps(status(code, reason, message)[1]).encode(), "POST x")
    assert (error.reason, error.retryable) == (expected, retryable)
    assert message in error.message and "POST x" in error.message


def test_an_answer_that_is_not_json_is_still_an_error() -> None:
    assert error_of(502, b"<html>bad gateway", "GET x").reason == Reason.CLUSTER_UNREACHABLE


@pytest.mark.parametrize(
    ("kind", "arguments", "path"),
    [
        (POD, ("ns", "p", "log"), "/api/v1/namespaces/ns/pods/p/log"),
        (POD, (), "/api/v1/pods"),
        (LEASE, ("ns", "l"), "/apis/coordination.k8s.io/v1/namespaces/ns/leases/l"),
        (OPTIMIZED_MODEL, ("ns",), "/apis/fettle.dev/v1alpha1/namespaces/ns/optimizedmodels"),
    ],
)
def test_paths(kind: Object, arguments: tuple[str, ...], path: str) -> None:
    assert kind.path(*arguments) == path  # type: ignore[attr-defined]


@pytest.mark.parametrize("write", ["create", "apply", "replace", "put_status", "annotate", "delete"])
async def test_nothing_is_written_once_the_lease_has_run_out(api: Api, write: str) -> None:
    server, client = api
    made = await client.create(OPTIMIZED_MODEL, MODEL)
    sent = len(server.writes())
    client.may_write = lambda: 0.0
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "put_status": lambda: client.put_status(OPTIMIZED_MODEL, made, {}),
        "annotate": lambda: client.annotate(OPTIMIZED_MODEL, "team", "digits", annotations={"a": "b"}),
        "delete": lambda: client.delete(OPTIMIZED_MODEL, "team", "digits"),
    }
    with pytest.raises(ClusterError, match="Lease has expired") as caught:
        await (calls[write]() if write in calls else getattr(client, write)(OPTIMIZED_MODEL, made))
    assert caught.value.retryable
    assert len(server.writes()) == sent
    assert await client.get(OPTIMIZED_MODEL, "team", "digits") is not None, "reading goes on"


async def test_the_lease_itself_is_written_whatever_it_says(api: Api) -> None:
    _, client = api
    client.may_write = lambda: 0.0
    await client.create(LEASE, {"metadata": {"namespace": "system", "name": "fettle"}, "spec": {}})


async def test_a_write_waits_no_longer_than_the_lease_lasts(api: Api) -> None:
    server, client = api
    server.write_seconds = 3
    client.may_write = lambda: 0.2
    with pytest.raises(ClusterError) as caught:
        await client.create(OPTIMIZED_MODEL, MODEL)
    assert caught.value.reason is Reason.CLUSTER_UNREACHABLE


@pytest.mark.parametrize("text", [b"<html>a proxy's page</html>", b"[]", b'{"metadata":'])
async def test_an_answer_that_is_no_object_is_an_api_server_that_cannot_be_reached(text: bytes) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(body=text)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", page)
    async with TestServer(app) as server:
        configuration = Configuration(host=str(server.make_url("")).rstrip("/"))
        client = Client(ApiClient(configuration))
        with pytest.raises(ClusterError, match="is not a JSON object") as caught:
            await client.get(OPTIMIZED_MODEL, "team", "digits")
        await client.close()
    assert (caught.value.reason, caught.value.retryable) == (Reason.CLUSTER_UNREACHABLE, True)


def test_pages_that_are_too_old_are_listed_anew() -> None:
    error = error_of(410, b'{"reason": "Expired", "message": "the provided continue parameter is too old"}', "GET /x")
    assert (error.reason, error.retryable) == (Reason.CLUSTER_UNREACHABLE, True)


@pytest.mark.parametrize(
    ("method", "path", "verb", "resource"),
    [
        ("GET", OPTIMIZED_MODEL.path(), "list", "optimizedmodels.fettle.dev"),
        ("GET", OPTIMIZED_MODEL.path("team"), "list", "optimizedmodels.fettle.dev"),
        ("PUT", OPTIMIZED_MODEL.path("team", "digits", "status"), "update", "optimizedmodels.fettle.dev/status"),
        ("GET", POD.path("team", "p", "log"), "get", "pods/log"),
        ("POST", LEASE.path("system"), "create", "leases.coordination.k8s.io"),
        ("PATCH", POD.path("team", "p"), "patch", "pods"),
        ("DELETE", JOB.path("team", "j"), "delete", "jobs.batch"),
        ("GET", "/api/v1/namespaces/team", "get", "namespaces"),
    ],
)
def test_a_request_is_named_as_rbac_does(method: str, path: str, verb: str, resource: str) -> None:
    assert rbac_request(method, path) == (verb, resource)


async def test_every_request_is_counted_by_verb_and_resource(api: Api) -> None:
    _, client = api
    await client.get(OPTIMIZED_MODEL, "team", "digits")
    await client.apply(OPTIMIZED_MODEL, MODEL)
    await client.list(OPTIMIZED_MODEL, "team")
    assert client.requests[("get", "optimizedmodels.fettle.dev")] == 1
    assert client.requests[("patch", "optimizedmodels.fettle.dev")] == 1
    assert client.requests[("list", "optimizedmodels.fettle.dev")] == 1
