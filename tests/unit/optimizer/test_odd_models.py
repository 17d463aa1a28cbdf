"""Whatever is handed in ends with an answer or with a reason that helps, never with what nobody foresaw."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from tests.data import models, odd_models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api import catalog
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import PrepareReport, Termination, unframe
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer import stage
from fettle.optimizer.measure import items
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.protocol import Block, Judge, Load, Profile, RunItems
from fettle.optimizer.measure.worker import Worker
from fettle.optimizer.prepare import profile
from fettle.store.manifest import put_reference

REFUSED: dict[str, tuple[Reason, str]] = {
    "zero size input": (Reason.EVALUATION_DATA_MISSING, "set data.evaluation"),
    "duplicate input": (Reason.SOURCE_CORRUPTED, "Duplicate definition"),
    "no inputs": (Reason.UNSUPPORTED_MODEL, "at least one input"),
    "no outputs": (Reason.UNSUPPORTED_MODEL, "at least one input"),
    "huge input": (Reason.EVALUATION_DATA_MISSING, "one item of the input 'x' would have the shape [1, 1099511627776]"),
    "huge constant shape": (Reason.EVALUATION_DATA_MISSING, "ConstantOfShape"),
    "rank of twenty": (Reason.UNSUPPORTED_MODEL, "'x' cannot be served: shape"),
    "no rank": (Reason.UNSUPPORTED_MODEL, "set source.inputs[].shape"),
    "a name of a thousand letters": (Reason.UNSUPPORTED_MODEL, "cannot be served: name"),
    "a nul in a name": (Reason.UNSUPPORTED_MODEL, "its name contains a NUL"),
    "empty name": (Reason.SOURCE_CORRUPTED, "empty"),
    "sequence input": (Reason.UNSUPPORTED_MODEL, "'x' is of type sequence"),
    "optional output": (Reason.UNSUPPORTED_MODEL, "'y' is of type optional"),
    "map output": (Reason.UNSUPPORTED_MODEL, "'y' is of type map"),
    "output of no type": (Reason.UNSUPPORTED_MODEL, "'y' is of no type"),
    "output of an unknown type": (Reason.UNSUPPORTED_MODEL, "'y' is a tensor of UNDEFINED"),
    "function that calls itself": (Reason.SOURCE_CORRUPTED, "recursive"),
    "a circle": (Reason.SOURCE_CORRUPTED, "acyclic"),
    "nodes without inputs": (Reason.SOURCE_CORRUPTED, "the graph is inconsistent: "),
    "nodes without outputs": (Reason.SOURCE_CORRUPTED, "the graph is inconsistent: "),
    "weight of too few bytes": (Reason.SOURCE_CORRUPTED, "Initializer 'w'"),
    "weight of an unknown type": (Reason.SOURCE_CORRUPTED, "'w' does not have valid data type"),
    "division by zero": (Reason.SOURCE_CORRUPTED, "Integer division by zero"),
    "branches of two ranks": (Reason.UNSUPPORTED_MODEL, "'y' has a different number of dimensions from item to item"),
    "texts of no utf8": (Reason.EVALUATION_DATA_MISSING, "utf-8"),
}
# V2 has no word for them.
NOT_SERVED = ("undefined", "complex", "float8", "float4", "float6", "int4", "uint4", "int2 ", "uint2 ")


@pytest.fixture(autouse=True)
def one_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Which other runtimes would load a model is asked in processes of their own, and how fast it is with a clock: both elsewhere."""
    monkeypatch.setattr(catalog, "RUNTIMES", catalog.RUNTIMES[:1])
    monkeypatch.setattr(profile, "PROFILE_SECONDS", 1e-6)
    yield


def prepared(bench: Workbench, content: bytes) -> Termination | PrepareReport:
    """The report on a file, or why there is none."""
    path = bench.folder / "model/model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    answer = stage.answer(bench.task(), bench.mounts)
    report = unframe(answer.line, answer.termination.result_sha256 or "") if answer.line is not None else None
    return report if isinstance(report, PrepareReport) else answer.termination


