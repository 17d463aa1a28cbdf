"""What libraries for GPUs found out, lent to Jobs by the store: to which, and under which key."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.runtimes.fake_cuda import FakeCuda

from fettle.api.recipe import OptimizeGraphStep, RecipeStep, RuntimeSettings
from fettle.api.task import BuildPlan, BuiltCandidate, CandidatePlan, DeviceForm, StoredModel
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer import gpu_caches
from fettle.runtimes import base, cpu, cuda, engine_build
from fettle.runtimes.engine import EngineRuntime
from fettle.runtimes.engine_build import Library
from fettle.store import kept
from fettle.store.cache import build_key
from fettle.store.store import Store
from fettle.store.uris import Mounts

TENSORRT, RTX = RuntimeName.TENSORRT, RuntimeName.TENSORRT_RTX
FINISH = (RecipeStep(optimize_graph=OptimizeGraphStep()),)


def plan(family: RuntimeName) -> BuildPlan:
    return BuildPlan(name="engine", family=family, steps=FINISH, form=DeviceForm(architecture="sm89", batch_size=1))


def built(runtime: RuntimeName, entry: str = "model.rtx") -> BuiltCandidate:
    candidate = CandidatePlan(name="engine", recipe="float32", runtime=runtime, settings=RuntimeSettings())
    return BuiltCandidate(plan=candidate, model=StoredModel(format="TensorRT-RTX", entry=entry, files=()))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return Store.open("pvc://store", Mounts({"store": tmp_path / "store"}))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A GPU, and both libraries as far as they are asked for their names."""
    there = FakeCuda()
    for module in (cuda, engine_build):
        monkeypatch.setattr(module, "connect", lambda: there)
    module: Any = SimpleNamespace(__version__="1.0")
    runtimes = {
        TENSORRT: EngineRuntime(Library(TENSORRT, module, "tensorrt-cu12", ahead_of_time=False)),
        RTX: EngineRuntime(Library(RTX, module, "tensorrt-rtx-cu12", ahead_of_time=True, compiles_on_load=True)),
    }
    monkeypatch.setattr(base, "get", runtimes.__getitem__)
    return there


def test_an_engine_that_is_built_on_its_gpu_is_another_build_with_another_driver(gpu: FakeCuda) -> None:
    model = StoredModel(format="ONNX", entry="model.onnx", files=())

    def key(family: RuntimeName) -> str:
        asked = plan(family)
        return build_key(asked, model, None, cpu.detect(), driver=gpu_caches.driver(asked))

    before = {family: key(family) for family in (TENSORRT, RTX)}
    gpu.cuda_version = "13.1"
    assert key(TENSORRT) != before[TENSORRT]
    assert key(RTX) == before[RTX], "built ahead of time, for whatever driver"


def test_without_a_gpu_there_is_no_driver_and_nothing_is_lent(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> cuda.Cuda:
        raise cuda.no_device("no driver")

    monkeypatch.setattr(cuda, "connect", connect)
    assert gpu_caches.driver(plan(TENSORRT)) is None
    with gpu_caches.timings(store, plan(TENSORRT), tmp_path) as path:
        assert path is None
    gpu_caches.lend_kernels(store, built(RTX), tmp_path / "model.rtx")
    gpu_caches.take_kernels_back(store, built(RTX), tmp_path / "model.rtx")
    assert store.names(kept.FOLDER) == []


def test_timings_are_lent_to_builds_on_a_gpu_of_one_architecture_and_driver(
    store: Store, tmp_path: Path, gpu: FakeCuda
) -> None:
    def build(number: int, content: bytes, family: RuntimeName = TENSORRT) -> bytes | None:
        folder = tmp_path / f"{number}"
        folder.mkdir()
        with gpu_caches.timings(store, plan(family), folder) as path:
            if path is None:
                return None
            before = path.read_bytes() if path.exists() else b""
            path.write_bytes(content)
        return before

    assert build(1, b"first") == b""
    assert build(2, b"second") == b"first"
    assert build(3, b"", RTX) is None, "it times nothing"
    gpu.cuda_version = "13.1"
    assert build(4, b"third") == b""


def test_two_products_of_one_architecture_do_not_replace_each_others(
    store: Store, tmp_path: Path, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(product: str, content: bytes) -> bytes:
        monkeypatch.setattr(gpu, "name", lambda: product)
        path = tmp_path / "timings"
        path.unlink(missing_ok=True)
        with gpu_caches.timings(store, plan(TENSORRT), tmp_path) as given:
            assert given == path
            before = path.read_bytes() if path.exists() else b""
            path.write_bytes(content)
        (tmp_path / "kernels.cache").write_bytes(content)
        gpu_caches.take_kernels_back(store, built(RTX), tmp_path / "model.rtx")
        return before

    products = ("NVIDIA A10", "NVIDIA A40", "NVIDIA A100-SXM4-80GB MIG 1g.10gb")
    assert [build(product, product.encode()) for product in products] == [b"", b"", b""]
    assert [build(product, product.encode()) for product in products] == [product.encode() for product in products]
    assert len(store.names(kept.FOLDER)) == 2 * len(products)


def test_a_build_that_fails_leaves_the_stores_timings_as_they_are(store: Store, tmp_path: Path, gpu: FakeCuda) -> None:
    with pytest.raises(OSError, match="no room"), gpu_caches.timings(store, plan(TENSORRT), tmp_path) as path:
        assert path is not None
        path.write_bytes(b"half")
        raise OSError("no room")
    assert store.names(kept.FOLDER) == []


def test_kernels_are_lent_to_the_engine_that_they_were_compiled_for(
    store: Store, tmp_path: Path, gpu: FakeCuda
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    (first / "kernels.cache").write_bytes(b"kernels")
    gpu_caches.take_kernels_back(store, built(RTX), first / "model.rtx")
    gpu_caches.lend_kernels(store, built(RTX, "other.rtx"), second / "other.rtx")
    assert not list(second.iterdir()), "another engine's"
    gpu_caches.lend_kernels(store, built(RTX), second / "model.rtx")
    assert (second / "kernels.cache").read_bytes() == b"kernels"


@pytest.mark.parametrize("runtime", [RuntimeName.ONNXRUNTIME, RuntimeName.ONNXRUNTIME_CUDA, TENSORRT])
def test_runtimes_that_compile_nothing_when_they_load_are_lent_nothing(
    runtime: RuntimeName, store: Store, tmp_path: Path, gpu: FakeCuda
) -> None:
    (tmp_path / "kernels.cache").write_bytes(b"kernels")
    gpu_caches.take_kernels_back(store, built(runtime), tmp_path / "model.onnx")
    assert store.names(kept.FOLDER) == []
