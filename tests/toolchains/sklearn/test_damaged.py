"""Damaged files of scikit-learn and of boosted trees: each ends with a reason that is the file's, none with an error of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.toolchains.damaged import REASONS, damaged, outcomes
from tests.toolchains.sklearn import examples
from tests.toolchains.sklearn.examples import Example

KINDS = [
    (examples.boosted, b"PK\x03\x04"),
    (examples.xgb_two, b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner"),
    (examples.xgb_three, b'{"learner":{"attributes":{}}'),
    (examples.lgb_two, b"tree\nversion=v4\nnum_class=1000000000\n"),
    (examples.cat_two, b"CBM1\xff\xff\xff\x7f"),
]


@pytest.mark.parametrize(("make", "header"), KINDS, ids=[make.__name__ for make, _ in KINDS])
def test_a_damaged_file_is_refused_with_a_reason(
    tmp_path: Path, make: Callable[[Path], Example], header: bytes
) -> None:
    example = make(tmp_path)
    suffix = Path(example.file).suffix
    files = {
        f"{name}{suffix}": content for name, content in damaged((tmp_path / example.file).read_bytes(), header).items()
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = outcomes(tmp_path, list(files))
    unexpected = {name: said for name, said in found.items() if said[0] not in REASONS}
    assert not unexpected
    for name in (f"empty{suffix}", f"header-alone{suffix}", f"cut-at-0.05{suffix}"):
        assert found[name][0] in ("SourceCorrupted", "UnsupportedFormat"), found[name]
