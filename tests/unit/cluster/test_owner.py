"""Whose a child is, and writing only to one's own, only when something differs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.api_server import ApiServer, serving

from fettle.api.reasons import Reason
from fettle.cluster.client import Client
from fettle.cluster.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, Object
from fettle.cluster.owner import Key, apply_owned, covers, owner_key, owner_reference
from fettle.errors import ClusterError

OWNER = {"metadata": {"namespace": "team", "name": "digits", "uid": "owner"}}
Api = tuple[ApiServer, Client]


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with serving() as pair:
        yield pair


def deployment(replicas: int = 1, owner: Object | None = OWNER) -> Object:
    references = [owner_reference(MODEL_DEPLOYMENT, owner)] if owner is not None else []
    metadata = {"namespace": "team", "name": "digits-abc", "ownerReferences": references}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"replicas": replicas}}


async def test_a_child_is_created_once_and_sent_again_only_when_it_differs(api: Api) -> None:
    server, client = api
    made = await apply_owned(client, DEPLOYMENT, deployment(), None)
    same = await apply_owned(client, DEPLOYMENT, deployment(), made)
    assert same is made and len(server.writes()) == 1
    changed = await apply_owned(client, DEPLOYMENT, deployment(2), made)
    assert changed["spec"]["replicas"] == 2 and len(server.writes()) == 2


async def test_a_field_that_is_not_wanted_any_more_is_noticed(api: Api) -> None:
    server, client = api
    wide = deployment()
    wide["spec"]["paused"] = True
    made = await apply_owned(client, DEPLOYMENT, wide, None)
    await apply_owned(client, DEPLOYMENT, deployment(), made)
    assert len(server.writes()) == 2


@pytest.mark.parametrize("owner", [None, {"metadata": {"namespace": "team", "name": "other", "uid": "another"}}])
async def test_an_object_of_somebody_else_is_never_written(api: Api, owner: Object | None) -> None:
    server, client = api
    theirs = await client.create(DEPLOYMENT, deployment(owner=owner))
    for current in (None, theirs):
        with pytest.raises(ClusterError) as caught:
            await apply_owned(client, DEPLOYMENT, deployment(2), current)
        assert caught.value.reason == Reason.NAME_CONFLICT and not caught.value.retryable
    assert len(server.writes()) == 1


async def test_what_an_earlier_owner_of_the_same_name_left_behind_is_waited_for(api: Api) -> None:
    server, client = api
    earlier = {**OWNER, "metadata": {**OWNER["metadata"], "uid": "an-earlier-one"}}
    left = await client.create(DEPLOYMENT, deployment(owner=earlier))
    with pytest.raises(ClusterError, match="which was deleted: it is being deleted; waiting") as caught:
        await apply_owned(client, DEPLOYMENT, deployment(2), left)
    assert caught.value.retryable and len(server.writes()) == 1


async def test_a_namesake_on_its_way_out_is_waited_for(api: Api) -> None:
    server, client = api
    going = await client.create(DEPLOYMENT, deployment())
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    with pytest.raises(ClusterError) as caught:
        await apply_owned(client, DEPLOYMENT, deployment(2), going)
    assert caught.value.retryable and len(server.writes()) == 1


@pytest.mark.parametrize(
    ("current", "desired", "same"),
    [
        ({"a": 1, "added": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": [{"n": "x", "added": 1}]}, {"a": [{"n": "x"}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "1000m"}}, True),
        ({"limits": {"cpu": "250m"}}, {"limits": {"cpu": 0.25}}, True),
        ({"requests": {"memory": "1Gi"}}, {"requests": {"memory": "1024Mi"}}, True),
        ({"requests": {"memory": "1Gi"}}, {"requests": {"memory": "1G"}}, False),
        ({"requests": {"memory": "84e6440816313204"}}, {"requests": {"memory": "1Gi"}}, False),
        ({"emptyDir": {"sizeLimit": "1Gi"}}, {"emptyDir": {"sizeLimit": "1024Mi"}}, True),
        ({"env": [{"name": "X", "value": "1"}]}, {"env": [{"name": "X", "value": "1.0"}]}, False),
        ({"annotations": {"applied": "84e6440816313204"}}, {"annotations": {"applied": "84e6440816313205"}}, False),
        ({"image": "a:1"}, {"image": "a:2"}, False),
        ({}, {"labels": {}, "paused": False, "volumes": []}, True),
        ({"emptyDir": {}}, {"emptyDir": {}}, True),
        ({"replicas": 3}, {"replicas": 0}, False),
        ({"replicas": 0}, {"replicas": 0}, True),
        ({"paused": True}, {"paused": False}, False),
    ],
)
def test_what_counts_as_a_difference(current: Any, desired: Any, same: bool) -> None:
    assert covers(current, desired) is same


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        (
            {
                "ownerReferences": [
                    {"apiVersion": "fettle.dev/v1alpha1", "kind": "OptimizedModel", "name": "m", "controller": True}
                ]
            },
            Key("OptimizedModel", "team", "m"),
        ),
        ({"annotations": {"fettle.dev/owner": "OptimizedModel/m.v1"}}, Key("OptimizedModel", "team", "m.v1")),
        ({"annotations": {"fettle.dev/owner": "Secret/m"}}, None),
        ({"labels": {"fettle.dev/modeldeployment": "d"}}, Key("ModelDeployment", "team", "d")),
        ({"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "controller": True}]}, None),
        ({}, None),
    ],
)
def test_a_child_leads_to_its_owner(metadata: Object, key: Key | None) -> None:
    assert owner_key({"metadata": {"namespace": "team", "name": "x", **metadata}}) == key
