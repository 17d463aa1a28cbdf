"""`fettle pull` and `kubectl fettle report`: what is copied, and what is refused. The pod's program runs as a process of this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.unit.cli.api_server import api_server
from tests.unit.cli.pipe import Silent, running

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName
from fettle.cli.access.claim_files import BLOCK, ClaimFiles
from fettle.cli.access.cluster import connect
from fettle.cli.access.pull_files import artifact_of, pull_artifact, pull_files
from fettle.cli.commands.pull import published
from fettle.cli.commands.report import report_of
from fettle.cli.main import main
from fettle.cli.pods import send
from fettle.errors import ClusterError, MissingError, StoreError, UsageError
from fettle.store.manifest import DataRecord, Manifest, RecipeRecord, check_fetched, put_reference, write_artifact
from fettle.store.store import Store
from fettle.store.uris import Location, Mounts

MODELS = "/apis/fettle.dev/v1alpha1/namespaces/default/optimizedmodels"


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    """What the pod mounts."""
    folder = tmp_path / "claim"
    folder.mkdir()
    return folder


@pytest.fixture
def files(claim: Path) -> Iterator[ClaimFiles]:
    """The claim's files, through the program that runs in the pod."""
    with running(send, claim) as pipe:
        yield ClaimFiles(pipe)


def pull(files: ClaimFiles, path: str, to: Path) -> tuple[int, int, int]:
    """Files, files that were copied, bytes of all."""
    return pull_files(files, path, to, lambda number: None)


def artifact(store: Store, folder: Path, content: bytes = b"graph") -> str:
    """Digest of an artifact in `store`, its model made in `folder`."""
    (folder / "made/deep").mkdir(parents=True, exist_ok=True)
    (folder / "made/model.onnx").write_bytes(content)
    (folder / "made/deep/weights").write_bytes(bytes(3000))
    manifest = Manifest(
        source_sha256="a" * 64,
        recipe=RecipeRecord(name="int8"),
        data=DataRecord(),
        libraries={},
        runtime=RuntimeName.ONNXRUNTIME,
        settings=RuntimeSettings(threads=1),
        signature=Signature(inputs=(), outputs=()),
        tolerances={},
        model=store.put_model(folder / "made", "model.onnx"),
        reference=put_reference(store, {"x": np.zeros(1, np.float32)}, {"y": np.zeros(1, np.float32)}),
    )
    return write_artifact(store, manifest)


def test_a_file_arrives_whole_and_once(claim: Path, files: ClaimFiles, tmp_path: Path) -> None:
    content = os.urandom(2 * BLOCK + 17)
    (claim / "reports").mkdir()
    (claim / "reports/1.html").write_bytes(content)
    to = tmp_path / "here/digits.html"
    assert pull(files, "reports/1.html", to) == (1, 1, len(content))
    assert to.read_bytes() == content
    assert [path.name for path in to.parent.iterdir()] == ["digits.html"], "no temporary file is left"
    assert pull(files, "reports/1.html", to) == (1, 0, len(content))
    assert pull(files, "reports/1.html", to.parent) == (1, 1, len(content)), "into a folder, under its own name"
    assert (to.parent / "1.html").read_bytes() == content


def test_a_folder_arrives_and_only_what_changed_is_fetched_again(
    claim: Path, files: ClaimFiles, tmp_path: Path
) -> None:
    for name, text in (("a", "one"), ("deep/b", "two"), ("empty", ""), (".c.12.partial", "half")):
        path = claim / "digits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    to = tmp_path / "digits"
    assert pull(files, "digits", to) == (3, 3, 6), "what is only half written is left"
    (claim / "digits/deep/b").write_text("six")
    assert pull(files, "digits", to) == (3, 1, 6)
    assert {path.relative_to(to).as_posix(): path.read_text() for path in to.rglob("*") if path.is_file()} == {
        "a": "one",
        "deep/b": "six",
        "empty": "",
    }
    assert pull(files, "", tmp_path / "whole") == (3, 3, 6)
    assert (tmp_path / "whole/digits/deep/b").read_text() == "six"


