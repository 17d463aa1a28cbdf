"""The cache: newest wins, the dead stay dead, owners find their children."""

from __future__ import annotations

import pytest

from fettle.cluster.cache import Cache
from fettle.cluster.kinds import JOB, POD, Object


def job(name: str = "j", version: int = 1, uid: str | None = None, owner: str | None = None, **extra: object) -> Object:
    metadata: Object = {"namespace": "team", "name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    if owner is not None:
        metadata["ownerReferences"] = [{"kind": "OptimizedModel", "name": "m", "uid": owner, "controller": True}]
    return {"metadata": metadata, **extra}


@pytest.fixture
def cache() -> Cache:
    return Cache((JOB, POD))


def test_an_older_event_never_replaces_a_newer_copy(cache: Cache) -> None:
    assert cache.put(JOB, job(version=10, status="new"))
    assert not cache.put(JOB, job(version=9, status="old"))
    assert not cache.put(JOB, job(version=10, status="echo"))
    found = cache.get(JOB, "team", "j")
    assert found is not None and found["status"] == "new"


def test_versions_are_compared_as_numbers(cache: Cache) -> None:
    cache.put(JOB, job(version=9))
    assert cache.put(JOB, job(version=10))


def test_what_was_deleted_does_not_come_back_by_a_late_event(cache: Cache) -> None:
    cache.put(JOB, job(version=1))
    assert cache.drop(JOB, "team", "j", "uid-j")
    assert not cache.put(JOB, job(version=5))
    assert cache.put(JOB, job(version=6, uid="another")), "a new object of that name is another"


def test_a_deletion_that_comes_before_its_object_counts_too(cache: Cache) -> None:
    assert not cache.drop(JOB, "team", "j", "uid-j")
    assert not cache.put(JOB, job())


def test_a_late_deletion_does_not_take_the_successor_away(cache: Cache) -> None:
    cache.put(JOB, job(version=1, uid="first"))
    cache.put(JOB, job(version=2, uid="second"))
    assert not cache.drop(JOB, "team", "j", "first")
    assert cache.get(JOB, "team", "j") is not None


def test_children_are_found_by_their_controller(cache: Cache) -> None:
    cache.put(JOB, job("b", owner="o"))
    cache.put(JOB, job("a", owner="o"))
    cache.put(JOB, job("c", owner="other"))
    assert [child["metadata"]["name"] for child in cache.owned(JOB, "o")] == ["a", "b"]
    cache.put(JOB, job("a", version=2, owner="other"))
    cache.drop(JOB, "team", "b")
    assert cache.owned(JOB, "o") == []


def test_a_list_reveals_what_vanished_unseen(cache: Cache) -> None:
    for name in ("kept", "gone"):
        cache.put(JOB, job(name, version=1))
    cache.put(JOB, job("newer", version=20))
    changed = cache.replace(JOB, [job("kept", version=1), job("found", version=3)], "10")
    assert sorted(obj["metadata"]["name"] for obj in changed) == ["found", "gone"]
    assert {obj["metadata"]["name"] for obj in cache.all(JOB)} == {"kept", "found", "newer"}


def test_a_list_of_one_namespace_says_nothing_of_another(cache: Cache) -> None:
    elsewhere = job("elsewhere")
    elsewhere["metadata"]["namespace"] = "other"
    cache.put(JOB, elsewhere)
    assert cache.replace(JOB, [], "10", namespace="team") == []
    assert cache.get(JOB, "other", "elsewhere") is not None


def test_nothing_is_decided_before_every_kind_was_listed(cache: Cache) -> None:
    cache.mark_listed(JOB)
    assert not cache.synced
    cache.mark_listed(POD)
    assert cache.synced


def test_field_managers_are_not_kept(cache: Cache) -> None:
    one = job()
    one["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    cache.put(JOB, one)
    found = cache.get(JOB, "team", "j")
    assert found is not None and "managedFields" not in found["metadata"]
