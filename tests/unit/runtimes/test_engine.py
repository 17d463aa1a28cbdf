"""The code that runs engines, on a GPU that is played: the order of its calls, what it frees, and what becomes of errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.unit.runtimes.fake_cuda import OUT_OF_MEMORY, USER_MANAGED, FakeCuda, FakeEngine

from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import RuntimeName
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure import promises
from fettle.runtimes import engine, engine_build
from fettle.runtimes.base import Array, Interrupt, Interrupted
from fettle.runtimes.cuda import ContextLost, no_device
from fettle.runtimes.engine import EngineRuntime, EngineSession
from fettle.runtimes.engine_build import EngineNote, Library

LEFT, RIGHT = np.arange(12, dtype=np.float32).reshape(2, 6), np.full((2, 1), 2, np.float32)
INPUTS = {"left": LEFT, "right": RIGHT}


def tensor(name: str, *shape: int, dtype: str = "FP32") -> Tensor:
    return Tensor(name=name, dtype=dtype, shape=(-1, *shape), batch_axis=0)


PAIR = Signature(inputs=(tensor("left", 6), tensor("right", 1)), outputs=(tensor("product", 6), tensor("total")))


def pair(feed: Mapping[str, Array]) -> dict[str, Array]:
    product = feed["left"] * feed["right"]
    return {"product": product, "total": product.sum(axis=1)}


def made(cuda: FakeCuda, **fields: Any) -> FakeEngine:
    return FakeEngine(
        cuda, **{"function": pair, "inputs": ("left", "right"), "outputs": {"product": (6,), "total": ()}, **fields}
    )


def session(cuda: FakeCuda, streams: int = 1, signature: Signature = PAIR, **fields: Any) -> EngineSession:
    engine = made(cuda, **fields)
    contexts = partial(engine.create_execution_context, USER_MANAGED)
    return EngineSession(engine, cuda, RuntimeSettings(streams=streams), signature, contexts)


def test_a_run_copies_in_computes_copies_out_and_waits_once() -> None:
    cuda = FakeCuda()
    loaded = session(cuda)
    cuda.calls.clear()
    answers = loaded.infer(INPUTS)
    assert list(answers) == ["product", "total"]
    np.testing.assert_array_equal(answers["product"], LEFT * 2)
    np.testing.assert_array_equal(answers["total"], (LEFT * 2).sum(axis=1))
    work = [call for call in cuda.calls if not call.startswith("allocate")]
    assert work == [
        "set_input_shape",
        "set_input_shape",
        "copy_in",
        "copy_in",
        "execute",
        "copy_out",
        "copy_out",
        "synchronize",
    ]


def test_it_keeps_what_every_runtime_promises() -> None:
    promises.require(RuntimeName.TENSORRT_RTX, session(FakeCuda()), PAIR, INPUTS)


def test_a_single_number_stays_one_on_the_gpu_and_back() -> None:
    scale = Tensor(name="scale", dtype="FP64", shape=(), batch_axis=None)
    signature = Signature(inputs=(tensor("left", 6), scale), outputs=(tensor("product", 6),))

    def function(feed: Mapping[str, Array]) -> dict[str, Array]:
        assert feed["scale"].shape == ()
        return {"product": feed["left"] * feed["scale"]}

    loaded = session(
        FakeCuda(), signature=signature, function=function, inputs=("left", "scale"), outputs={"product": (6,)}
    )
    answers = loaded.infer({"left": LEFT, "scale": np.array(3.0)})
    np.testing.assert_array_equal(answers["product"], LEFT * 3)


def test_memory_is_taken_once_and_again_only_for_more() -> None:
    cuda = FakeCuda()
    loaded = session(cuda)
    taken = []
    for rows in (2, 1, 2, 4, 3):
        cuda.calls.clear()
        loaded.infer({"left": np.ones((rows, 6), np.float32), "right": np.ones((rows, 1), np.float32)})
        taken.append(cuda.calls.count("allocate"))
    assert taken == [4, 0, 0, 4, 0]
    assert cuda.left == (4, 4, 1)


def test_what_was_taken_is_given_back_and_closing_twice_is_allowed() -> None:
    cuda = FakeCuda()
    loaded = session(cuda, streams=3)
    loaded.infer(INPUTS)
    loaded.close()
    loaded.close()
    assert cuda.left == (0, 0, 0)
    with pytest.raises(RuntimeFailure, match="the session is closed"):
        loaded.infer(INPUTS)


@pytest.mark.parametrize(
    "call", ["create_stream", "allocate", "allocate_host", "copy_in", "execute", "copy_out", "synchronize"]
)
def test_a_run_that_fails_frees_what_it_held_and_the_next_one_answers(call: str) -> None:
    cuda = FakeCuda()
    loaded = session(cuda)
    cuda.fails[call] = (0, OUT_OF_MEMORY)
    if call == "create_stream":  # asked for only where the lane before it failed
        cuda.fails["copy_in"] = (0, OUT_OF_MEMORY)
        with pytest.raises(RuntimeFailure):
            loaded.infer(INPUTS)
    with pytest.raises(RuntimeFailure, match="out of memory") as failure:
        loaded.infer(INPUTS)
    assert failure.value.reason == Reason.OUT_OF_MEMORY
    assert cuda.left == (0, 0, 0)
    np.testing.assert_array_equal(loaded.infer(INPUTS)["product"], LEFT * 2)
    loaded.close()
    assert cuda.left == (0, 0, 0)


def test_a_run_that_waits_for_a_lane_while_the_session_is_closed_ends() -> None:
    loaded = session(FakeCuda())

    class Closing(Interrupt):
        """Closes the session between the look at the inputs and the run."""

        def ending(self, stop: Callable[[], None]) -> AbstractContextManager[None]:
            loaded.close()
            return super().ending(stop)

    for _ in range(2):
        with pytest.raises(RuntimeFailure, match="the session is closed"):
            loaded.infer(INPUTS, Closing())


def test_a_session_that_cannot_have_all_its_streams_leaves_nothing_behind() -> None:
    cuda = FakeCuda(fails={"create_stream": (2, OUT_OF_MEMORY)})
    with pytest.raises(RuntimeFailure, match="out of memory"):
        session(cuda, streams=3)
    assert cuda.left == (0, 0, 0)
    cuda = FakeCuda()
    with pytest.raises(RuntimeFailure, match="too little memory for an execution context"):
        session(cuda, no_context=True)
    assert cuda.left == (0, 0, 0)


def test_a_library_that_raises_instead_of_making_a_context_leaves_nothing_behind() -> None:
    cuda = FakeCuda()
    raised: Any = TypeError("factory function returned nullptr")
    cuda.fails["create_execution_context"] = (1, raised)
    with pytest.raises(RuntimeFailure, match="made no execution context: factory function returned nullptr"):
        session(cuda, streams=2)
    assert cuda.left == (0, 0, 0)


def test_a_lost_context_is_said_each_time_and_blocks_nobody() -> None:
    cuda = FakeCuda()
    loaded = session(cuda)
    lost = ContextLost("the GPU's context is lost")
    for _ in range(3):
        cuda.fails = dict.fromkeys(("synchronize", "create_stream"), (0, lost))
        with pytest.raises(ContextLost):
            loaded.infer(INPUTS)
    cuda.fails = dict.fromkeys(("free", "destroy_stream"), (0, lost))
    loaded.close()


def test_runs_of_one_shape_are_recorded_once_and_launched_from_then_on() -> None:
    cuda = FakeCuda()
    loaded = session(cuda, static=2)
    called = []
    for number in range(4):
        cuda.calls.clear()
        left = LEFT + number
        np.testing.assert_array_equal(loaded.infer({"left": left, "right": RIGHT})["product"], left * 2)
        called.append([call for call in cuda.calls if not call.startswith(("allocate", "set_input_shape"))])
    run = ["copy_in", "copy_in", "execute", "copy_out", "copy_out"]
    assert called == [
        [*run, "synchronize"],
        ["begin_capture", *run, "end_capture", "instantiate", "destroy_graph", "launch", "synchronize"],
        ["launch", "synchronize"],
        ["launch", "synchronize"],
    ]
    assert cuda.recorded == (0, 1)
    loaded.close()
    assert (cuda.recorded, cuda.left) == ((0, 0), (0, 0, 0))


@pytest.mark.parametrize("call", ["begin_capture", "copy_in", "execute", "copy_out", "end_capture", "instantiate"])
def test_a_run_that_cannot_be_recorded_goes_on_call_by_call_and_is_not_tried_again(call: str) -> None:
    cuda = FakeCuda()
    loaded = session(cuda, static=2)
    loaded.infer(INPUTS)
    cuda.fails[call] = (0, RuntimeFailure("operation not permitted when stream is capturing"))
    for number in range(3):
        left = LEFT + number
        np.testing.assert_array_equal(loaded.infer({"left": left, "right": RIGHT})["product"], left * 2)
    assert (cuda.calls.count("begin_capture"), cuda.calls.count("launch")) == (1, 0)
    assert (cuda.captures, cuda.recorded) == ({}, (0, 0))
    assert cuda.calls.count("create_stream") == 1, "its lane stays"
    loaded.close()
    assert cuda.left == (0, 0, 0)


def test_shapes_that_may_vary_are_not_recorded() -> None:
    cuda = FakeCuda()
    loaded = session(cuda)
    for _ in range(3):
        loaded.infer(INPUTS)
    assert "begin_capture" not in cuda.calls


def test_a_launch_that_fails_frees_what_was_recorded_and_the_next_run_has_a_lane_of_its_own() -> None:
    cuda = FakeCuda()
    loaded = session(cuda, static=2)
    loaded.infer(INPUTS)
    cuda.fails["launch"] = (0, OUT_OF_MEMORY)
    with pytest.raises(RuntimeFailure, match="out of memory"):
        loaded.infer(INPUTS)
    assert (cuda.recorded, cuda.left) == ((0, 0), (0, 0, 0))
    for _ in range(3):
        np.testing.assert_array_equal(loaded.infer(INPUTS)["product"], LEFT * 2)
    assert cuda.calls.count("launch") == 3


@pytest.mark.parametrize("call", ["begin_capture", "execute", "end_capture", "instantiate", "launch"])
def test_a_context_that_is_lost_while_recording_is_lost(call: str) -> None:
    cuda = FakeCuda()
    loaded = session(cuda, static=2)
    loaded.infer(INPUTS)
    cuda.fails[call] = (0, ContextLost("the GPU's context is lost"))
    with pytest.raises(ContextLost):
        loaded.infer(INPUTS)
    loaded.close()


def test_another_shape_than_the_recorded_one_is_the_callers_mistake() -> None:
    loaded = session(FakeCuda(), static=2)
    for _ in range(3):
        loaded.infer(INPUTS)
    with pytest.raises(RuntimeFailure, match=r"other shapes than \[1, 6\]") as failure:
        loaded.infer({"left": LEFT[:1], "right": RIGHT[:1]})
    assert failure.value.reason == Reason.DATA_INVALID
    np.testing.assert_array_equal(loaded.infer(INPUTS)["product"], LEFT * 2)


def test_a_shape_that_the_engine_was_not_built_for_is_the_callers_mistake() -> None:
    cuda = FakeCuda()
    loaded = session(cuda, ranges=((1, 4),))
    cuda.calls.clear()
    with pytest.raises(RuntimeFailure, match=r"other shapes than \[5, 6\]") as failure:
        loaded.infer({"left": np.ones((5, 6), np.float32), "right": np.ones((5, 1), np.float32)})
    assert failure.value.reason == Reason.DATA_INVALID
    assert cuda.calls == ["set_input_shape"], "nothing was begun, so nothing is thrown away"
    np.testing.assert_array_equal(loaded.infer(INPUTS)["product"], LEFT * 2)


def test_an_engine_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RuntimeFailure, match="the engine did not start"):
        session(FakeCuda(), starts=False).infer(INPUTS)


def test_runs_of_several_threads_do_not_mix() -> None:
    cuda = FakeCuda()
    loaded = session(cuda, streams=2)

    def one(number: int) -> bool:
        left = np.full((2, 6), number, np.float32)
        return bool((loaded.infer({"left": left, "right": RIGHT})["product"] == left * 2).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(64)))
    assert cuda.calls.count("create_stream") == 2


def test_an_interrupted_run_has_no_answer_and_the_next_one_has() -> None:
    cuda, interrupt = FakeCuda(), Interrupt()

    def function(feed: Mapping[str, Array]) -> dict[str, Array]:
        interrupt.set()
        return pair(feed)

    loaded = session(cuda, function=function)
    with pytest.raises(Interrupted):
        loaded.infer(INPUTS, interrupt)
    np.testing.assert_array_equal(loaded.infer(INPUTS)["product"], LEFT * 2)
    assert threading.active_count() >= 1


@pytest.mark.parametrize(
    ("v2", "numpy", "engines", "fits"),
    [
        ("FP16", np.float16, "HALF", True),
        ("FP64", np.float64, "FLOAT", True),
        ("INT64", np.int64, "INT64", True),
        ("INT64", np.int64, "INT32", False),
        ("FP32", np.float32, "HALF", False),
        ("FP32", np.float32, "FP8", False),
    ],
)
def test_data_types_are_the_signatures_or_refused(v2: str, numpy: type, engines: str, fits: bool) -> None:
    signature = Signature(inputs=(tensor("x", 2, dtype=v2),), outputs=(tensor("y", 2, dtype=v2),))
    fields: dict[str, Any] = {
        "function": lambda feed: {"y": feed["x"] * 2},
        "inputs": ("x",),
        "outputs": {"y": (2,)},
        "types": {"x": engines, "y": engines},
    }
    if not fits:
        with pytest.raises(RuntimeFailure, match=f"is {v2}, and the engine has {engines}") as failure:
            session(FakeCuda(), signature=signature, **fields)
        assert failure.value.reason == Reason.UNSUPPORTED_MODEL
        return
    given = np.array([[1, 2], [3, 4]], numpy)
    answer = session(FakeCuda(), signature=signature, **fields).infer({"x": given})["y"]
    assert answer.dtype == numpy
    np.testing.assert_array_equal(answer, given * 2)


class FakeModule:
    """As much of TensorRT's module as loading an engine takes, on a machine where no builder can be made. `engines`: what deserializing answers."""

    __version__ = "1.7.1"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=USER_MANAGED)

    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def __init__(self, engines: FakeEngine | None) -> None:
        self._engines = engines

    def Builder(self, log: Any) -> Any:
        raise TypeError("factory function returned nullptr")

    def Runtime(self, log: Any) -> Any:
        outer = self

        class Loaded:
            def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
                if outer._engines is None:
                    log.log(FakeModule.ILogger.Severity.ERROR, "Magic tag does not match")
                return outer._engines

        return Loaded()