def test_a_file_that_changes_meanwhile_is_refused_and_leaves_nothing(
    claim: Path, files: ClaimFiles, tmp_path: Path
) -> None:
    (claim / "m").write_text("before")
    to = tmp_path / "m"

    def change(_: int) -> None:
        (claim / "m").write_text("afterw")

    with pytest.raises(StoreError, match="was damaged in transit, or changed in the meantime") as raised:
        pull_files(files, "m", to, change)
    assert raised.value.reason == Reason.DIGEST_MISMATCH
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]


def test_what_is_not_there_is_named(files: ClaimFiles, claim: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"reports/2\.html: not found") as raised:
        pull(files, "reports/2.html", tmp_path / "x")
    assert raised.value.reason == Reason.STORE_NOT_FOUND
    (claim / "nothing").mkdir()
    with pytest.raises(UsageError, match="nothing contains no files"):
        pull(files, "nothing", tmp_path / "x")


def test_a_link_out_of_the_claim_is_not_followed(claim: Path, files: ClaimFiles, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (claim / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ClusterError, match="is outside the claim"):
        pull(files, "link", tmp_path / "x")


def test_a_place_that_cannot_be_written_is_an_error(claim: Path, files: ClaimFiles, tmp_path: Path) -> None:
    (claim / "m").write_text("text")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        pull(files, "m", tmp_path / "file/m")
    with pytest.raises(UsageError, match="a file must be written there"):
        (tmp_path / "folder/m").mkdir(parents=True)
        pull(files, "m", tmp_path / "folder")


def test_a_pod_that_ends_is_an_error() -> None:
    with pytest.raises(ClusterError, match="closed the connection"):
        ClaimFiles(Silent()).info("m")


@pytest.mark.parametrize("prefix", ["", "stores/mine"])
def test_an_artifact_becomes_a_folder_that_is_whole(
    claim: Path, files: ClaimFiles, tmp_path: Path, prefix: str
) -> None:
    store = Store.open(f"pvc://claim/{prefix}", Mounts({"claim": claim}))
    sha256, totals = artifact(store, tmp_path), list[int]()
    path = f"{prefix}/artifacts/{sha256}".lstrip("/")
    found = artifact_of(Location(f"pvc://claim/{path}", files, path))
    assert found is not None
    manifest = pull_artifact(*found, tmp_path / "winner", totals.append)
    assert check_fetched(tmp_path / "winner", sha256) == manifest
    assert (tmp_path / "winner/model/deep/weights").read_bytes() == bytes(3000)
    assert manifest.reference is not None
    assert totals == [manifest.bytes + manifest.reference.bytes]
    assert pull_artifact(*found, tmp_path / "winner", totals.append) == manifest


def test_a_blob_that_was_changed_is_refused(claim: Path, files: ClaimFiles, tmp_path: Path) -> None:
    sha256 = artifact(Store.open("pvc://claim", Mounts({"claim": claim})), tmp_path)
    for blob in (claim / "blobs").iterdir():
        blob.write_bytes(b"other")
    found = artifact_of(Location(f"pvc://claim/artifacts/{sha256}", files, f"artifacts/{sha256}"))
    assert found is not None
    with pytest.raises(StoreError) as raised:
        pull_artifact(*found, tmp_path / "winner", lambda number: None)
    assert raised.value.reason == Reason.ARTIFACT_TAMPERED
    assert not (tmp_path / "winner/manifest.json").exists()


def test_two_artifacts_are_never_mixed_in_one_folder(tmp_path: Path) -> None:
    store = Store.open((tmp_path / "store").as_uri(), Mounts(allow_files=True))
    first, second = artifact(store, tmp_path), artifact(store, tmp_path, b"another")
    runner, winner = CliRunner(), tmp_path / "winner"
    command = ["pull", str(tmp_path / "store/artifacts" / first), str(winner)]
    done = runner.invoke(main, command)
    assert done.exit_code == 0, done.output
    assert f"artifact {first[:12]}: int8 in onnxruntime" in done.output
    assert str(winner / "model/model.onnx") in done.output
    refused = runner.invoke(main, ["pull", str(tmp_path / "store/artifacts" / second), str(winner)])
    assert refused.exit_code == 2
    assert "contains another artifact: choose an empty or a new folder" in refused.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes").touch()
    refused = runner.invoke(main, [*command[:2], str(tmp_path / "mine")])
    assert "contains notes" in refused.output
    assert runner.invoke(main, command).exit_code == 0, "an artifact that is there already is no fault"


@pytest.mark.parametrize("source", ["winner", "ftp://bucket/m", "artifacts/12"])
def test_an_address_that_names_nothing_to_pull_is_refused(source: str) -> None:
    done = CliRunner().invoke(main, ["pull", source])
    assert done.exit_code == 2
    assert "expected pvc://CLAIM/PATH, om/NAME, an address such as s3://BUCKET/PATH, or an artifact's" in done.output


def model(**status: Any) -> dict[str, Any]:
    """An OptimizedModel with that status."""
    return {
        "apiVersion": "fettle.dev/v1alpha1",
        "kind": "OptimizedModel",
        "metadata": {"name": "digits", "generation": 1},
        "spec": {"source": {"uri": "pvc://models/m.onnx"}, "targets": [{"name": "cpu"}]},
        "status": status,
    }


def published_for(target: str) -> dict[str, Any]:
    """An artifact as status tells of it."""
    return {
        "target": target,
        "candidate": "int8",
        "runtime": "onnxruntime",
        "uri": f"pvc://fettle-store/artifacts/{target[0] * 64}",
        "sha256": target[0] * 64,
        "bytes": 5,
    }


def test_what_an_optimizedmodel_published_is_found_by_its_name(tmp_path: Path) -> None:
    with api_server() as server:
        cluster = connect(str(server.kubeconfig(tmp_path)), None, None)
        with pytest.raises(MissingError):
            published(cluster, "digits", None)
        server.objects[f"{MODELS}/digits"] = model()
        with pytest.raises(UsageError, match="has published nothing yet"):
            published(cluster, "digits", None)
        with pytest.raises(UsageError, match="has no report yet"):
            report_of(cluster, "digits")
        server.objects[f"{MODELS}/digits"] = model(
            artifacts=[published_for("a"), published_for("b")], report={"uri": "pvc://fettle-store/reports/1.html"}
        )
        with pytest.raises(UsageError, match="for the targets a, b: choose one with --target"):
            published(cluster, "digits", None)
        with pytest.raises(UsageError, match=r"no artifact for the target 'gpu' \(available: a, b\)"):
            published(cluster, "digits", "gpu")
        assert published(cluster, "digits", "b") == f"pvc://fettle-store/artifacts/{'b' * 64}"
        assert report_of(cluster, "digits") == "pvc://fettle-store/reports/1.html"


def test_a_claim_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with api_server() as server:
        command = ["pull", "pvc://models/m.onnx", "--kubeconfig", str(server.kubeconfig(tmp_path))]
        done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert "claim 'models' not found in namespace 'default'" in done.output
    assert "Traceback" not in done.output


def test_the_answers_of_the_pod_are_lines_of_json(claim: Path) -> None:
    (claim / "a").write_text("text")
    with running(send, claim) as pipe:
        pipe.send(b'{"info": "a"}\n{"info": "b"}\n{"read": "a", "start": 1, "end": 99}\n')
        assert json.loads(pipe.line()) == {"size": 4, "type": "file"}
        assert json.loads(pipe.line()) == {"missing": True}
        assert json.loads(pipe.line()) == {"bytes": 3}
        assert pipe.read(3) == b"ext"
