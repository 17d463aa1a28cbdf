"""Damaged files of ONNX: each ends with a reason that is the file's, none with an error of ours, and no file is left behind."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from tests.data import models
from tests.toolchains.damaged import Change, changes
from tests.toolchains.preparing import Preparer, Whole

HEADER = b"\x08\x08\x12\x08somebody:\xff\xff\xff\xff\x7f"


def dynamic_batch(_folder: Path) -> Whole:
    return Whole({"model.onnx": models.dynamic_batch().SerializeToString()}, "model.onnx", HEADER)


def test_a_file_that_is_not_whole_is_refused_with_a_reason(preparing: Preparer) -> None:
    preparing.refuses_forms(dynamic_batch)


@settings(max_examples=25)
@given(made=changes(inside=False))
def test_a_changed_file_is_prepared_or_refused_with_a_reason(preparing: Preparer, made: list[Change]) -> None:
    preparing.refuses_changed(dynamic_batch, made)
