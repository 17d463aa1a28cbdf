"""What a Job answers to bad input that has no test of its own elsewhere: real files, the real stage, the reason and what to do."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.report import Termination
from fettle.api.task import PrepareTask
from fettle.optimizer import stage
from fettle.store.store import Store
from fettle.store.uris import Mounts


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """A claim of its own."""
    return Workbench(tmp_path)


def one_node(kind: str, opset: int) -> onnx.ModelProto:
    """A model of a single operator."""
    nodes = [helper.make_node(kind, ["x"], ["y"])]
    return models.model(nodes, [models.tensor("x", ["N", 3])], [models.tensor("y", ["N", 3])], opset=opset)


def half_product(kind: int) -> onnx.ModelProto:
    """A product that is computed in another type than its input and output have."""
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=kind),
        helper.make_node("MatMul", ["c", "w"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    weight = helper.make_tensor("w", kind, [3, 3], np.zeros(9))
    return models.model(nodes, [models.tensor("x", ["N", 3])], [models.tensor("y", ["N", 3])], [weight])


def answer(bench: Workbench, task: PrepareTask | None = None, mounts: Mounts | None = None) -> Termination:
    """What the Job writes into its termination message."""
    return stage.answer(task or bench.task(), mounts or bench.mounts).termination


def assert_refused(said: Termination, reason: Reason, *words: str, retryable: bool = False) -> None:
    assert (said.outcome, said.reason, said.retryable) == ("Failed", reason, retryable), said.message
    for word in words:
        assert word in said.message


@pytest.mark.parametrize(
    ("model", "reason", "words"),
    [
        (one_node("Relu", 99), Reason.UNSUPPORTED_OPSET, ("opset 99", "opset 26", "export it again")),
        (one_node("Relu", 3), Reason.UNSUPPORTED_OPERATOR, ("Relu(1)", "opset 7 or newer")),
        (
            half_product(TensorProto.BFLOAT16),
            Reason.UNSUPPORTED_OPERATOR,
            ("MatMul in bfloat16", "export the model in float32"),
        ),
        (models.custom_operator(), Reason.UNSUPPORTED_OPERATOR, ("SecretSauce", "standard operators")),
    ],
    ids=[
        "an opset that nobody reads yet",
        "an opset that nobody reads any more",
        "bfloat16",
        "an operator of somebody's own",
    ],
)
def test_what_the_runtime_cannot_run_says_what_it_can(
    bench: Workbench, model: onnx.ModelProto, reason: Reason, words: tuple[str, ...]
) -> None:
    bench.put(model)
    assert_refused(answer(bench), reason, *words)


def test_a_model_that_answers_nan_is_refused_before_anything_is_built(bench: Workbench) -> None:
    bench.put(one_node("Log", 17))
    below_zero = -1 - np.random.default_rng(0).random((40, 3), dtype=np.float32)
    task = bench.task(evaluation=EvaluationSpec(uri=bench.data("items", x=below_zero)))
    assert_refused(answer(bench, task), Reason.OUTPUTS_INVALID, "NaN for each of the first 3 items", "preprocessing")


def test_items_that_the_model_cannot_run_are_the_items_fault(bench: Workbench) -> None:
    bench.put(models.tokens())
    ids = np.full((10, 6), 5000, np.int64)  # the table has 37 rows
    uri = bench.data("items", input_ids=ids, attention_mask=np.ones((10, 6), np.int64))
    said = answer(bench, bench.task(evaluation=EvaluationSpec(uri=uri)))
    assert_refused(said, Reason.DATA_INVALID, "does not run on the given items", "5000")


# ------------------------------------------------------------------------------------------------------------------- disks


@contextmanager
def tiny(folder: Path, size: str) -> Iterator[Path]:
    """A filesystem of its own of that size at `folder`."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def with_store(bench: Workbench, folder: Path) -> tuple[PrepareTask, Mounts]:
    """The task whose store is the claim `store`, lying in `folder`."""
    mounts = Mounts({**bench.mounts.folders, "store": folder})
    return bench.task().model_copy(update={"store": "pvc://store"}), mounts


def test_a_store_that_is_full_says_so_and_leaves_no_half_file(bench: Workbench, tmp_path: Path) -> None:
    bench.put(models.dynamic_batch())
    with tiny(tmp_path / "full", "16k") as store:
        said = answer(bench, *with_store(bench, store))
        left = [path.name for path in store.rglob("*") if path.name.endswith(".partial")]
    assert_refused(said, Reason.STORE_FULL, "pvc://store", "enlarge its claim", retryable=True)
    assert left == []


def test_a_store_that_was_full_takes_the_same_task_once_there_is_room(bench: Workbench, tmp_path: Path) -> None:
    bench.put(models.dynamic_batch())
    with tiny(tmp_path / "full", "1m") as folder:
        task, mounts = with_store(bench, folder)
        store = Store.open(task.store, mounts)
        published = store.put_bytes(b"an artifact that serves" * 100)
        filler = folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        said = answer(bench, task, mounts)
        assert_refused(said, Reason.STORE_FULL, retryable=True)
        assert store.has_blob(published)
        filler.unlink()
        assert answer(bench, task, mounts).outcome == "Succeeded"
        blobs = [path.name for path in (folder / "blobs").iterdir()]
        assert published in blobs
        assert all(store.has_blob(name) for name in blobs), "each is whole, and none is half-written"
        assert not list(folder.rglob("*.partial"))


def test_a_store_that_is_read_only_says_so(bench: Workbench, tmp_path: Path) -> None:
    bench.put(models.dynamic_batch())
    with tiny(tmp_path / "closed", "1m") as store:
        subprocess.run(["mount", "-o", "remount,ro", str(store)], check=True)
        said = answer(bench, *with_store(bench, store))
    assert_refused(said, Reason.STORE_UNREACHABLE, "read-only", "read-write for Jobs")


def test_a_source_on_a_read_only_claim_is_read(bench: Workbench, tmp_path: Path) -> None:
    with tiny(tmp_path / "closed", "1m") as claim:
        models.save(models.dynamic_batch(), claim / "model.onnx")
        subprocess.run(["mount", "-o", "remount,ro", str(claim)], check=True)
        mounts = Mounts({**bench.mounts.folders, "closed": claim})
        said = answer(bench, bench.task(uri="pvc://closed/model.onnx"), mounts)
    assert said.outcome == "Succeeded", said.message


def test_a_full_disk_of_the_pod_is_not_the_stores_fault(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put(models.dynamic_batch())
    with tiny(tmp_path / "tmp", "4k") as folder:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        said = answer(bench)
    assert_refused(said, Reason.JOB_FAILED, "the pod's own disk", "ephemeral-storage")


# ----------------------------------------------------------------------------------------------------- published, then changed


def test_a_portable_form_that_was_changed_in_the_store_is_made_again(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    first = bench.prepare()
    root = bench.store.root.local
    assert root is not None
    blob = root / "blobs" / first.portable.files[0].sha256
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert bench.prepare().portable == first.portable
    assert bench.store.has_blob(first.portable.files[0].sha256)


def test_an_answer_that_was_cut_off_when_the_power_went_is_made_again(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    before = bench.prepare()
    (kept,) = (bench.folder / "store" / "results").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    again = bench.prepare()
    assert again.portable == before.portable
    assert kept.read_bytes() == again.canonical()
