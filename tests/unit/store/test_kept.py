"""What a library for GPUs found out: whole and made for this, or as good as not there."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fettle.store import kept
from fettle.store.kept import MadeFor
from fettle.store.store import Store
from fettle.store.uris import Mounts

HERE = MadeFor(library="tensorrt-rtx-cu12", version="1.7.1", architecture="sm89", driver="13.0")
CONTENT = b"kernels\nand more of them\0"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return Store.open("pvc://store", Mounts({"store": tmp_path / "store"}))


def test_it_goes_through_the_store_to_the_next_job_as_it_was(store: Store, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    kept.lend(store, HERE.key("engine"), first)
    assert not first.exists(), "nobody has kept anything yet"
    kept.take_back(store, HERE.key("engine"), first)
    assert store.names(kept.FOLDER) == []
    kept.write(first, HERE, CONTENT)
    kept.take_back(store, HERE.key("engine"), first)
    kept.lend(store, HERE.key("engine"), second)
    assert kept.read(second, HERE) == CONTENT


@pytest.mark.parametrize("field", ["library", "version", "architecture", "driver"])
def test_what_was_made_for_something_else_is_worth_nothing(
    field: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept.write(tmp_path / "kernels", HERE, CONTENT)
    other = HERE.model_copy(update={field: "another"})
    assert kept.read(tmp_path / "kernels", other) == b""
    assert "another" in caplog.text
    assert other.key("engine") != HERE.key("engine")


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-1], lambda whole: whole[:20], lambda whole: b"", lambda whole: whole.replace(b"more", b"less")],
    ids=["cut off", "cut off in its first line", "empty", "changed"],
)  # fmt: skip
def test_what_is_damaged_is_a_line_in_the_log_and_is_made_again(
    damage: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "kernels"
    kept.write(path, HERE, CONTENT)
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    assert kept.read(path, HERE) == b""
    assert "is made again" in caplog.text
    kept.write(path, HERE, CONTENT)
    assert kept.read(path, HERE) == CONTENT


def test_what_no_job_has_room_for_is_neither_lent_nor_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept.write(tmp_path / "kernels", HERE, CONTENT)
    kept.take_back(store, HERE.key("engine"), tmp_path / "kernels")
    monkeypatch.setattr(kept, "MOST_BYTES", 16)
    kept.lend(store, HERE.key("engine"), tmp_path / "lent")
    assert not (tmp_path / "lent").exists()
    assert "is larger than 16 bytes, and is made again" in caplog.text
    kept.take_back(store, HERE.key("another"), tmp_path / "kernels")
    assert store.names(kept.FOLDER) == [HERE.key("engine")]
    (tmp_path / "small").write_bytes(b"small")
    kept.take_back(store, HERE.key("engine"), tmp_path / "small")
    assert store.read_bytes(f"{kept.FOLDER}/{HERE.key('engine')}") == b"small", "it is made again"


@pytest.mark.parametrize(
    "heading",
    [
        b"[]", b"null", b"{", b"\xff\xfe", b"{}" * 1000,
        b'{"madeFor": {}, "sha256": ""}',
        b'{"madeFor": {"library": 1, "version": [], "architecture": null, "driver": {}}, "sha256": 7}',
    ],
)  # fmt: skip
def test_a_forged_heading_is_damage(heading: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "kernels").write_bytes(heading + b"\n" + CONTENT)
    assert kept.read(tmp_path / "kernels", HERE) == b""
    assert "is damaged, and is made again" in caplog.text


def test_several_jobs_keep_and_take_one_file_at_the_same_time_and_all_find_it_whole(
    store: Store, tmp_path: Path
) -> None:
    key, contents = HERE.key("timings"), [bytes([number]) * 100_000 for number in range(8)]

    def job(number: int) -> bytes:
        path = tmp_path / f"{number}"
        for _ in range(5):
            kept.write(path, HERE, contents[number])
            kept.take_back(store, key, path)
            kept.lend(store, key, path)
        return kept.read(path, HERE)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(job, range(8)))
    assert set(found) <= set(contents)
    assert store.names(kept.FOLDER) == [key]


def test_a_store_or_a_folder_that_fails_costs_a_line_in_the_log(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "store" / "gpu").write_text("in the way of the folder")
    kept.write(tmp_path / "kernels", HERE, CONTENT)
    kept.take_back(store, HERE.key("engine"), tmp_path / "kernels")
    kept.lend(store, HERE.key("engine"), tmp_path / "missing" / "kernels")
    kept.write(tmp_path / "missing" / "kernels", HERE, CONTENT)
    assert "is not kept in pvc://store" in caplog.text
    assert not list(tmp_path.glob("**/*.partial"))
