"""What a Secret's name changes in a run, and what it does not."""

from __future__ import annotations

from typing import Any

from tests.unit.plan.optimize.world import World, make_spec


def settled(secret: str | None) -> World:
    """A run whose items and store are opened by that Secret."""
    beside: dict[str, Any] = {"secretName": secret} if secret is not None else {}
    evaluation = {"uri": "s3://data/evaluation.npz", **beside}
    store = {"uri": "s3://artifacts/team", **beside}
    world = World(make_spec(data={"evaluation": evaluation}, store=store), store_secret=secret)
    world.settle()
    return world


def test_a_renamed_secret_repeats_no_build_and_no_measurement() -> None:
    def hashes(world: World, stage: str) -> set[str]:
        return {request.task_hash for request in world.started if request.stage == stage}

    one, other = settled("minio"), settled("renamed")
    for stage in ("build", "measure"):
        assert hashes(one, stage) == hashes(other, stage) != set()
    assert hashes(one, "prepare") != hashes(other, "prepare"), "it is what opens the items"


def test_what_is_published_names_the_secret_of_its_store() -> None:
    (artifact,) = settled("minio").status.artifacts
    assert (artifact.uri.rpartition("/artifacts/")[0], artifact.secret_name) == ("s3://artifacts/team", "minio")
    assert settled(None).status.artifacts[0].secret_name is None
