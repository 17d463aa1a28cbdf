"""Weights as counts of pods."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fettle.plan.rollout.providers.replicas import Leaving, canary_pods, reached, retire, sizes
from fettle.plan.rollout.state import Workload


def pods(revision: str, replicas: int, ready: int | None = None) -> Workload:
    count = replicas if ready is None else ready
    return Workload(revision, replicas=replicas, ready=count, available=count, pods=replicas)


@pytest.mark.parametrize(
    ("weight", "replicas", "expected"),
    [
        (0, 10, 0),
        (1, 10, 1),  # at least one pod
        (10, 10, 1),
        (34, 3, 1),
        (67, 3, 2),
        (50, 3, 2),
        (99, 3, 2),  # stable keeps a pod below 100
        (100, 3, 3),
        (10, 1, 1),
        (50, 0, 0),
        (100, 0, 0),
    ],
)
def test_the_canary_gets_the_count_nearest_to_its_weight(weight: int, replicas: int, expected: int) -> None:
    assert canary_pods(weight, replicas) == expected


@pytest.mark.parametrize(
    ("name", "weight", "replicas", "stable", "canary", "expected"),
    [
        ("the first canary pod comes on top", 34, 3, pods("a", 3), pods("b", 0), (3, 1)),
        ("stable waits for it", 34, 3, pods("a", 3), pods("b", 1, 0), (3, 1)),
        ("then gives one up", 34, 3, pods("a", 3), pods("b", 1), (2, 1)),
        ("one more canary pod, then one stable less", 67, 3, pods("a", 2), pods("b", 1), (2, 2)),
        ("a canary that stumbles does not bring stable back", 67, 3, pods("a", 1), pods("b", 2, 1), (1, 2)),
        ("a lowered weight: stable first", 34, 3, pods("a", 1), pods("b", 2), (2, 2)),
        ("and the canary when stable is there", 34, 3, pods("a", 2), pods("b", 2), (2, 1)),
        ("weight 0: stable to full size first", 0, 3, pods("a", 1), pods("b", 2), (3, 2)),
        ("to full size pod by pod", 100, 4, pods("a", 2), pods("b", 2), (2, 3)),
        ("at full size stable goes", 100, 4, pods("a", 2), pods("b", 4), (0, 4)),
        ("scaled up: both grow", 50, 8, pods("a", 2), pods("b", 2), (4, 4)),
        ("scaled down: both shrink", 50, 2, pods("a", 4), pods("b", 4), (1, 1)),
        ("one replica: one of each", 10, 1, pods("a", 1), pods("b", 1), (1, 1)),
        ("scaled to zero", 50, 0, pods("a", 2), pods("b", 2), (0, 0)),
        ("nothing runs yet", 50, 4, pods("a", 0), pods("b", 0), (2, 2)),
    ],
)
def test_the_way_to_a_weight(
    name: str, weight: int, replicas: int, stable: Workload, canary: Workload, expected: tuple[int, int]
) -> None:
    found = sizes(weight, replicas, stable, canary)
    assert (found.stable, found.canary) == expected, name


def test_at_the_last_weight_stable_keeps_its_pods_until_it_is_replaced() -> None:
    found = sizes(100, 3, pods("a", 1), pods("b", 3), keep_stable=True)
    assert (found.stable, found.canary) == (1, 3)


def test_a_frozen_canary_does_not_grow_but_scaling_goes_on() -> None:
    found = sizes(67, 3, pods("a", 2), pods("b", 1), in_force=34, frozen=True)
    assert (found.stable, found.canary) == (2, 1)
    found = sizes(50, 8, pods("a", 2), pods("b", 2), in_force=50, frozen=True)
    assert (found.stable, found.canary) == (4, 4)


def test_a_promotion_on_more_replicas_brings_stable_pods_back_until_the_canary_has_its_own() -> None:
    found = sizes(100, 6, pods("a", 1), pods("b", 2), keep_stable=True)
    assert (found.stable, found.canary) == (4, 3)


@given(
    st.integers(0, 100),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(0, 30),
    st.booleans(),
)
def test_no_count_is_negative_and_capacity_is_never_given_up(
    weight: int, replicas: int, stable: int, stable_ready: int, canary: int, canary_ready: int, frozen: bool
) -> None:
    a, b = pods("a", stable, min(stable, stable_ready)), pods("b", canary, min(canary, canary_ready))
    found = sizes(weight, replicas, a, b, frozen=frozen)
    assert 0 <= found.stable <= replicas
    assert 0 <= found.canary <= replicas
    kept = min(a.ready, found.stable) + min(b.ready, found.canary)
    assert kept >= min(replicas, a.ready + b.ready), "ready pods were taken away below what is asked for"
    if 0 < weight < 100 and replicas:
        assert found.stable >= 1


def test_a_weight_is_reached_by_available_pods_only() -> None:
    assert reached(0, 3, pods("b", 0))
    assert not reached(34, 3, pods("b", 1, 0))
    assert reached(34, 3, pods("b", 1))
    assert not reached(100, 3, pods("b", 3, 2))
    assert not reached(50, 0, pods("b", 0))


def test_who_leaves_stands_in_for_pods_that_are_on_their_way() -> None:
    leaving = [Leaving(pods("b", 2), failed=False)]
    assert retire(leaving, 3, [pods("a", 1)]) == {"b": 2}
    assert retire(leaving, 3, [pods("a", 3, 2)]) == {"b": 1}
    assert retire(leaving, 3, [pods("a", 3)]) == {"b": 0}


def test_who_failed_leaves_at_once_if_another_pod_is_ready() -> None:
    leaving = [Leaving(pods("b", 2), failed=True)]
    assert retire(leaving, 3, [pods("a", 3, 1)]) == {"b": 0}
    assert retire(leaving, 3, [pods("a", 3, 0)]) == {"b": 2}
    assert retire(leaving, 0, [pods("a", 0)]) == {"b": 0}
