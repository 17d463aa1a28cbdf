"""The store: what was written is read back whole, or an error says what to do."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.data.stored import arrays as arrays_in

from fettle.api.reasons import Reason
from fettle.api.report import BuildReport
from fettle.errors import StoreError
from fettle.store.arrays import npz_bytes
from fettle.store.cache import read_build
from fettle.store.store import Store, explained
from fettle.store.uris import Mounts


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "claim").mkdir()
    return Store.open("pvc://claim/store", Mounts({"claim": tmp_path / "claim"}))


def root(store: Store) -> Path:
    found = store.root.local
    assert found is not None
    return found


def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "deep/weights.bin").write_bytes(b"weights")
    return folder


def test_a_model_comes_back_as_it_was_put(store: Store, tmp_path: Path) -> None:
    stored = store.put_model(model_folder(tmp_path), "model.onnx")
    entry = store.fetch_model(stored, tmp_path / "fetched")
    assert entry.read_bytes() == b"graph"
    assert (tmp_path / "fetched/deep/weights.bin").read_bytes() == b"weights"
    assert [file.path for file in stored.files] == ["deep/weights.bin", "model.onnx"]
    assert stored.bytes == 12


def test_what_is_fetched_shares_nothing_with_the_store(store: Store, tmp_path: Path) -> None:
    stored = store.put_model(model_folder(tmp_path), "model.onnx")
    store.fetch_model(stored, tmp_path / "fetched").write_bytes(b"spoiled")
    assert store.fetch_model(stored, tmp_path / "again").read_bytes() == b"graph"


def test_what_exists_whole_is_not_written_again(store: Store, tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    stored = store.put_model(folder, "model.onnx")
    before = {path: path.stat().st_ino for path in root(store).rglob("*")}
    assert store.put_model(folder, "model.onnx") == stored
    assert {path: path.stat().st_ino for path in root(store).rglob("*")} == before, "a write is another file, renamed"


def test_a_blob_that_was_cut_off_is_written_again(store: Store, tmp_path: Path) -> None:
    stored = store.put_model(model_folder(tmp_path), "model.onnx")
    (root(store) / "blobs" / stored.files[1].sha256).write_bytes(b"gr")
    store.put_model(tmp_path / "model", "model.onnx")
    assert store.fetch_model(stored, tmp_path / "fetched").read_bytes() == b"graph"


def test_a_changed_blob_is_never_handed_out(store: Store, tmp_path: Path) -> None:
    stored = store.put_model(model_folder(tmp_path), "model.onnx")
    (root(store) / "blobs" / stored.files[1].sha256).write_bytes(b"GRAPH")
    with pytest.raises(StoreError) as caught:
        store.fetch_model(stored, tmp_path / "fetched")
    assert caught.value.reason == Reason.ARTIFACT_TAMPERED
    assert [path.name for path in (tmp_path / "fetched").rglob("*") if path.is_file()] == ["weights.bin"]


def test_pods_of_other_users_can_read_what_a_job_wrote(store: Store, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        store.put_model(model_folder(tmp_path), "model.onnx")
    finally:
        os.umask(before)
    modes = {path.is_dir(): stat.S_IMODE(path.stat().st_mode) for path in root(store).rglob("*")}
    assert modes == {True: 0o775, False: 0o644}


def test_no_temporary_file_stays(store: Store, tmp_path: Path) -> None:
    store.put_model(model_folder(tmp_path), "model.onnx")
    store.remember("builds/a.json", BuildReport(name="int8", cache_key="0" * 64))
    assert not [path for path in root(store).rglob("*") if path.name.endswith(".partial")]


DATA = {
    "pixels": np.arange(12, dtype=np.float32).reshape(3, 4),
    "words": np.array([["yes"], ["no"], ["perhaps ü"]], dtype=object),
    "half": np.array([1.5, 2.5, -3.0], dtype=ml_dtypes.bfloat16),
    "whole/slashed": np.zeros((3, 1, 2, 0), np.int64),
    "labels": np.array([0, 1, 1]),
}


def test_items_come_back_in_their_own_types(store: Store) -> None:
    stored = store.put_data(DATA)
    loaded = arrays_in(store, stored.sha256)
    assert (stored.items, stored.labelled) == (3, True)
    for name, array in DATA.items():
        assert loaded[name].dtype == array.dtype, name
        assert loaded[name].shape == array.shape, name
        assert (loaded[name] == array).all(), name


def test_the_same_items_are_the_same_bytes() -> None:
    assert npz_bytes(DATA) == npz_bytes(dict(reversed(DATA.items())))


def test_arrays_of_different_length_are_no_items(store: Store) -> None:
    with pytest.raises(ValueError, match="same number of items"):
        store.put_data({"a": np.zeros(2), "b": np.zeros(3)})


def test_a_result_is_found_under_its_task(store: Store) -> None:
    report = BuildReport(name="int8", cache_key="0" * 64)
    assert store.result("1" * 64) is None
    store.put_result("1" * 64, report)
    assert store.result("1" * 64) == report


REPORT = BuildReport(name="int8", cache_key="0" * 64).canonical()
DAMAGED: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("cut off", REPORT[:-20]),
    ("zeros, as after a loss of power", bytes(len(REPORT))),
    ("no text", b"\xff\xfe" + REPORT),
    ("no object", b"[]"),
    ("very deep", b"[" * 200_000),
    ("of a version with other fields", b'{"kind":"build","schemaVersion":1}'),
    ("of another version of the same fields", REPORT.replace(b'"schemaVersion":1', b'"schemaVersion":2')),
    ("of a kind that is not known", b'{"kind":"distill"}'),
]


@pytest.mark.parametrize(("what", "content"), DAMAGED, ids=[line[0] for line in DAMAGED])
def test_a_document_that_can_be_made_again_and_is_no_good_is_as_good_as_absent(
    store: Store, what: str, content: bytes
) -> None:
    store.write_bytes("results/a.json", content)
    store.write_bytes("builds/b.json", content)
    assert store.result("a") is None
    assert read_build(store, "b") is None


def test_what_is_no_cache_is_on_the_disk_before_it_has_its_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a loss of power a name stands for whole content, or is not there."""
    synced: list[tuple[str, bool]] = []
    sync = os.fsync

    def watched(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        kind = "folder" if path.is_dir() else "file"
        synced.append((kind, (root(store) / "artifacts/a/manifest.json").exists()))
        sync(handle)

    store.write_bytes("artifacts/a/other", b"")
    monkeypatch.setattr(os, "fsync", watched)
    store.write_bytes("artifacts/a/manifest.json", b"{}")
    assert synced == [("file", False), ("folder", True)]
    store.put_result("1" * 64, BuildReport(name="int8", cache_key="0" * 64))
    assert [kind for kind, _ in synced[2:]].count("file") == 0, "a cache need not wait for the disk"


def test_a_filesystem_that_cannot_sync_a_folder_is_written_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuses)
    store.write_bytes("artifacts/a/manifest.json", b"{}")
    assert store.read_bytes("artifacts/a/manifest.json") == b"{}"


