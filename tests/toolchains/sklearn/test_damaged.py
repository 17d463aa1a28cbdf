"""Damaged files of scikit-learn and of boosted trees: each ends with a reason that is the file's, none with an error of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from tests.toolchains.damaged import ZIP, Change, changes
from tests.toolchains.preparing import Kind, Preparer, Whole
from tests.toolchains.sklearn import examples
from tests.toolchains.sklearn.examples import Example

HEADERS = {
    examples.named_classes: ZIP,
    examples.columns: ZIP,
    examples.pickled: b"\x78\x9c",
    examples.xgb_two: b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner",
    examples.xgb_three: b'{"learner":{"attributes":{}}',
    examples.lgb_two: b"tree\nversion=v4\nnum_class=1000000000\n",
    examples.cat_two: b"CBM1\xff\xff\xff\x7f",
}


def _kind(make: Callable[[Path], Example]) -> Kind:
    def kind(folder: Path) -> Whole:
        file = make(folder).file
        return Whole({file: (folder / file).read_bytes()}, file, HEADERS[make])

    kind.__name__ = make.__name__
    return kind


ZEROS = [Change("extreme", 0.787, 0, b"\x03")]  # LightGBM never gets past one in its text
KINDS = [_kind(make) for make in HEADERS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_whole_is_refused_with_a_reason(preparing: Preparer, kind: Kind) -> None:
    preparing.refuses_forms(kind)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, derandomize=True)
@example(made=ZEROS)
@given(made=changes())
def test_a_changed_file_is_prepared_or_refused_with_a_reason(
    preparing: Preparer, kind: Kind, made: list[Change]
) -> None:
    preparing.refuses_changed(kind, made)
