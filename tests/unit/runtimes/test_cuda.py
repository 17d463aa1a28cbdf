"""CUDA's errors as ours, with a module of calls that answer as they are told; and what is said where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tests.unit.runtimes.fake_cuda import FakeCuda

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure.protocol import Load
from fettle.optimizer.measure.worker import Worker
from fettle.runtimes import cpu, cuda, gpu_state, machine, onnxruntime_cuda
from fettle.runtimes.cuda import ContextLost, _CudaBindings


class Error(IntEnum):
    cudaSuccess, cudaErrorMemoryAllocation, cudaErrorInvalidValue, cudaErrorIllegalAddress = 0, 2, 1, 700
    cudaErrorNoDevice = 100


class Runtime:
    """cuda.bindings.runtime, as far as it is called. `answers`: by a call's name; `sticky`: what every later call answers."""

    cudaError_t = Error
    cudaStreamNonBlocking = 1
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeRelaxed=2)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, **answers: Any) -> None:
        properties = SimpleNamespace(major=8, minor=9, name=b"NVIDIA L4", uuid=SimpleNamespace(bytes=bytes(range(16))))
        self.answers = {
            "cudaGetDeviceCount": (Error.cudaSuccess, 1),
            "cudaGetDeviceProperties": (Error.cudaSuccess, properties),
        }
        self.answers |= {
            "cudaMemGetInfo": (Error.cudaSuccess, 1, 2),
            "cudaGetLastError": (Error.cudaSuccess,),
            **answers,
        }
        self.asked: list[tuple[Any, ...]] = []

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return Error.cudaSuccess, error.name.encode()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.asked.append((name, *arguments))
            answer = self.answers.get(name, (Error.cudaSuccess,))
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def test_a_gpu_tells_its_architecture_name_and_memory() -> None:
    gpu = _CudaBindings(Runtime())
    assert (gpu.architecture(), gpu.name(), gpu.memory()) == ("sm89", "NVIDIA L4", (1, 2))
    assert gpu.uuid() == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    odd = SimpleNamespace(major=12, minor=1, name=b"NVIDIA \xff")
    gpu = _CudaBindings(Runtime(cudaGetDeviceProperties=(Error.cudaSuccess, odd)))
    assert (gpu.architecture(), gpu.name()) == ("sm121", "NVIDIA \ufffd")


@pytest.mark.parametrize(
    "answer",
    [RuntimeError("libcuda.so.1 was not found"), (Error.cudaErrorNoDevice, 0), (Error.cudaSuccess, 0)],
    ids=["no driver", "no device", "none visible"],
)
def test_without_a_gpu_the_node_is_incompatible(answer: Any) -> None:
    with pytest.raises(RuntimeFailure, match="this node has no NVIDIA GPU that the pod may use") as failure:
        _CudaBindings(Runtime(cudaGetDeviceCount=answer))
    assert failure.value.reason == Reason.NODE_INCOMPATIBLE


@pytest.mark.parametrize(
    ("error", "sticky", "kind", "reason", "told"),
    [
        (Error.cudaErrorMemoryAllocation, False, RuntimeFailure, Reason.OUT_OF_MEMORY, "out of memory"),
        (Error.cudaErrorInvalidValue, False, RuntimeFailure, Reason.MODEL_LOAD_FAILED, "cudaErrorInvalidValue"),
        (
            Error.cudaErrorIllegalAddress,
            True,
            ContextLost,
            Reason.MODEL_LOAD_FAILED,
            "only a new process can use the GPU",
        ),
    ],
    ids=["no room", "a wrong call", "a kernel that destroyed the context"],
)
def test_an_error_says_what_failed_and_whether_the_process_can_go_on(
    error: Error, sticky: bool, kind: type[RuntimeFailure], reason: Reason, told: str
) -> None:
    runtime = Runtime(cudaMalloc=(error, 0))
    gpu = _CudaBindings(runtime)
    if sticky:
        runtime.answers["cudaMemGetInfo"] = (error, 0, 0)
    with pytest.raises(RuntimeFailure, match=told) as failure:
        gpu.allocate(10)
    assert (type(failure.value), failure.value.reason) == (kind, reason)
    assert "cudaMalloc" in failure.value.message


