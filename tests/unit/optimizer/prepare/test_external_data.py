"""Weights beside the file: every legal way to say where they are is read, and what is not there is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.reasons import Reason
from fettle.errors import SourceError
from fettle.optimizer.onnx import model

FIRST = np.random.default_rng(16).standard_normal((16, 30)).astype(np.float32)
SECOND = np.random.default_rng(17).standard_normal((30, 4)).astype(np.float32)
A, B = FIRST.tobytes(), SECOND.tobytes()
Stated = dict[str, object]


def outside(name: str, dims: list[int], kind: int = TensorProto.FLOAT, **stated: object) -> onnx.TensorProto:
    """A weight in another file."""
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in stated.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def put(bench: Workbench, content: bytes, first: Stated, second: Stated, file: str = "w.bin") -> Path:
    """Two layers whose weights lie in `file`."""
    weights = [outside("w1", [16, 30], **first), outside("w2", [30, 4], **second)]
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("MatMul", ["a", "w2"], ["y"])]
    made = models.model(nodes, [models.tensor("x", ["N", 16])], [models.tensor("y", ["N", 4])], weights)
    path = bench.put(made)
    (path.parent / file).parent.mkdir(exist_ok=True)
    (path.parent / file).write_bytes(content)
    return path


LEGAL: list[tuple[str, str, bytes, Stated, Stated]] = [
    ("offsets and lengths", "w.bin", A + B, {"offset": 0, "length": len(A)}, {"offset": len(A), "length": len(B)}),
    ("no length", "w.bin", A + B, {}, {"offset": len(A), "length": 0}),
    ("not aligned", "the weights ü.bin", b"abc" + A + b"defg" + B, {"offset": 3}, {"offset": 7 + len(A)}),
    ("a folder below", "data/w.bin", A + B, {"location": "./data/w.bin"}, {"offset": len(A)}),
    ("more in the file than is used", "w.bin", A + B + b"more", {}, {"offset": len(A)}),
]


@pytest.mark.parametrize(("what", "file", "content", "first", "second"), LEGAL, ids=[line[0] for line in LEGAL])
def test_what_the_format_allows_is_read(
    bench: Workbench, what: str, file: str, content: bytes, first: Stated, second: Stated
) -> None:
    put(bench, content, {"location": file, **first}, {"location": file, **second}, file)
    stored = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in bench.portable(bench.prepare()).graph.initializer
    }
    assert np.array_equal(stored["w1"], FIRST)
    assert np.array_equal(stored["w2"], SECOND)


BROKEN: list[tuple[str, bytes, Stated, Stated, str]] = [
    ("cut off", (A + B)[:-100], {}, {"offset": len(A)}, "'w2' needs 480 bytes from byte 1920, but the file has 2300: it was truncated"),
    ("another length", A + B, {"length": len(A) // 2}, {"offset": len(A)}, "FLOAT [16, 30] and needs 1920 bytes, but its length is 960"),
    ("a huge offset", A + B, {"offset": 2**63}, {"offset": len(A)}, "'w1' needs 1920 bytes from byte 9223372036854775808, but the file has 2400"),
    ("an offset below zero", A + B, {"offset": -4}, {"offset": len(A)}, "'w1': expected offset as a number of bytes, found '-4'"),
    ("a word", A + B, {}, {"offset": "after w1"}, "'w2': expected offset as a number of bytes, found 'after w1'"),
    ("nothing in the file", b"", {}, {"offset": len(A)}, "'w1' needs 1920 bytes from byte 0, but the file has 0"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "content", "first", "second", "words"), BROKEN, ids=[line[0] for line in BROKEN])
def test_what_the_files_do_not_hold_is_corrupted_and_named(
    bench: Workbench, what: str, content: bytes, first: Stated, second: Stated, words: str
) -> None:
    put(bench, content, {"location": "w.bin", **first}, {"location": "w.bin", **second})
    error = bench.refused()
    assert error.reason == Reason.SOURCE_CORRUPTED
    assert error.message.startswith("w.bin: the tensor ")
    assert words in error.message


@pytest.mark.parametrize(
    ("kind", "dims", "expected"),
    [
        (TensorProto.INT4, [3], 2),
        (TensorProto.UINT2, [5], 2),
        (TensorProto.FLOAT8E4M3FN, [5], 5),
        (TensorProto.BFLOAT16, [2, 3], 12),
        (TensorProto.DOUBLE, [], 8),
        (TensorProto.FLOAT, [0, 3], 0),
    ],
)
def test_a_tensor_takes_as_many_bytes_as_its_type_and_dimensions_say(
    tmp_path: Path, kind: int, dims: list[int], expected: int
) -> None:
    made = models.model([], [], [models.tensor("y", [1])], [outside("w", dims, kind, location="w.bin")])
    models.save(made, tmp_path / "model.onnx")
    (tmp_path / "w.bin").write_bytes(bytes(range(20)))
    assert model.load(tmp_path / "model.onnx").graph.initializer[0].raw_data == bytes(range(expected))


@pytest.mark.parametrize(("kind", "dims"), [(TensorProto.STRING, [2]), (TensorProto.FLOAT, [-1]), (99, [2])])
def test_a_tensor_that_no_file_can_hold_is_corrupted(tmp_path: Path, kind: int, dims: list[int]) -> None:
    made = models.model([], [], [models.tensor("y", [1])], [outside("w", dims, kind, location="w.bin")])
    models.save(made, tmp_path / "model.onnx")
    (tmp_path / "w.bin").write_bytes(bytes(20))
    with pytest.raises(SourceError, match="the tensor 'w' is") as caught:
        model.load(tmp_path / "model.onnx")
    assert caught.value.reason == Reason.SOURCE_CORRUPTED


def test_weights_that_stay_outside_say_where_they_begin_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "INLINE_LIMIT", 10)
    made = models.model([], [], [models.tensor("y", [1])], [outside("w", [4], location="w.bin")])
    models.save(made, tmp_path / "model.onnx")
    (tmp_path / "w.bin").write_bytes(bytes(range(20)))
    tensor = model.load(tmp_path / "model.onnx").graph.initializer[0]
    assert {entry.key: entry.value for entry in tensor.external_data} == {
        "location": "w.bin",
        "offset": "0",
        "length": "16",
    }


def test_a_graph_is_never_written_through_a_link_into_its_own_weights(tmp_path: Path) -> None:
    made = models.model([], [], [models.tensor("y", [1])], [outside("w", [4], location="model.onnx")])
    (tmp_path / "model.onnx").write_bytes(bytes(16))
    (tmp_path / "new").mkdir()
    with pytest.raises(SourceError, match="rename that file"):
        model.save(made, tmp_path / "new" / "model.onnx", tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == bytes(16)
