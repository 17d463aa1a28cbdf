"""What `status --watch` knows: kept by watches, through everything that ends one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.unit.cli.api_server import ApiServer, api_server
from tests.unit.cli.terminal import PATIENCE

from fettle.cli.access import watching
from fettle.cli.access.cluster import DEPLOYMENTS, MODELS, connect
from fettle.cli.access.watching import LONGEST_PAUSE_SECONDS, Watched, _pause

OURS = "/apis/fettle.dev/v1alpha1/namespaces/default"
DEPLOYMENT, MODEL, PODS = f"{OURS}/{DEPLOYMENTS}", f"{OURS}/{MODELS}", "/api/v1/namespaces/default/pods"


def digits(version: int, **others: Any) -> dict[str, Any]:
    """An object named digits, as it was at a version."""
    return {"metadata": {"name": "digits", "resourceVersion": str(version)}, **others}


def listed(version: int, *items: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": str(version)}, "items": list(items)}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A ModelDeployment, and nothing else."""
    with api_server() as found:
        found.objects = {DEPLOYMENT: listed(1, digits(1, spec="old")), MODEL: listed(1), PODS: listed(1)}
        yield found


@pytest.fixture
def watched(server: ApiServer, tmp_path: Path) -> Iterator[Watched]:
    """Everything that is called digits there."""
    with Watched(connect(str(server.kubeconfig(tmp_path)), None, None), "digits") as found:
        yield found


def soon(holds: Callable[[], object]) -> None:
    """Wait until it holds."""
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until, f"not within {PATIENCE} s"
        time.sleep(0.01)


def spec(watched: Watched) -> object:
    return (watched.object(DEPLOYMENTS) or {}).get("spec")


def versions(server: ApiServer) -> list[str | None]:
    """The versions from which the ModelDeployment was watched; None stands for a list."""
    asked = [parse_qs(urlsplit(one).query) for one in server.asked if one.startswith(DEPLOYMENT)]
    return [one["resourceVersion"][0] if "watch" in one else None for one in asked]


def test_a_change_comes_by_itself(server: ApiServer, watched: Watched) -> None:
    watched.changed.clear()
    server.watches[DEPLOYMENT].put({"type": "MODIFIED", "object": digits(2, spec="new")})
    assert watched.changed.wait(PATIENCE)
    assert spec(watched) == "new"
    assert versions(server) == [None, "1"]
    assert all("fieldSelector=metadata.name%3Ddigits" in one for one in server.asked if one.startswith(OURS))


def test_what_is_made_later_is_seen_too(server: ApiServer, watched: Watched) -> None:
    server.watches[MODEL].put({"type": "ADDED", "object": digits(2)})
    soon(lambda: watched.object(MODELS))


@pytest.mark.parametrize("kind", ["MODIFIED", "BOOKMARK"])
def test_a_watch_that_ends_is_taken_up_where_it_ended(server: ApiServer, watched: Watched, kind: str) -> None:
    server.watches[DEPLOYMENT].put({"type": kind, "object": digits(7)})
    server.watches[DEPLOYMENT].put(None)
    soon(lambda: len(versions(server)) == 3)
    assert versions(server) == [None, "1", "7"]
    assert watched.problem is None


def test_a_version_that_is_too_old_is_listed_anew(server: ApiServer, watched: Watched) -> None:
    server.objects[DEPLOYMENT] = listed(9, digits(8, spec="new"))
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version: 1 (9)"}
    server.watches[DEPLOYMENT].put({"type": "ERROR", "object": gone})
    soon(lambda: versions(server) == [None, "1", None, "9"])
    assert spec(watched) == "new"
    assert watched.problem is None


def test_what_was_deleted_is_told_from_what_never_was(server: ApiServer, watched: Watched) -> None:
    assert (watched.object(DEPLOYMENTS) is not None, watched.deleted) == (True, [])
    server.watches[DEPLOYMENT].put({"type": "DELETED", "object": digits(2)})
    soon(lambda: watched.object(DEPLOYMENTS) is None)
    assert watched.deleted == [DEPLOYMENTS]


@pytest.mark.parametrize(("code", "words"), [(503, "etcd is away"), (403, "cannot watch")])
def test_what_fails_again_is_a_problem_until_it_answers(
    server: ApiServer, watched: Watched, code: int, words: str
) -> None:
    soon(lambda: len(versions(server)) == 2)
    server.refuse[DEPLOYMENT] = (code, words)
    server.watches[DEPLOYMENT].put(None)
    soon(lambda: watched.problem)
    assert words in str(watched.problem)
    assert spec(watched) == "old", "what is known stays"
    server.objects[DEPLOYMENT] = listed(9, digits(8, spec="new"))
    del server.refuse[DEPLOYMENT]
    soon(lambda: watched.problem is None)
    assert spec(watched) == "new"


def test_tries_get_rarer() -> None:
    assert [_pause(failures) for failures in range(8)] == [
        0,
        0,
        1,
        2,
        4,
        8,
        LONGEST_PAUSE_SECONDS,
        LONGEST_PAUSE_SECONDS,
    ]


def test_who_may_not_see_pods_sees_the_rest(server: ApiServer, tmp_path: Path) -> None:
    server.refuse[PODS] = (403, "no")
    with Watched(connect(str(server.kubeconfig(tmp_path)), None, None), "digits") as watched:
        assert spec(watched) == "old"
        assert watched.pods is None


def test_who_leaves_waits_for_no_watch_and_leaves_no_thread_behind(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "STOP_SECONDS", 60)  # a watch lasts for longer
    before = set(threading.enumerate())
    with Watched(connect(str(server.kubeconfig(tmp_path)), None, None), "digits"):
        soon(lambda: len(versions(server)) == 2)
    assert not [
        one for one in set(threading.enumerate()) - before if one.name.startswith((DEPLOYMENTS, MODELS, "pods"))
    ]
