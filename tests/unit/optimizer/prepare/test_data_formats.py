"""Items in .parquet and .jsonl: read as the same items in .npz are, refused with what was expected and found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.reasons import Reason
from fettle.optimizer.data import files
from fettle.optimizer.data.columns import ReadRequest
from fettle.optimizer.data.files import read_columns

Columns = dict[str, list[Any]]
Write = Callable[[Path, Columns], None]


def parquet(path: Path, columns: Columns) -> None:
    pq.write_table(pa.table(columns), path)


def jsonl(path: Path, columns: Columns) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")


FORMATS = pytest.mark.parametrize(("end", "write"), [("parquet", parquet), ("jsonl", jsonl)])


def refused(bench: Workbench, name: str, **spec: Any) -> str:
    """What preparing says of data that it does not take."""
    evaluation = EvaluationSpec.model_validate({"uri": f"pvc://claim/{name}", **spec})
    error = bench.refused(evaluation=evaluation)
    assert error.reason == Reason.DATA_INVALID
    return error.message


@FORMATS
def test_the_same_items_are_the_same_in_every_format(bench: Workbench, end: str, write: Write) -> None:
    bench.put(models.dynamic_batch())
    images, labels = models.images(20), np.arange(20) % 4
    write(bench.folder / f"items.{end}", {"image": images.tolist(), "kind": labels.tolist(), "note": ["x"] * 20})
    asked = {"labelKey": "kind", "maxSamples": 10}
    evaluation = EvaluationSpec.model_validate({"uri": f"pvc://claim/items.{end}", **asked})
    report = bench.prepare(bench.task(evaluation=evaluation))
    uri = bench.data("items", image=images, kind=labels)
    wanted = bench.prepare(bench.task(evaluation=EvaluationSpec.model_validate({"uri": uri, **asked})))
    assert report.items == wanted.items, "down to the digest"
    assert report.calibration == wanted.calibration
    assert any("neither inputs nor labels: ['note']" in note for note in report.notes)


@FORMATS
def test_tokens_and_texts_keep_their_types(tmp_path: Path, end: str, write: Write) -> None:
    path = tmp_path / f"items.{end}"
    write(path, {"ids": [[1, 2], [3, 4]], "word": ["yes", "naïve\0"]})
    wanted = ReadRequest("here", {"ids": "INT64", "word": "BYTES"}, "labels", None)
    with path.open("rb") as stream:
        arrays = read_columns(path.name, stream, wanted).arrays
    assert arrays["ids"].tolist() == [[1, 2], [3, 4]] and arrays["ids"].dtype.kind == "i"
    assert arrays["word"].tolist() == ["yes", "naïve\0"] and arrays["word"].dtype == object


@FORMATS
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"picture": [[1.0]]}, "no array for the inputs ['image'], found ['picture']"),
        ({"image": [[1.0], [1.0, 2.0]]}, "different shapes"),
        ({"image": [[1.0], None]}, "null|None"),
        ({"image": ["a", "b"]}, "expected FP32, found BYTES"),
        ({"image": [[[[0.5] * 16] * 15]] * 3}, "expected the shape [items, 1, 16, 16], found [3, 1, 15, 16]"),
        ({"image": [[[[float("nan")] * 16] * 16]] * 3}, "3 of 3 items contain NaN"),
        ({"image": models.images(3).tolist(), "labels": [0.5, float("nan"), 1.0]}, "labels contain NaN"),
        ({"image": []}, "contains no items|a column of null"),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_what_was_expected(
    bench: Workbench, end: str, write: Write, columns: Columns, words: str
) -> None:
    bench.put(models.dynamic_batch())
    write(bench.folder / f"items.{end}", columns)
    message = refused(bench, f"items.{end}")
    assert any(word in message for word in words.split("|")), message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("items.parquet", b"PAR1 it is not", "is not a readable .parquet file"),
        ("items.parquet", b"", "is not a readable .parquet file"),
        ("items.jsonl", b'{"image": [1]}\nnope\n', "line 2 is not valid JSON"),
        ("items.jsonl", b"\xff\xfe\n", "line 1 is not valid JSON"),
        ("items.jsonl", b"[1, 2]\n", "line 1 is a list; expected an object"),
        ("items.jsonl", b'{"image": [1]}\n{"picture": [1]}\n', "line 2 has no 'image'"),
        ("items.jsonl", b'{"image": [[1], [1, 2]]}\n', "line 1: image: rows of different lengths"),
        ("items.jsonl", b'{"image": {"a": 1}}\n', "expected numbers"),
        ("items.jsonl", b'{"image": 1}\n{"image": "one"}\n', "line 2: image: expected FP32, found BYTES"),
        (
            "items.jsonl",
            b'{"image": [[[[1]]]], "labels": 1}\n{"image": [[[[1]]]], "labels": "one"}\n',
            "mixed in one key",
        ),
        (
            "items.csv",
            b"image\n1\n",
            "is not a readable .npz file (numpy.savez), and its name does not end in .parquet or .jsonl",
        ),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    bench: Workbench, name: str, content: bytes, words: str
) -> None:
    bench.put(models.dynamic_batch())
    (bench.folder / name).write_bytes(content)
    assert words in refused(bench, name)


def test_only_the_items_asked_for_are_read_of_a_parquet_file(tmp_path: Path) -> None:
    parquet(tmp_path / "many.parquet", {"x": list(range(5000))})
    with (tmp_path / "many.parquet").open("rb") as stream:
        found = files.read_columns("many.parquet", stream, ReadRequest("here", {"x": "INT64"}, None, 1500))
    assert found.arrays["x"].tolist() == list(range(1500))
