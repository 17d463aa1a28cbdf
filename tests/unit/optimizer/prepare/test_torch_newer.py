"""Files that a newer PyTorch wrote: refused, with a sentence that has both versions."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.reasons import Reason
from fettle.api.source import InputSpec

pytest.importorskip("torch")
IMAGE = InputSpec(name="image", dtype="FP32", shape=("N", 3, 12, 12))


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """The archive, with other files in it."""
    with zipfile.ZipFile(path) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(name, change(name, content))


def of_another_archive(name: str, content: bytes) -> bytes:
    return b"99\n" if name.rpartition("/")[2] == "version" else content


def of_another_schema(name: str, content: bytes) -> bytes:
    if not name.endswith("models/model.json"):
        return content
    document = json.loads(content)
    document["schema_version"]["major"] = 99
    return json.dumps(document).encode()


def of_another_package(name: str, content: bytes) -> bytes:
    return b"99" if name.endswith("archive_version") else content


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("model.pt", of_another_archive, "version 99, but the maximum supported version for reading is"),
        ("model.pt2", of_another_archive, "version 99, but the maximum supported version for reading is"),
        ("model.pt2", of_another_schema, "schema version SchemaVersion(major=99"),
        ("model.pt2", of_another_package, "archive version 99 does not match our current archive version 0"),
    ],
)
def test_a_file_of_a_newer_pytorch_says_so(
    bench: Workbench, file: str, change: Callable[[str, bytes], bytes], words: str
) -> None:
    from tests.data import torch_models

    save = torch_models.save_script if file == "model.pt" else torch_models.save_program
    rewritten(save(torch_models.EXAMPLES["convolutional"], bench.folder / file), change)
    error = bench.refused(uri=f"pvc://claim/{file}", inputs=(IMAGE,) if file == "model.pt" else ())
    assert error.reason == Reason.UNSUPPORTED_MODEL, error.message
    assert (
        f"{file} was saved by another version of PyTorch, which the one installed here cannot read (" in error.message
    )
    assert words in error.message
    assert error.message.endswith(
        "save it again with the installed version, or export the model to ONNX where it was made"
    )
