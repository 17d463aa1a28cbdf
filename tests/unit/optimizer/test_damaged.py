"""Damaged files of ONNX: each ends with a reason that is the file's, none with an error of ours, and no file is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data import models
from tests.toolchains.damaged import REASONS, damaged, outcomes

HEADER = b"\x08\x08\x12\x08somebody:\xff\xff\xff\xff\x7f"
LIBRARIES = {".ses"}  # ONNX Runtime leaves it among temporary files


def test_a_damaged_file_is_refused_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    path = models.save(models.dynamic_batch(), tmp_path / "model.onnx")
    files = {f"{name}.onnx": content for name, content in damaged(path.read_bytes(), HEADER).items()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = outcomes(tmp_path, list(files))
    assert not {name: said for name, said in found.items() if said[0] not in REASONS}
    assert {path.name for path in (tmp_path / "temporary").iterdir()} <= LIBRARIES
    for name in ("empty", "header-alone", "cut-at-0.05"):
        assert found[f"{name}.onnx"][0] in ("SourceCorrupted", "UnsupportedFormat"), found
