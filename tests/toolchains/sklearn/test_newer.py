"""Files that a newer scikit-learn, XGBoost, LightGBM or CatBoost wrote: refused, with a sentence that has both versions."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import lightgbm
import pytest
import xgboost
from tests.toolchains.sklearn import examples
from tests.toolchains.sklearn.examples import Example
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.reasons import Reason

UBJSON = b"version[#L\0\0\0\0\0\0\0\x03i"


def newer_skops(path: Path) -> None:
    with zipfile.ZipFile(path) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    schema = json.loads(files["schema.json"]) | {"protocol": 99}
    with zipfile.ZipFile(path, "w") as made:
        for name, content in {**files, "schema.json": json.dumps(schema).encode()}.items():
            made.writestr(name, content)


def newer_json(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": [99, 1, 2]}))


def newer_ubjson(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(UBJSON) == 1
    at = content.index(UBJSON) + len(UBJSON)
    path.write_bytes(content[:at] + bytes([99]) + content[at + 1 :])


def slightly_newer_and_changed(path: Path) -> None:
    """A minor version that writes a part differently, as 3.1 did."""
    document = json.loads(path.read_text())
    document["version"] = [int(xgboost.__version__.partition(".")[0]), 99, 0]
    del document["learner"]["learner_model_param"]["num_feature"]
    path.write_text(json.dumps(document))


def newer_text(path: Path) -> None:
    content = path.read_bytes()
    assert content.startswith(b"tree\nversion=v4\n")
    path.write_bytes(content.replace(b"version=v4", b"version=v5", 1))


def newer_flatbuffer(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b"FlabuffersModel_v1") == 1
    path.write_bytes(content.replace(b"FlabuffersModel_v1", b"FlabuffersModel_v9"))


CASES = [
    (examples.named_classes, newer_skops, "skops", "saved with skops protocol 99"),
    (examples.xgb_three, newer_json, "XGBoost", f"saved by 99.1, installed is {xgboost.__version__}"),
    (examples.xgb_two, newer_ubjson, "XGBoost", f"installed is {xgboost.__version__}"),
    (examples.xgb_three, slightly_newer_and_changed, "XGBoost", f".99, installed is {xgboost.__version__}: "),
    (examples.lgb_two, newer_text, "LightGBM", f"its format is v5, and LightGBM {lightgbm.__version__} reads up to v4"),
    (examples.cat_two, newer_flatbuffer, "CatBoost", "FlabuffersModel_v9"),
]


@pytest.mark.parametrize(("make", "change", "framework", "words"), CASES)
def test_a_file_of_a_newer_framework_says_so(
    bench: Workbench,
    make: Callable[[Path], Example],
    change: Callable[[Path], None],
    framework: str,
    words: str,
) -> None:
    file = make(bench.folder).file
    change(bench.folder / file)
    error = bench.refused(uri=f"pvc://claim/{file}")
    assert error.reason == Reason.UNSUPPORTED_MODEL, error.message
    assert (
        f"{file} was saved by another version of {framework}, which the one installed here cannot read ("
        in error.message
    )
    assert words in error.message
