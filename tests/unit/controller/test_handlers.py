"""Watch events: into the cache, then the right keys into the queue. kopf as a pure watcher."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api_server import serving

from fettle.cluster.cache import Cache
from fettle.cluster.kinds import CHILDREN, CLAIM, JOB, MODEL_DEPLOYMENT, OPTIMIZED_MODEL, OWN, POD, Object
from fettle.cluster.owner import Key
from fettle.controller.handlers import Feed, connection, kopf_settings, registry
from fettle.settings import Settings

MODEL = Key("OptimizedModel", "team", "digits")


def obj(name: str, version: int = 1, namespace: str = "team", **fields: Any) -> Object:
    metadata = {"namespace": namespace, "name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {**fields, "metadata": {**metadata, **fields.get("metadata", {})}}


def event(type_: str | None, one: Object) -> dict[str, Any]:
    return {"type": type_, "object": one}


@pytest.fixture
def enqueued() -> list[Key]:
    return []


@pytest.fixture
def feed(enqueued: list[Key]) -> Feed:
    return Feed(Cache(), enqueued.append, Settings().serves)


def follower(name: str, follows: str) -> Object:
    return obj(name, spec={"model": {"ref": {"name": follows, "target": "cpu"}}})


def test_an_optimized_model_wakes_itself_and_those_that_follow_it(feed: Feed, enqueued: list[Key]) -> None:
    feed.take(MODEL_DEPLOYMENT, event("ADDED", follower("serves", "digits")))
    feed.take(MODEL_DEPLOYMENT, event("ADDED", follower("other", "letters")))
    feed.take(MODEL_DEPLOYMENT, event("ADDED", obj("fixed", spec={"model": {"uri": "pvc://x"}})))
    enqueued.clear()
    feed.take(OPTIMIZED_MODEL, event("MODIFIED", obj("digits")))
    assert enqueued == [MODEL, Key("ModelDeployment", "team", "serves")]


def test_a_job_and_its_pod_wake_their_object(feed: Feed, enqueued: list[Key]) -> None:
    owner = {
        "apiVersion": "fettle.dev/v1alpha1",
        "kind": "OptimizedModel",
        "name": "digits",
        "uid": "u",
        "controller": True,
    }
    feed.take(JOB, event("ADDED", obj("j", metadata={"ownerReferences": [owner]})))
    feed.take(POD, event("ADDED", obj("p", metadata={"annotations": {"fettle.dev/owner": "OptimizedModel/digits"}})))
    assert enqueued == [MODEL, MODEL]


def test_a_claim_wakes_whoever_may_wait_for_it(feed: Feed, enqueued: list[Key]) -> None:
    feed.take(OPTIMIZED_MODEL, event("ADDED", obj("digits")))
    feed.take(OPTIMIZED_MODEL, event("ADDED", obj("digits", namespace="other", metadata={"uid": "other"})))
    enqueued.clear()
    feed.take(CLAIM, event("ADDED", obj("fettle-store")))
    assert enqueued == [MODEL]


def test_a_deletion_wakes_too_and_is_gone_from_the_cache(feed: Feed, enqueued: list[Key]) -> None:
    feed.take(OPTIMIZED_MODEL, event("ADDED", obj("digits")))
    feed.take(OPTIMIZED_MODEL, event("DELETED", obj("digits", version=2)))
    assert enqueued == [MODEL, MODEL]
    assert feed._cache.get(OPTIMIZED_MODEL, "team", "digits") is None


def test_what_the_first_lists_brought_already_is_not_enqueued_again(feed: Feed, enqueued: list[Key]) -> None:
    feed.take(OPTIMIZED_MODEL, event(None, obj("digits")))
    feed.take(OPTIMIZED_MODEL, event(None, obj("digits")))
    assert enqueued == [MODEL]


def test_namespaces_that_are_not_served_are_not_looked_at(enqueued: list[Key]) -> None:
    feed = Feed(Cache(), enqueued.append, Settings(watch_namespaces=("other",)).serves)
    feed.take(OPTIMIZED_MODEL, event("ADDED", obj("digits")))
    assert enqueued == [] and feed._cache.count(OPTIMIZED_MODEL) == 0


async def test_kopf_only_watches() -> None:
    async with serving() as (_, client):
        handlers = registry(Feed(Cache(), lambda key: None, Settings().serves), client, lambda lease: None)
        watched = list(handlers._watching.get_all_handlers())
        assert len(watched) == len(OWN) + len(CHILDREN) + 1  # and our own Lease
        for others in (handlers._changing, handlers._spawning, handlers._indexing, handlers._webhooks):
            assert list(others.get_all_handlers()) == [], (
                "these would write finalizers or annotations into users' objects"
            )
        info = await connection(client)
        assert info.server == client.configuration.host and info.token is None


def test_children_are_selected_on_the_servers_side() -> None:
    settings = kopf_settings("fettle")
    assert len(settings.watching.label_selectors) == len(CHILDREN)
    assert set(settings.watching.label_selectors.values()) == {"fettle.dev/managed=true"}
    assert list(settings.watching.field_selectors.values()) == ["metadata.name=fettle"]
    assert not settings.posting.enabled and settings.scanning.disabled and settings.queueing.worker_limit is None


def test_a_child_whose_label_is_taken_off_and_put_back_is_seen_again(feed: Feed, enqueued: list[Key]) -> None:
    owner = {"apiVersion": "fettle.dev/v1alpha1", "kind": "OptimizedModel", "name": "digits", "uid": "u"}
    child = {"ownerReferences": [{**owner, "controller": True}]}
    for type_, version in (("ADDED", 1), ("DELETED", 4), ("ADDED", 6)):
        feed.take(JOB, event(type_, obj("j", version, metadata=child)))
    assert feed._cache.owned(JOB, "u")
    assert enqueued == [MODEL] * 3