def test_an_error_is_not_left_for_the_next_library_that_looks() -> None:
    """Those that start kernels ask for the last error behind each, and would take it for their kernel's."""
    for error in (Error.cudaErrorMemoryAllocation, Error.cudaErrorInvalidValue):
        runtime = Runtime(cudaMalloc=(error, 0))
        with pytest.raises(RuntimeFailure):
            _CudaBindings(runtime).allocate(10)
        asked = [call[0] for call in runtime.asked]
        assert asked[asked.index("cudaMalloc") + 1] == "cudaGetLastError"


def test_copies_go_the_way_they_say() -> None:
    runtime = Runtime()
    gpu, memory = _CudaBindings(runtime), FakeCuda().allocate_host(8)
    gpu.copy_in(77, memory, 5)
    gpu.copy_out(memory, 77, 5)
    there, back = runtime.asked[-2:]
    assert there == ("cudaMemcpyAsync", 77, memory.ctypes.data, 8, 1, 5)
    assert back == ("cudaMemcpyAsync", memory.ctypes.data, 77, 8, 2, 5)


def test_a_driver_is_told_by_the_cuda_that_it_runs_and_events_by_their_distance() -> None:
    runtime = Runtime(
        cudaDriverGetVersion=(Error.cudaSuccess, 13010),
        cudaEventCreate=(Error.cudaSuccess, 40),
        cudaEventElapsedTime=(Error.cudaSuccess, 1.5),
    )
    gpu = _CudaBindings(runtime)
    assert gpu.driver() == "13.1"
    event = gpu.create_event()
    gpu.record(event, 5)
    assert gpu.milliseconds(event, 41) == 1.5
    gpu.destroy_event(event)
    assert runtime.asked[-4:] == [
        ("cudaEventCreate",),
        ("cudaEventRecord", 40, 5),
        ("cudaEventElapsedTime", 40, 41),
        ("cudaEventDestroy", 40),
    ]


def test_a_graph_is_recorded_made_launched_and_given_back() -> None:
    runtime = Runtime(cudaStreamEndCapture=(Error.cudaSuccess, 40), cudaGraphInstantiate=(Error.cudaSuccess, 41))
    gpu = _CudaBindings(runtime)
    gpu.begin_capture(5)
    graph = gpu.end_capture(5)
    executable = gpu.instantiate(graph)
    gpu.launch(executable, 5)
    gpu.destroy_graph(graph)
    gpu.destroy_executable(executable)
    assert runtime.asked[-6:] == [
        ("cudaStreamBeginCapture", 5, 2),
        ("cudaStreamEndCapture", 5),
        ("cudaGraphInstantiate", 40, 0),
        ("cudaGraphLaunch", 41, 5),
        ("cudaGraphDestroy", 40),
        ("cudaGraphExecDestroy", 41),
    ]


# --------------------------------------------------------------------------------------------------------- what a machine has


def test_a_machine_is_told_with_its_gpu_only_where_a_runtime_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "connect", FakeCuda)
    monkeypatch.setattr(gpu_state, "driver", lambda: "580.95.05")
    assert machine.detect([RuntimeName.ONNXRUNTIME]) == cpu.detect()
    there = machine.detect([RuntimeName.ONNXRUNTIME, RuntimeName.TENSORRT_RTX])
    assert (there.gpu, there.driver) == ("NVIDIA Fake sm89", "580.95.05 (CUDA 13.0)")
    assert there.label == f"{cpu.detect().label}, NVIDIA Fake sm89, driver 580.95.05 (CUDA 13.0)"
    monkeypatch.setattr(gpu_state, "driver", lambda: None)
    assert machine.detect([RuntimeName.TENSORRT_RTX]).driver == "for CUDA 13.0", "NVML does not answer"


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        (RuntimeName.OPENVINO, ()),
        (RuntimeName.ONNXRUNTIME_CUDA, ("nvidia",)),
        (RuntimeName.TORCHSCRIPT_CUDA, ("nvidia",)),
        (RuntimeName.TENSORRT, ("nvidia-sm89",)),
        (RuntimeName.TENSORRT_RTX, ("nvidia-sm89",)),
    ],
)
def test_an_artifact_needs_the_gpu_it_was_built_for_or_any(
    runtime: RuntimeName, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "connect", FakeCuda)
    assert machine.requirements(runtime, cpu.detect()) == words
    assert machine.missing(words, cpu.detect()) == []