@pytest.mark.parametrize(
    ("note", "here", "told", "reason"),
    [
        ({}, "sm89", "", None),
        ({}, "sm86", r"built for sm89, and this node's GPU \(NVIDIA Fake\) is sm86", Reason.NODE_INCOMPATIBLE),
        ({"version": "1.6.0"}, "sm89", "an engine only runs with the release that built it", Reason.NODE_INCOMPATIBLE),
        ({"library": "tensorrt-cu12"}, "sm89", "built by tensorrt-cu12 1.7.1", Reason.NODE_INCOMPATIBLE),
        ({"damaged": True}, "sm89", "Magic tag does not match", Reason.MODEL_LOAD_FAILED),
    ],
    ids=["fits", "another GPU", "another release", "another library", "a damaged file"],
)
def test_an_engine_is_loaded_where_it_belongs_and_nowhere_else(
    note: dict[str, Any], here: str, told: str, reason: Reason | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(sm=here)
    monkeypatch.setattr(engine, "connect", lambda: cuda)
    damaged = note.pop("damaged", False)
    library = Library(RuntimeName.TENSORRT_RTX, FakeModule(None if damaged else made(cuda)), "tensorrt-rtx-cu12", True)
    entry = tmp_path / "model.rtx"
    entry.write_bytes(b"an engine")
    kept = EngineNote.model_validate(
        {
            "library": "tensorrt-rtx-cu12",
            "version": "1.7.1",
            "architecture": "sm89",
            "executed": Executed(f16=3, total=3),
            **note,
        }
    )
    (tmp_path / engine_build.NOTE).write_bytes(kept.canonical())
    runtime = EngineRuntime(library)
    if reason is None:
        loaded = runtime.load(entry, RuntimeSettings(streams=2), PAIR)
        np.testing.assert_array_equal(loaded.infer(INPUTS)["product"], LEFT * 2)
        assert loaded.effective_settings().streams == 2
        assert runtime.executed(entry, RuntimeSettings(), INPUTS).f16 == 3
        return
    with pytest.raises(RuntimeFailure, match=told) as failure:
        runtime.load(entry, RuntimeSettings(), PAIR)
    assert failure.value.reason == reason
    assert cuda.left == (0, 0, 0)


@pytest.mark.parametrize(
    ("here", "told"),
    [
        (None, "this node has no NVIDIA GPU"),
        ("sm86", "builds only for the GPU of this node, which is sm86; the target's is sm89"),
    ],
    ids=["no GPU", "another GPU"],
)
def test_an_engine_for_a_gpu_that_is_not_here_is_refused_before_the_library_is_asked(
    here: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own words for it would be those of a broken model."""

    def connect() -> FakeCuda:
        if here is None:
            raise no_device("no device is visible")
        return FakeCuda(sm=here)

    monkeypatch.setattr(engine_build, "connect", connect)
    library = Library(RuntimeName.TENSORRT, FakeModule(None), "tensorrt-cu12", ahead_of_time=False)
    with pytest.raises(RuntimeFailure, match=told) as failure:
        EngineRuntime(library).build(tmp_path / "model.onnx", tmp_path / "model.engine", "sm89", ())
    assert failure.value.reason == Reason.NODE_INCOMPATIBLE


def test_the_errors_of_a_loaded_engine_do_not_pile_up() -> None:
    severity = FakeModule.ILogger.Severity
    log = engine_build.error_log(FakeModule)
    for number in range(10 * engine_build.MOST_ERRORS):
        log.log(severity.ERROR, f"input {number} has another shape")
        log.log(severity.WARNING, "nothing that matters")
    assert len(log.errors) == engine_build.MOST_ERRORS
    assert log.errors[0] == "input 0 has another shape", "of what a build says, the first is the cause"


def test_an_engine_without_its_note_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "model.rtx").write_bytes(b"an engine")
    library = Library(RuntimeName.TENSORRT_RTX, FakeModule(None), "tensorrt-rtx-cu12", True)
    with pytest.raises(RuntimeFailure, match=r"engine\.json cannot be read"):
        EngineRuntime(library).load(tmp_path / "model.rtx", RuntimeSettings(), PAIR)
