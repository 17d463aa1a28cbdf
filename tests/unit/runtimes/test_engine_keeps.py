"""What engines tell and keep beside their answers, on a GPU that is played: times between events, kernels that were compiled, timings of builds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.unit.runtimes.fake_cuda import (
    OUT_OF_MEMORY,
    USER_MANAGED,
    FakeCuda,
    FakeEngine,
    FakeKernels,
    FakeRuntimeConfig,
)
from tests.unit.runtimes.test_engine import INPUTS, LEFT, PAIR, made, session

from fettle.api.recipe import RuntimeSettings
from fettle.api.vocabulary import RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes import engine_build
from fettle.runtimes.compiled_kernels import CompiledKernels
from fettle.runtimes.engine import EngineSession
from fettle.runtimes.engine_build import Library, _Timings
from fettle.store import kept
from fettle.store.kept import MadeFor

# ------------------------------------------------------------------------------------------------------- times between events


@pytest.mark.parametrize("static", [None, 2], ids=["call by call", "recorded"])
def test_a_run_tells_its_time_on_the_gpu_where_that_is_asked_for(static: int | None) -> None:
    cuda = FakeCuda()
    loaded = session(cuda, static=static)
    loaded.infer(INPUTS)
    assert cuda.calls.count("record") == 0, "serving does not pay for it"
    loaded.time_on_gpu()
    for _ in range(3):
        cuda.calls.clear()
        loaded.infer(INPUTS)
        work = [call for call in cuda.calls if call in ("record", "copy_in", "launch", "copy_out", "synchronize")]
        assert (work[-2], work[-1]) == ("record", "synchronize")
        assert work.count("record") == 2
        assert work[-3] == ("launch" if static else "copy_out"), "what is between the marks"
        assert loaded.gpu_milliseconds() == 1.0
    loaded.close()
    assert cuda.left == (0, 0, 0)


def test_a_gpu_without_room_for_both_marks_keeps_none() -> None:
    cuda = FakeCuda()
    loaded = session(cuda)
    loaded.time_on_gpu()
    cuda.fails["create_event"] = (1, OUT_OF_MEMORY)
    with pytest.raises(RuntimeFailure, match="out of memory"):
        loaded.infer(INPUTS)
    assert cuda.left == (0, 0, 0)
    loaded.infer(INPUTS)
    assert loaded.gpu_milliseconds() == 1.0


# ------------------------------------------------------------------------------------------------------------ compiled kernels


def with_kernels(cuda: FakeCuda, path: Path, **fields: Any) -> tuple[EngineSession, FakeEngine]:
    loaded = made(cuda, **fields)
    made_for = MadeFor(library="rtx", version="1.7", architecture=cuda.sm, driver=cuda.cuda_version)
    kernels = CompiledKernels(loaded, path, made_for, USER_MANAGED)
    return EngineSession(loaded, cuda, RuntimeSettings(), PAIR, kernels.context, kernels), loaded


def test_kernels_are_kept_once_after_the_first_run_and_given_to_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "kernels.cache"
    first, _ = with_kernels(FakeCuda(), path)
    assert not path.exists()
    first.infer(INPUTS)
    before = path.stat().st_mtime_ns
    first.infer(INPUTS)
    second, _ = with_kernels(FakeCuda(), path)
    np.testing.assert_array_equal(second.infer(INPUTS)["product"], LEFT * 2)
    assert path.stat().st_mtime_ns == before, "nothing is new"
    other, _ = with_kernels(FakeCuda(sm="sm86"), path)
    other.infer(INPUTS)
    assert b"sm86" in path.read_bytes(), "what was compiled for another GPU is compiled again"


def test_kernels_are_kept_again_after_the_first_run_in_each_profile(tmp_path: Path) -> None:
    path = tmp_path / "kernels.cache"
    loaded, _ = with_kernels(FakeCuda(), path, ranges=((1, 1), (2, 8)), scratch=(0, 0))
    one = {name: array[:1] for name, array in INPUTS.items()}
    loaded.infer(one)
    assert b"in profile 1" not in path.read_bytes()
    loaded.infer(INPUTS)
    assert path.read_bytes().endswith(b"in profile 0 in profile 1")
    before = path.stat().st_mtime_ns
    loaded.infer(one)
    loaded.infer(INPUTS)
    assert path.stat().st_mtime_ns == before, "nothing is new"


@pytest.mark.parametrize(
    ("shapes", "launched"), [({"static": 1}, 2), ({"ranges": ((1, 1), (2, 8)), "scratch": (0, 0)}, 0)]
)
def test_only_runs_whose_kernels_are_never_replaced_are_recorded(
    shapes: dict[str, Any], launched: int, tmp_path: Path
) -> None:
    """A library that compiles kernels on the GPU at hand replaces those for shapes that vary by faster ones."""
    cuda = FakeCuda()
    loaded, _ = with_kernels(cuda, tmp_path / "kernels.cache", **shapes)
    for _ in range(3):
        answers = loaded.infer({name: array[:1] for name, array in INPUTS.items()})
        np.testing.assert_array_equal(answers["product"], LEFT[:1] * 2)
    assert cuda.calls.count("launch") == launched


@pytest.mark.parametrize("damage", [b"", b"no heading", b"{}\n"])
def test_damaged_kernels_are_compiled_again(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kernels.cache"
    path.write_bytes(damage)
    loaded, _ = with_kernels(FakeCuda(), path)
    np.testing.assert_array_equal(loaded.infer(INPUTS)["product"], LEFT * 2)
    assert path.read_bytes().endswith(b"kernels of sm89 in profile 0")


@pytest.mark.parametrize("call", ["create_runtime_config", "set_runtime_cache", "serialize"])
def test_a_library_that_fails_to_keep_kernels_runs_engines_all_the_same(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*arguments: object) -> object:
        raise RuntimeError("not on this GPU")

    owner = {"create_runtime_config": FakeEngine, "set_runtime_cache": FakeRuntimeConfig, "serialize": FakeKernels}
    monkeypatch.setattr(owner[call], call, refuses)
    loaded, _ = with_kernels(FakeCuda(), tmp_path / "kernels.cache")
    np.testing.assert_array_equal(loaded.infer(INPUTS)["product"], LEFT * 2)
    assert not (tmp_path / "kernels.cache").exists()


def test_a_run_after_which_kernels_do_not_fit_in_memory_frees_its_lane_and_the_next_one_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, made_for: MadeFor, content: bytes) -> None:
        raise MemoryError

    cuda = FakeCuda()
    loaded, _ = with_kernels(cuda, tmp_path / "kernels.cache")
    with monkeypatch.context() as patch:
        patch.setattr(kept, "write", full)
        with pytest.raises(MemoryError):
            loaded.infer(INPUTS)
    assert cuda.left == (0, 0, 0)
    np.testing.assert_array_equal(loaded.infer(INPUTS)["product"], LEFT * 2)
    loaded.close()
    assert cuda.left == (0, 0, 0)


# ----------------------------------------------------------------------------------------------------------- timings of builds


class FakeConfig:
    """A builder's configuration, as far as timings go. `takes`: what the library takes for timings of this GPU."""

    def __init__(self, takes: bytes = b"timings") -> None:
        self.takes, self.used = takes, b"nothing set"

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(content=content) if content in (b"", self.takes) else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "timings of another GPU are no help"
        self.used = cache.content
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.takes)


def test_timings_of_a_build_are_there_for_the_next_and_those_that_the_library_refuses_are_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_build, "connect", FakeCuda)
    library = Library(RuntimeName.TENSORRT, SimpleNamespace(__version__="11.4"), "tensorrt-cu12", ahead_of_time=False)

    def build(**fields: Any) -> bytes:
        config = FakeConfig(**fields)
        _Timings(library, config, tmp_path / "timings", "sm89").keep()
        return config.used

    assert (build(), build()) == (b"", b"timings")
    assert build(takes=b"of another library") == b"", "a line in the log, and the build goes on"
    (tmp_path / "timings").write_bytes(b"damaged")
    assert (build(), build()) == (b"", b"timings")
