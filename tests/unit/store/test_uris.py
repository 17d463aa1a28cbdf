"""Where an address lies, and which addresses are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fettle.api.reasons import Reason
from fettle.errors import SourceError, StoreError, UsageError
from fettle.store.uris import Mounts, locate, relative_path


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    (tmp_path / "models").mkdir()
    return Mounts({"models": tmp_path / "models", "lost": tmp_path / "lost"})


def test_a_claims_path_lies_in_its_folder(mounts: Mounts, tmp_path: Path) -> None:
    assert locate("pvc://models/digits/model.onnx", mounts).path == str(tmp_path / "models/digits/model.onnx")


def test_the_root_of_a_claim_is_an_address_too(mounts: Mounts, tmp_path: Path) -> None:
    assert Path(locate("pvc://models", mounts).path) == tmp_path / "models"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ftp://host/model.onnx", "unknown scheme 'ftp', expected pvc://, file://, s3://"),
        ("model.onnx", "unknown scheme '(none)'"),
        ("pvc:///model.onnx", "the name of the claim is missing"),
        ("pvc://other/model.onnx", "the claim 'other' is not mounted here (mounted: lost, models)"),
        ("pvc://lost/model.onnx", "there is no such folder"),
        ("pvc://models/../secret", "'..' is not allowed"),
        ("pvc://models/%2e%2e/secret", "'..' is not allowed"),
        ("pvc://models/a?b=c", "must be written %3F"),
        ("file:///etc/passwd", "file:// works only in `fettle optimize`"),
    ],
)
def test_what_cannot_be_found_is_refused_with_what_to_do(mounts: Mounts, uri: str, words: str) -> None:
    with pytest.raises(StoreError) as caught:
        locate(uri, mounts)
    assert words in caught.value.message
    assert caught.value.reason == Reason.STORE_NOT_FOUND


def test_a_symbolic_link_may_not_leave_its_claim(mounts: Mounts, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "models/link").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="leaves the claim through a symbolic link"):
        locate("pvc://models/link", mounts, missing=SourceError)


def test_files_open_only_where_they_are_allowed(tmp_path: Path) -> None:
    allowed = Mounts.from_environment({"FETTLE_ALLOW_FILES": "1"})
    assert locate(f"file://{tmp_path}/a.onnx", allowed).path == f"{tmp_path}/a.onnx"


def test_mounts_survive_the_way_through_the_environment(mounts: Mounts) -> None:
    assert Mounts.from_environment(mounts.to_environment()) == mounts


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_mounts_that_are_no_map_of_folders_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="FETTLE_MOUNTS must be JSON"):
        Mounts.from_environment({"FETTLE_MOUNTS": text})


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../up", "", "a\\b"])
def test_paths_of_a_set_stay_inside_it(path: str) -> None:
    with pytest.raises(StoreError, match="must be relative"):
        relative_path(path)
