"""`fettle prune`: what stays, what goes, and what is told. The pod's program runs as a process of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.unit.cli.api_server import api_server
from tests.unit.cli.pipe import running
from tests.unit.cli.test_pull import artifact

from fettle.api.report import PublishReport
from fettle.cli.access.cluster import connect
from fettle.cli.commands.prune import mentioned, outcome, swept
from fettle.cli.main import main
from fettle.cli.pods import prune as program
from fettle.errors import StoreError
from fettle.store.manifest import check_fetched, copy_artifact
from fettle.store.store import Store
from fettle.store.uris import Mounts

HOUR = 3600


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    """What the pod mounts."""
    return tmp_path / "claim"


@pytest.fixture
def store(claim: Path) -> Store:
    """A store at the root of the claim."""
    claim.mkdir()
    return Store.open("pvc://store", Mounts({"store": claim}))


def prune(claim: Path, keep: Iterable[str] = (), *, store: str = "", older: int = HOUR, dry: bool = False) -> Any:
    """What the program that runs in the pod answers."""
    with running(program, claim) as pipe:
        return swept(pipe, store, keep, older, dry)


def age(claim: Path, hours: int = 2) -> None:
    """As if nothing in the claim had been used since."""
    for path in claim.rglob("*"):
        os.utime(path, (time.time() - hours * HOUR,) * 2)


def blobs(claim: Path) -> int:
    return len(list((claim / "blobs").iterdir()))


def test_an_artifact_that_is_referred_to_stays_whole_and_what_it_shares_with_others_too(
    store: Store, claim: Path, tmp_path: Path
) -> None:
    kept, other = artifact(store, tmp_path / "a", b"serves"), artifact(store, tmp_path / "b", b"lost")
    age(claim)
    answer = prune(claim, [kept])
    assert answer["removed"] == {"files": 1, "bytes": len(b"lost")}, "weights and reference are shared"
    assert answer["artifacts"] == 1
    copy_artifact(store, kept, tmp_path / "copy")
    assert check_fetched(tmp_path / "copy", kept)
    assert (claim / "artifacts" / other / "manifest.json").is_file(), "what was tried stays on record"
    assert answer["stays"]["files"] == blobs(claim) == 3


def test_what_was_used_lately_stays(store: Store, claim: Path, tmp_path: Path) -> None:
    artifact(store, tmp_path / "a", b"lost")
    age(claim)
    artifact(store, tmp_path / "a", b"lost")  # the same again: nothing is written, but all of it is used
    assert prune(claim)["removed"]["files"] == 0
    assert prune(claim, older=0)["removed"]["files"] == blobs(claim) + 3 == 3


def test_an_answer_that_names_what_is_gone_goes_too_and_one_that_is_kept_keeps_what_it_names(
    store: Store, claim: Path, tmp_path: Path
) -> None:
    report = {name: artifact(store, tmp_path / name, name.encode()) for name in ("kept", "gone")}
    hashes = {"kept": "1" * 64, "gone": "2" * 64}
    for name, digest in report.items():
        store.put_result(hashes[name], PublishReport(report_uri="pvc://store/report", artifacts={"cpu": digest}))
    age(claim)
    prune(claim, [hashes["kept"]])
    assert store.result(hashes["kept"]) is not None
    assert store.result(hashes["gone"]) is None, "it would be believed"
    copy_artifact(store, report["kept"], tmp_path / "copy")


def test_what_a_killed_process_left_half_written_goes(store: Store, claim: Path) -> None:
    store.put_bytes(b"whole")
    half = claim / "blobs" / ".abc.123.partial"
    half.write_bytes(b"ha")
    assert prune(claim)["removed"]["files"] == 0, "it may still be written"
    age(claim)
    prune(claim, [path.name for path in (claim / "blobs").iterdir()])
    assert not half.exists()


@pytest.mark.parametrize("place", ["checkpoints/{}/00000003.pt", "gpu/{}"])
def test_checkpoints_and_what_gpus_found_out_go_when_they_are_old_and_fresh_ones_stay(
    place: str, store: Store, claim: Path
) -> None:
    store.put_bytes(b"whole")
    left, fresh = place.format("a" * 64), place.format("b" * 64)
    store.write_bytes(left, b"state")
    age(claim)
    store.write_bytes(fresh, b"state")
    answer = prune(claim, [path.name for path in (claim / "blobs").iterdir()])
    assert answer["removed"] == {"files": 1, "bytes": len(b"state")}
    assert (store.exists(left), store.exists(fresh)) == (False, True)


@pytest.mark.parametrize("folder", ["builds", "trained"])
def test_a_cached_build_whose_files_are_gone_goes_too(folder: str, store: Store, claim: Path) -> None:
    gone, kept = store.put_bytes(b"gone"), store.put_bytes(b"kept")
    for digest in (gone, kept):
        store.write_bytes(f"{folder}/{digest}.json", f'{{"sha256": "{digest}"}}'.encode())
    age(claim)
    prune(claim, [kept])
    assert store.names(folder) == [f"{kept}.json"]


def test_a_document_that_is_damaged_stops_nothing(store: Store, claim: Path) -> None:
    store.put_bytes(b"unused")
    store.write_bytes("results/a.json", b"\xff\xfe\x00{")
    store.write_bytes(f"artifacts/{'a' * 64}/manifest.json", b"\x80\x81")
    age(claim)
    assert prune(claim, ["a", "a" * 64])["removed"]["files"] == 1


def test_a_dry_run_changes_nothing(store: Store, claim: Path, tmp_path: Path) -> None:
    artifact(store, tmp_path / "a")
    age(claim)
    before = {path: path.stat().st_mtime_ns for path in claim.rglob("*")}
    answer = prune(claim, dry=True)
    assert answer["removed"]["files"] == 3
    assert {path: path.stat().st_mtime_ns for path in claim.rglob("*")} == before
    assert "would be removed; the manifests and figures of 1 artifacts are kept" in outcome(answer, dry=True)


@pytest.mark.parametrize("place", ["", "elsewhere", "../outside"])
def test_where_there_is_no_store_nothing_is_touched(claim: Path, place: str) -> None:
    (claim.parent / "outside/blobs").mkdir(parents=True)
    claim.mkdir()
    with pytest.raises(StoreError, match="no store at"):
        prune(claim, store=place)


def test_whatever_objects_of_the_cluster_name_stays(tmp_path: Path) -> None:
    served, published, task, line = ("abcd"[index] * 64 for index in range(4))
    with api_server() as server:
        base, children = "/apis/fettle.dev/v1alpha1/namespaces/default", "namespaces/default"
        uri = f"pvc://fettle-store/artifacts/{published}"
        server.objects[f"{base}/optimizedmodels"] = {"items": [{"status": {"artifacts": [{"uri": uri}]}}]}
        server.objects[f"{base}/modeldeployments"] = {"items": [{"spec": {"model": {"sha256": served}}}]}
        job = {"metadata": {"name": "j", "annotations": {"fettle.dev/task": task}}}
        server.objects[f"/apis/batch/v1/{children}/jobs"] = {"items": [job]}
        entry = {"metadata": {"name": "e"}, "revision": 1, "data": {"artifact": line}}
        server.objects[f"/apis/apps/v1/{children}/controllerrevisions"] = {"items": [entry]}
        cluster = connect(str(server.kubeconfig(tmp_path)), None, None)
        objects = [
            *cluster.objects("optimizedmodels"),
            *cluster.objects("modeldeployments"),
            *cluster.children(),
        ]
    assert mentioned(objects) == {served, published, task, line}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep", "abc"], "expected the sha256 of an artifact"),
        (["./fettle-store"], "expected pvc://CLAIM/PATH"),
        (["--older-than", "-1"], "not in the range"),
    ],
)
def test_what_cannot_be_meant_is_said(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["prune", *arguments])
    assert result.exit_code != 0
    assert words in result.output + str(result.exception)