def judge(bench: Workbench, report: PrepareReport) -> None:
    """What a measuring Job asks of a model, with the worker in this process, so that nothing that it raises is caught."""
    signature = report.signature
    files = items.unpack(bench.store, report.items, bench.folder / "items")
    inputs = {tensor.name: files[tensor.name] for tensor in signature.inputs}
    worker = Worker()
    entry = bench.store.fetch_model(report.portable, bench.folder / "portable")
    worker.handle(Load(entry, RuntimeName.ONNXRUNTIME, RuntimeSettings(threads=1), signature, inputs))
    opened = items.opened(inputs, signature)
    reference = Reference(bench.folder / "answers", signature, None, None, report.generated)
    size = items.batch_size(opened, None, alone=False)
    answers: list[items.Answer] = []
    for batch in opened.batches(size, 0, 8):
        found = worker.handle(Judge(tuple(batch), size))
        reference.add(found)
        answers += pickle.loads(pickle.dumps(found))
    reference.finish()
    assert reference.judge(iter(answers), lossy=False, alpha=0.05).exact
    outputs = worker.handle(RunItems((0,)))
    worker.handle(Block(batch=1, seconds=0.001, runs=1))
    worker.handle(Profile())
    put_reference(bench.store, opened.feed([0]), outputs)


@pytest.mark.parametrize("kind", odd_models.KINDS)
def test_every_odd_model_is_judged_or_refused_with_words_that_help(tmp_path: Path, kind: str) -> None:
    bench = Workbench(tmp_path)
    found = prepared(bench, odd_models.KINDS[kind]().SerializeToString())
    refused = REFUSED.get(kind)
    if refused is None and kind.startswith(NOT_SERVED):
        refused = (Reason.UNSUPPORTED_MODEL, "which the serving protocol does not support")
    if refused is None:
        assert isinstance(found, PrepareReport), found
        judge(bench, found)
        return
    assert isinstance(found, Termination)
    assert found.reason == refused[0], found.message
    assert refused[1] in found.message


SOURCES = (models.dynamic_batch, models.tokens, models.conditional, odd_models.loop, odd_models.sparse_weight)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_judged_or_refused_with_a_reason(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    content = odd_models.damaged(random.choice(SOURCES)().SerializeToString(), random)
    assert_foreseen(prepared(Workbench(tmp_path), content))


@pytest.mark.parametrize("seed", range(40))
def test_a_graph_with_a_false_part_is_judged_or_refused_with_a_reason(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    made = odd_models.tampered(random.choice(SOURCES)(), random)
    assert_foreseen(prepared(Workbench(tmp_path), made.SerializeToString()))


def assert_foreseen(found: Termination | PrepareReport) -> None:
    """An answer, or a reason that speaks of the source."""
    if isinstance(found, Termination):
        assert found.reason in SOURCE_FAULTS, found.message


SOURCE_FAULTS = {
    Reason.SOURCE_CORRUPTED,
    Reason.UNSUPPORTED_FORMAT,
    Reason.UNSUPPORTED_MODEL,
    Reason.UNSUPPORTED_OPERATOR,
    Reason.UNSUPPORTED_OPSET,
    Reason.EVALUATION_DATA_MISSING,
    Reason.OUTPUTS_INVALID,
}
NO_MODELS: list[tuple[str, bytes]] = [
    ("random, as what was encrypted", Random(1).randbytes(5000)),
    ("a text", b"import torch\n" * 50),
    ("zeros", bytes(5000)),
    ("a bomb of a zip", b"PK\x03\x04" + bytes(400)),
    ("an empty archive", b"PK\x05\x06" + bytes(18)),
    ("numbers of protobuf", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f" * 30),
    ("very deep", b"\x3a\x80\x01" * 3000),
]


@pytest.mark.parametrize(("what", "content"), NO_MODELS, ids=[line[0] for line in NO_MODELS])
def test_what_is_no_model_at_all_is_refused(tmp_path: Path, what: str, content: bytes) -> None:
    found = prepared(Workbench(tmp_path), content)
    assert isinstance(found, Termination)
    assert found.reason in (Reason.SOURCE_CORRUPTED, Reason.UNSUPPORTED_FORMAT), found.message


def test_a_folder_by_a_models_name_is_looked_into(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    (tmp_path / "model/model.onnx").mkdir(parents=True)
    found = stage.answer(bench.task(), bench.mounts).termination
    assert found.reason == Reason.SOURCE_NOT_FOUND
    assert "contains no model" in found.message
