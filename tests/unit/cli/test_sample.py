"""`kubectl fettle sample`: what live requests asked becomes a file that an optimization reads."""

from __future__ import annotations

import base64
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.cli.api_server import ApiServer, api_server
from tests.unit.cli.test_kubectl import STATUS, run
from tests.unit.server.serving import SIGNATURE, Server
from tests.unit.server.test_replay import TOKEN, ask, drain, serve

from fettle.cli.access.live_items import PodPort, gather
from fettle.cli.commands.sample import summary
from fettle.cluster.serving import samples_name
from fettle.errors import ClusterError
from fettle.optimizer.data.columns import Room
from fettle.optimizer.data.items import ItemsRequest, read
from fettle.server.live_items import LiveItems
from fettle.store.uris import Mounts

BASE = "/apis/fettle.dev/v1alpha1/namespaces/default/modeldeployments/digits"
DEPLOYMENT = {
    "metadata": {"name": "digits", "uid": "u"},
    "spec": {"model": {"ref": {"name": "digits", "target": "cpu"}}},
    "status": {key: STATUS[key] for key in ("conditions", "stable")},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = serve(tmp_path_factory.mktemp("served"), "stable")
    yield started
    started.stop()


@pytest.fixture
def cluster() -> Iterator[ApiServer]:
    with api_server() as found:
        found.objects[BASE] = DEPLOYMENT
        yield found


def port(server: Server, token: str = TOKEN, name: str = "pod-a") -> PodPort:
    return PodPort(name, token, lambda: socket.create_connection(("127.0.0.1", server.management)))


def at_once(pods: list[PodPort], wanted: int, seconds: float = 3) -> LiveItems:
    """Gathered on a clock that goes on by a second each time it is read."""
    return gather(pods, wanted, seconds, clock=itertools.count().__next__, pause=lambda seconds: None)


def test_items_are_those_that_were_asked_each_once(server: Server, tmp_path: Path) -> None:
    drain(server)
    ask(server, [0, 1, 2, 3], 1)
    ask(server, [4, 5, 6, 7], 2)
    found = at_once([port(server)], 5)
    assert (
        summary(found, 5) == "2 of 5 items, because there were no more requests in that time (1 repeated ones skipped)"
    )
    np.savez(tmp_path / "live.npz", **found.arrays(5))  # type: ignore[arg-type]
    request = ItemsRequest("pvc://claim/live.npz")
    items = read(request, Mounts({"claim": tmp_path}), SIGNATURE, {"x": 0}, Room(1 << 20))
    assert sorted(items.arrays["x"].reshape(-1, 4).tolist()) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_it_ends_as_soon_as_there_are_enough(server: Server) -> None:
    drain(server)
    ask(server, [0, 1, 2, 3], 1)
    ask(server, [4, 5, 6, 7], 1)
    found = at_once([port(server)], 1, seconds=1e9)
    assert found.arrays(1)["x"].tolist() == [[4, 5, 6, 7]], "the youngest first"


def test_a_pod_that_fails_is_asked_no_more_and_others_are(server: Server) -> None:
    drain(server)
    ask(server, [0, 1, 2, 3], 1)
    found = at_once([port(server, token="wrong"), port(server, name="pod-b")], 1)
    assert len(found) == 1


def test_it_says_why_no_pod_handed_out_anything(server: Server) -> None:
    drain(server)
    with pytest.raises(ClusterError, match=r"pod pod-a returned no samples: 401 expected the token"):
        at_once([port(server, token="wrong")], 1)
    with pytest.raises(ClusterError, match="no pod answered a request within 3 s"):
        at_once([port(server)], 1)


def test_what_cannot_be_kept_in_one_file_is_skipped_and_counted() -> None:
    found = LiveItems()
    for tokens in ([1, 2], [3, 4], [5]):
        found.add({"tokens": np.array(tokens)})
    found.add({"tokens": np.array([np.inf, 1.0])})
    assert found.arrays(9)["tokens"].tolist() == [[1, 2], [3, 4]]
    assert summary(found, 2) == "2 items (1 of other shapes skipped, 1 with infinity skipped)"


def test_a_text_as_long_as_a_book_does_not_make_every_other_one_as_large() -> None:
    found = LiveItems()
    for text in ("good", "x" * 100_000):
        found.add({"text": np.array([text], object)})
    assert found.arrays(9)["text"].nbytes < 100
    assert summary(found, 1) == "1 item (1 too large skipped)"


def test_texts_are_saved_without_pickles(tmp_path: Path) -> None:
    found = LiveItems()
    for text in ("good", "good ", "bad\0"):
        found.add({"text": np.array([text], object)})
    np.savez(tmp_path / "live.npz", **found.arrays(9))  # type: ignore[arg-type]
    with np.load(tmp_path / "live.npz", allow_pickle=False) as saved:
        assert saved["text"][:2].tolist() == [["good"], ["good "]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spec": {**DEPLOYMENT["spec"], "server": {"samples": 0}}}, "keeps no samples: spec.server.samples is 0"),  # type: ignore[dict-item]
        ({}, "has no ready pod of a stable revision"),
        ({"status": {}}, "has no ready pod of a stable revision"),
    ],
)
def test_it_says_what_is_missing(cluster: ApiServer, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    cluster.objects[BASE] = {**DEPLOYMENT, **changes}
    cluster.objects["/api/v1/namespaces/default/pods"] = {"kind": "PodList", "apiVersion": "v1", "items": []}
    result = run(cluster, tmp_path, "sample", "digits", str(tmp_path / "live.npz"))
    assert (result.exit_code != 0, said in result.output) == (True, True), result.output


def test_who_may_not_forward_ports_is_told_so(cluster: ApiServer, tmp_path: Path) -> None:
    pod = {
        "metadata": {"name": "digits-a", "labels": {"fettle.dev/revision": "aaaa", "fettle.dev/traffic": "on"}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    secret = {"kind": "Secret", "apiVersion": "v1", "data": {"token": base64.b64encode(TOKEN.encode()).decode()}}
    cluster.objects["/api/v1/namespaces/default/pods"] = {"kind": "PodList", "apiVersion": "v1", "items": [pod]}
    cluster.objects[f"/api/v1/namespaces/default/secrets/{samples_name(DEPLOYMENT)}"] = secret
    cluster.refuse["/api/v1/namespaces/default/pods/digits-a/portforward"] = (403, "forbidden")
    result = run(cluster, tmp_path, "sample", "digits", str(tmp_path / "live.npz"))
    assert (result.exit_code, "403" in result.output, list(tmp_path.glob("*.npz"))) == (1, True, []), result.output


def test_a_file_that_is_there_is_never_overwritten(cluster: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "live.npz").write_bytes(b"mine")
    result = run(cluster, tmp_path, "sample", "digits", str(tmp_path / "live.npz"))
    assert (result.exit_code, (tmp_path / "live.npz").read_bytes()) == (2, b"mine")
    assert "already exists" in result.output
    assert "ends in .npz" in run(cluster, tmp_path, "sample", "digits", str(tmp_path / "live.csv")).output