def test_a_word_of_another_version_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "connect", FakeCuda)
    assert machine.missing(("nvidia", "nvidia-sm89", "nvidia-fp4", "sparse"), cpu.detect()) == ["sparse", "nvidia-fp4"]


def test_a_number_format_that_the_gpu_lacks_is_said_of_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "connect", lambda: FakeCuda(sm="sm75"))
    settings, nothing = RuntimeSettings(precision=Precision.TF32), Signature(inputs=(), outputs=())
    request = Load(tmp_path / "model.onnx", RuntimeName.ONNXRUNTIME_CUDA, settings, nothing, {})
    with pytest.raises(RuntimeFailure) as failure:
        Worker().handle(request)
    assert failure.value.reason == Reason.RECIPE_NOT_APPLICABLE
    assert failure.value.message == "this node's GPU (NVIDIA Fake, sm75) does not compute TF32 in hardware"


# -------------------------------------------------------------------------------------------------- ONNX Runtime without CUDA


def test_onnxruntime_does_not_fall_back_to_the_cpu_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "connect", FakeCuda)
    with pytest.raises(RuntimeFailure, match="this build of onnxruntime has no CUDA") as failure:
        onnxruntime_cuda.RUNTIME.load(tmp_path / "model.onnx", RuntimeSettings(precision=Precision.FLOAT16))
    assert failure.value.reason == Reason.NODE_INCOMPATIBLE


def test_nvidias_libraries_are_loaded_before_onnxruntime_looks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def providers() -> list[str]:
        asked.append("providers")
        return []

    monkeypatch.setattr(cuda, "connect", FakeCuda)
    monkeypatch.setattr(ort, "preload_dlls", lambda: asked.append("libraries"))
    monkeypatch.setattr(ort, "get_available_providers", providers)
    with pytest.raises(RuntimeFailure):
        onnxruntime_cuda.RUNTIME.load(tmp_path / "model.onnx", RuntimeSettings())
    assert asked == ["libraries", "providers"]


class Failing:
    """A session of the library whose runs fail."""

    def __init__(self, text: str) -> None:
        self.text = text

    def run(self, *arguments: Any) -> list[Any]:
        raise RuntimeError(self.text)


OUT = "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 1073741824"
ILLEGAL = "CUDA failure 700: an illegal memory access was encountered"


@pytest.mark.parametrize(
    ("text", "sticky", "kind", "reason"),
    [
        (OUT, False, RuntimeFailure, Reason.OUT_OF_MEMORY),
        (ILLEGAL, False, RuntimeFailure, Reason.MODEL_LOAD_FAILED),
        (ILLEGAL, True, ContextLost, Reason.MODEL_LOAD_FAILED),
    ],
    ids=["no room", "a run that failed", "a context that is lost"],
)
def test_a_run_of_onnxruntime_that_fails_says_whether_the_process_can_go_on(
    text: str, sticky: bool, kind: type[RuntimeFailure], reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime()
    gpu = _CudaBindings(runtime)
    if sticky:
        runtime.answers["cudaMemGetInfo"] = (Error.cudaErrorIllegalAddress, 0, 0)
    monkeypatch.setattr(cuda, "connect", lambda: gpu)
    x = Tensor(name="x", dtype="FP32", shape=(-1,), batch_axis=0)
    session: Any = Failing(text)
    loaded = onnxruntime_cuda.OnnxRuntimeCudaSession(session, RuntimeSettings(), Signature(inputs=(x,), outputs=(x,)))
    with pytest.raises(RuntimeFailure) as failure:
        loaded.infer({"x": np.ones(2, np.float32)})
    assert (type(failure.value), failure.value.reason) == (kind, reason)
