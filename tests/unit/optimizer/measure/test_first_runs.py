"""The first runs of a block are thrown away: counted by a model whose every run draws the next number of a known sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer.measure import worker
from fettle.optimizer.measure.protocol import Block, Load, Loaded, RunItems, Runs
from fettle.optimizer.measure.worker import DISCARD_RUNS, Worker
from fettle.runtimes import base

X = np.zeros((4, 1), np.float32)
SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 1), batch_axis=0),),
    outputs=(Tensor(name="draw", dtype="FP32", shape=(-1, 4), batch_axis=0),),
)


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers four random numbers, from the same seed in every session."""
    nodes = [
        helper.make_node("RandomUniform", [], ["random"], shape=[1, 4], seed=7.0),
        helper.make_node("Add", ["x", "random"], ["draw"]),
    ]
    graph = helper.make_graph(
        nodes,
        "draws",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("draw", TensorProto.FLOAT, ["N", 4])],
    )
    path = tmp_path_factory.mktemp("draws") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Counted:
    """A worker with that model, which can be asked how many runs it has made."""

    def __init__(self, entry: Path, streams: int) -> None:
        items = entry.parent / "x.npy"
        np.save(items, X)
        settings = RuntimeSettings(threads=1, streams=streams)
        self._worker = Worker()
        loaded = self._worker.handle(Load(entry, RuntimeName.ONNXRUNTIME, settings, SIGNATURE, {"x": items}))
        assert loaded == Loaded()
        self._twin = base.get(RuntimeName.ONNXRUNTIME).load(entry, RuntimeSettings(threads=1), SIGNATURE)
        self._seen = 0

    def block(self, seconds: float, runs: int, batch: int = 1, alone: bool = False) -> tuple[Runs, int]:
        """A block, and how many runs its model made in all."""
        before = self._runs_made()
        timed = self._worker.handle(Block(batch=batch, seconds=seconds, runs=runs, alone=alone))
        return timed, self._runs_made() - before - 1

    def _runs_made(self) -> int:
        """Runs so far, this one too: the twin draws until it has drawn the same."""
        found = self._worker.handle(RunItems((0,)))["draw"]
        while True:
            self._seen += 1
            if np.array_equal(self._twin.infer({"x": X[:1]})["draw"], found):
                return self._seen


@pytest.mark.parametrize("streams", [1, 2])
def test_the_first_runs_of_every_block_are_thrown_away(entry: Path, streams: int) -> None:
    counted = Counted(entry, streams)
    for _ in range(2):  # the pool sleeps again between two blocks
        timed, made = counted.block(seconds=0.05, runs=5)
        assert len(timed.milliseconds) >= 5
        assert made - len(timed.milliseconds) >= DISCARD_RUNS * streams


def test_runs_of_a_quick_model_are_thrown_away_for_20_ms(entry: Path) -> None:
    timed, made = Counted(entry, 1).block(seconds=0.05, runs=5)
    # 50 ms are timed: what was thrown away is some two fifths of that, on a busy machine fewer runs than on an idle one.
    assert made - len(timed.milliseconds) > 10


def test_of_a_slow_model_only_one_run_is_thrown_away(entry: Path) -> None:
    # Slow: a run takes longer than the block is to last.
    timed, made = Counted(entry, 1).block(seconds=1e-9, runs=3)
    assert (len(timed.milliseconds), made) == (3, 4)


@pytest.mark.parametrize(("alone", "each"), [(False, 1), (True, 4)])
@pytest.mark.parametrize("streams", [1, 2])
def test_items_that_are_served_alone_are_timed_together_in_a_run_each(
    entry: Path, streams: int, alone: bool, each: int
) -> None:
    timed, made = Counted(entry, streams).block(seconds=1e-9, runs=3, batch=4, alone=alone)
    assert made % each == 0
    assert made >= each * len(timed.milliseconds) >= each * 3


class Ticks(int):
    """Nanoseconds that count how often they are added up."""

    additions = 0

    def __sub__(self, other: int) -> Ticks:
        return Ticks(int(self) - int(other))

    def __add__(self, other: int) -> Ticks:
        Ticks.additions += 1
        return Ticks(int(self) + int(other))

    __radd__ = __add__


def test_the_last_run_of_a_block_costs_as_little_beside_the_model_as_the_first(
    entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(entry, 1)
    now = iter(range(0, 10**12, 1000))
    monkeypatch.setattr(worker.time, "perf_counter_ns", lambda: Ticks(next(now)))
    monkeypatch.setattr(Ticks, "additions", 0)
    timed, _ = counted.block(seconds=1e-3, runs=5)
    assert len(timed.milliseconds) >= 1000
    assert Ticks.additions <= 2 * len(timed.milliseconds)


class OnGpu:
    """A session that says that each run takes a quarter of a millisecond on a GPU."""

    def __init__(self, session: base.Session) -> None:
        self._session = session
        self.marked = False

    def infer(self, inputs: base.Arrays, interrupt: base.Interrupt | None = None) -> dict[str, base.Array]:
        return self._session.infer(inputs, interrupt)

    def effective_settings(self) -> RuntimeSettings:
        return self._session.effective_settings()

    def close(self) -> None:
        self._session.close()

    def time_on_gpu(self) -> None:
        self.marked = True

    def gpu_milliseconds(self) -> float:
        assert self.marked
        return 0.25


@pytest.mark.parametrize(("alone", "each"), [(False, 0.25), (True, 1.0)])
def test_times_on_the_gpu_stand_beside_the_wall_clocks_one_for_one(
    entry: Path, alone: bool, each: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = base.get(RuntimeName.ONNXRUNTIME)
    plain = runtime.load
    assert not isinstance(plain(entry, RuntimeSettings(threads=1), SIGNATURE), base.TimedOnGpu)
    counted = Counted(entry, 1)
    assert counted.block(seconds=1e-9, runs=3)[0].gpu_milliseconds == ()
    monkeypatch.setattr(runtime, "load", lambda *arguments: OnGpu(plain(*arguments)))
    timed = Worker()
    request = Load(entry, RuntimeName.ONNXRUNTIME, RuntimeSettings(threads=1), SIGNATURE, {"x": entry.parent / "x.npy"})
    timed.handle(request)
    runs = timed.handle(Block(batch=4, seconds=1e-9, runs=3, alone=alone))
    assert runs.gpu_milliseconds == (each,) * len(runs.milliseconds)
