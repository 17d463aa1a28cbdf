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
    cache.replace(JOB, [job("kept", version=1), job("found", version=3)], "10")
    assert {obj["metadata"]["name"] for obj in cache.all(JOB)} == {"kept", "found", "newer"}


def test_a_list_of_one_namespace_says_nothing_of_another(cache: Cache) -> None:
    elsewhere = job("elsewhere")
    elsewhere["metadata"]["namespace"] = "other"
    cache.put(JOB, elsewhere)
    cache.replace(JOB, [], "10", namespace="team")
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


def test_an_object_that_went_out_of_sight_comes_back_when_its_label_is_put_on_again(cache: Cache) -> None:
    cache.put(JOB, job(version=5, owner="o"))
    assert cache.drop(JOB, "team", "j", "uid-j", version=8), "the watch says DELETED when a label is taken off"
    assert not cache.put(JOB, job(version=8)), "an echo of that moment"
    assert cache.put(JOB, job(version=9, owner="o"))
    assert [child["metadata"]["name"] for child in cache.owned(JOB, "o")] == ["j"]


def test_what_a_list_did_not_have_comes_back_with_a_newer_version(cache: Cache) -> None:
    cache.put(JOB, job(version=5))
    cache.replace(JOB, [], "8")
    assert not cache.put(JOB, job(version=7))
    cache.replace(JOB, [job(version=9)], "10")
    assert cache.get(JOB, "team", "j") is not None


def test_a_late_word_that_it_went_out_of_sight_does_not_hide_what_is_back(cache: Cache) -> None:
    cache.put(JOB, job(version=9))  # the answer to our own write, which put the label on again
    assert not cache.drop(JOB, "team", "j", "uid-j", version=8)
    assert cache.get(JOB, "team", "j") is not None


def test_what_we_deleted_ourselves_stays_dead_whatever_a_watch_says_of_its_last_moments(cache: Cache) -> None:
    cache.put(JOB, job(version=5))
    cache.drop(JOB, "team", "j", "uid-j")
    cache.drop(JOB, "team", "j", "uid-j", version=7)
    assert not cache.put(JOB, job(version=99))


def test_versions_that_are_no_numbers_are_taken_in_the_order_in_which_they_come(cache: Cache) -> None:
    for version in ("abc", "abd", "aaa"):
        one = job()
        one["metadata"]["resourceVersion"] = version
        assert cache.put(JOB, one)
        assert not cache.put(JOB, one), "its own echo"