def test_a_disk_that_is_full_only_when_it_is_synced_is_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.put_bytes(b"the folders are there")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError) as caught:
        store.put_bytes(b"content")
    assert caught.value.reason == Reason.STORE_FULL
    assert len(list((root(store) / "blobs").iterdir())) == 1


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (errno.ENOSPC, Reason.STORE_FULL, "enlarge its claim"),
        (errno.EDQUOT, Reason.STORE_FULL, "enlarge its claim"),
        (errno.EROFS, Reason.STORE_UNREACHABLE, "mount its claim read-write"),
        (errno.EACCES, Reason.STORE_UNREACHABLE, "fsGroup"),
        (errno.ENOENT, Reason.STORE_NOT_FOUND, "not found"),
        (errno.EIO, Reason.STORE_UNREACHABLE, "Input/output error"),
    ],
)
def test_the_filesystems_errors_say_what_to_do(code: int, reason: Reason, words: str) -> None:
    with pytest.raises(StoreError) as caught, explained("writing"):
        raise OSError(code, os.strerror(code))
    assert caught.value.reason == reason
    assert words in caught.value.message
    assert caught.value.retryable == (code in (errno.EIO, errno.ENOSPC, errno.EDQUOT))


def test_a_claim_that_is_not_mounted_is_no_store() -> None:
    with pytest.raises(StoreError) as caught:
        Store.open("pvc://gone/store", Mounts())
    assert caught.value.reason == Reason.STORE_NOT_FOUND


def test_a_volume_that_does_not_answer_has_lost_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = store.put_bytes(b"weights")
    real = os.stat

    def stale(path: Any, *arguments: Any, **more: Any) -> os.stat_result:
        if not isinstance(path, int) and sha256 in os.fspath(path):
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "stat", stale)
    for look in (lambda: store.exists(f"blobs/{sha256}"), lambda: store.has_blob(sha256)):
        with pytest.raises(StoreError, match="Stale file handle") as refused:
            look()
        assert (refused.value.reason, refused.value.retryable) == (Reason.STORE_UNREACHABLE, True)
    monkeypatch.undo()
    assert store.exists(f"blobs/{sha256}") and store.has_blob(sha256)
    assert not store.exists("blobs/absent") and not store.exists(f"blobs/{sha256}/below")
