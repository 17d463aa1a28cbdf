"""The code of a factory, as it is brought in."""

from __future__ import annotations

from pathlib import Path

import pytest

from fettle.api.reasons import Reason
from fettle.api.source import FactorySpec
from fettle.errors import SourceError
from fettle.optimizer.prepare.code import MOST_BYTES, fetch_code
from fettle.store.uris import Mounts


@pytest.mark.parametrize("place", ["code", "code/nets.py", "code/nets.whl"])
def test_code_that_is_too_large_is_refused_before_any_of_it_is_copied(tmp_path: Path, place: str) -> None:
    code = tmp_path / "claim" / "code"
    code.mkdir(parents=True)
    for name in ("nets.py", "nets.whl"):
        with (code / name).open("wb") as stream:
            stream.truncate(MOST_BYTES + 1)
    factory = FactorySpec(callable="nets:create", uri=f"pvc://claim/{place}")
    with pytest.raises(SourceError, match=r"(more|larger) than 64 MiB") as caught:
        fetch_code(factory, Mounts({"claim": tmp_path / "claim"}), tmp_path / "copied")
    assert caught.value.reason == Reason.INVALID_SPEC
    assert not list(tmp_path.glob("copied*"))


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    code = tmp_path / "claim" / "code"
    code.mkdir(parents=True)
    (code / "nets.py").symlink_to("nowhere.py")
    factory = FactorySpec(callable="nets:create", uri="pvc://claim/code")
    with pytest.raises(SourceError, match=r"nets\.py does not exist: expected source\.factory\.uri there"):
        fetch_code(factory, Mounts({"claim": tmp_path / "claim"}), tmp_path / "copied")
