"""PyTorch on a GPU that is played: the order of its calls, where the model's tensors are, and what becomes of errors."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.data import torch_models
from tests.unit.runtimes.fake_cuda import FakeCuda
from tests.unit.runtimes.fake_torch_cuda import FakeTorchGpu

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure import promises
from fettle.runtimes import cuda
from fettle.runtimes.cuda import ContextLost
from fettle.runtimes.torchscript import open_program
from fettle.runtimes.torchscript_cuda import TorchScriptCuda, TorchScriptCudaSession, _TorchCuda, on_device

LEFT, RIGHT = np.arange(12, dtype=np.float32).reshape(2, 6), np.full((2, 1), 2, np.float32)
INPUTS = {"left": LEFT, "right": RIGHT}
SIGNATURE = Signature(
    inputs=(Tensor(name="left", dtype="FP32", shape=(-1, 6)), Tensor(name="right", dtype="FP32", shape=(-1, 1))),
    outputs=(Tensor(name="output_0", dtype="FP32", shape=(-1, 6)), Tensor(name="output_1", dtype="FP32", shape=(-1,))),
)
AS_IT_CAME = RuntimeSettings(threads=1, graph_optimization=False)
FROZEN = RuntimeSettings(threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("torch")
    torch_models.save_script(torch_models.EXAMPLES["pair"], made / "pair.pt")
    torch_models.save_program(torch_models.EXAMPLES["pair"], made / "pair.pt2")
    return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorchGpu]:
    """A GPU, and afterwards the process as it was: threads and rounding belong to it."""
    monkeypatch.setattr(cuda, "connect", FakeCuda)
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before, threads = [switch.fp32_precision for switch in switches], torch.get_num_threads()
    yield FakeTorchGpu()
    torch.set_num_threads(threads)
    for switch, word in zip(switches, before, strict=True):
        switch.fp32_precision = word


def load(gpu: FakeTorchGpu, entry: Path, settings: RuntimeSettings = AS_IT_CAME) -> TorchScriptCudaSession:
    session = TorchScriptCuda(gpu).load(entry, settings, SIGNATURE)
    assert isinstance(session, TorchScriptCudaSession)
    return session


@pytest.mark.parametrize(("name", "settings"), [("pair.pt", AS_IT_CAME), ("pair.pt", FROZEN), ("pair.pt2", AS_IT_CAME)])
def test_a_run_copies_in_computes_copies_out_and_waits_once(
    name: str, settings: RuntimeSettings, gpu: FakeTorchGpu, folder: Path
) -> None:
    session = load(gpu, folder / name, settings)
    assert gpu.calls == ["create_stream", "synchronize all"], "weights are there before another stream reads them"
    gpu.calls.clear()
    answers = session.infer(INPUTS)
    assert gpu.calls == ["pinned", "copy_in"] * 2 + ["pinned", "copy_out"] * 2 + ["synchronize"]
    np.testing.assert_array_equal(answers["output_0"], LEFT * RIGHT)


def test_it_keeps_what_every_runtime_promises(gpu: FakeTorchGpu, folder: Path) -> None:
    promises.require(RuntimeName.TORCHSCRIPT_CUDA, load(gpu, folder / "pair.pt"), SIGNATURE, INPUTS)


def test_numbers_of_every_kind_come_back_as_they_were(gpu: FakeTorchGpu, folder: Path) -> None:
    import ml_dtypes

    session = load(gpu, folder / "pair.pt")
    for array in (
        *(np.array([[1, 2], [3, 0]], kind) for kind in (np.float16, np.int8, np.uint8, np.int64, np.float64, np.bool_)),
        np.array([1.5, -2], ml_dtypes.bfloat16),
        np.array(7, np.int32),
        np.zeros((0, 3), np.float32),
        np.asfortranarray(LEFT),
    ):
        with gpu.on(gpu.streams[0]):
            there = session._there(array)
            here = session._here(there)
        gpu.synchronize(gpu.streams[0])
        assert tuple(there.shape) == array.shape
        back = here.view(torch.int16).numpy().view(array.dtype) if here.dtype == torch.bfloat16 else here.numpy()
        np.testing.assert_array_equal(back, array)


def test_runs_overlap_on_as_many_streams_as_asked_for_and_no_two_share_one(gpu: FakeTorchGpu, folder: Path) -> None:
    session = load(gpu, folder / "pair.pt", AS_IT_CAME.model_copy(update={"streams": 3}))
    assert (len(gpu.streams), session.effective_settings().streams) == (3, 3)

    def run(number: int) -> bool:
        answers = session.infer({"left": LEFT + number, "right": RIGHT})
        return bool((answers["output_0"] == (LEFT + number) * RIGHT).all())

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(run, range(60)))
    assert not any(stream.waiting for stream in gpu.streams)


def test_what_was_traced_on_a_cpu_makes_its_tensors_where_the_model_is(tmp_path: Path) -> None:
    class Inner(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(x.shape[1], device="cpu", dtype=x.dtype)

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.linear = Inner(), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.inner(x)) * torch.ones(4, device="cpu")

    x = torch.ones(2, 4)
    torch.jit.save(torch.jit.trace(Outer().eval(), x), tmp_path / "traced.pt")
    torch.export.save(torch.export.export(Outer().eval(), (x,)), tmp_path / "exported.pt2")
    for name in ("traced.pt", "exported.pt2"):
        answer = on_device(open_program(tmp_path / name, "meta"), "meta").call([x.to("meta")])
        assert answer.device.type == "meta", "a tensor on the CPU among them would be an error"


# ------------------------------------------------------------------------------------------------------------------ settings


def test_float32_is_never_rounded_and_tf32_is_what_was_asked_for(gpu: FakeTorchGpu, folder: Path) -> None:
    tf32 = AS_IT_CAME.model_copy(update={"precision": Precision.TF32})
    first = load(gpu, folder / "pair.pt", tf32)
    assert first.effective_settings() == tf32
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert load(gpu, folder / "pair.pt").effective_settings() == AS_IT_CAME
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert first.effective_settings() == AS_IT_CAME, "the setting belongs to the process"


@pytest.mark.parametrize(
    ("entry", "update"),
    [
        ("pair.pt", {"precision": Precision.FLOAT16}),
        ("pair.pt", {"batch_size": 2}),
        ("pair.pt2", {"graph_optimization": True}),
    ],
)
def test_what_it_does_not_do_is_refused(entry: str, update: dict[str, Any], gpu: FakeTorchGpu, folder: Path) -> None:
    with pytest.raises(RuntimeFailure) as failure:
        load(gpu, folder / entry, AS_IT_CAME.model_copy(update=update))
    assert failure.value.reason == Reason.RECIPE_NOT_APPLICABLE


def test_turing_has_no_tf32(gpu: FakeTorchGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TorchScriptCuda(gpu).capabilities() == {Precision.FLOAT32, Precision.TF32}
    monkeypatch.setattr(cuda, "connect", lambda: FakeCuda(sm="sm75"))
    assert TorchScriptCuda(gpu).capabilities() == {Precision.FLOAT32}


def test_compute_operators_are_counted(gpu: FakeTorchGpu, tmp_path: Path) -> None:
    torch_models.save_script(torch_models.EXAMPLES["convolutional"], tmp_path / "model.pt")
    image = Tensor(name="image", dtype="FP32", shape=(-1, 3, 12, 12))
    signature = Signature(inputs=(image,), outputs=(Tensor(name="output", dtype="FP32", shape=(-1, 4)),))
    feed = {"image": np.ones((1, 3, 12, 12), np.float32)}
    found = TorchScriptCuda(gpu).executed(tmp_path / "model.pt", AS_IT_CAME, feed, signature)
    assert (found.f32, found.total) == (2, 2)  # a convolution and a product


# -------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("The following operation failed in the TorchScript interpreter. CUDA out of memory. Tried to allocate 2 GiB."),
    ],
    ids=["eager", "in the interpreter"],
)  # fmt: skip
@pytest.mark.parametrize("call", ["pinned", "copy_in", "copy_out", "synchronize"])
def test_too_little_memory_is_named_and_the_next_run_answers(
    call: str, error: Exception, gpu: FakeTorchGpu, folder: Path
) -> None:
    session = load(gpu, folder / "pair.pt")
    gpu.fails[call] = error
    with pytest.raises(RuntimeFailure, match=r"out of memory: CUDA out of memory\. Tried to allocate") as failure:
        session.infer(INPUTS)
    assert failure.value.reason == Reason.OUT_OF_MEMORY
    np.testing.assert_array_equal(session.infer(INPUTS)["output_0"], LEFT * RIGHT)


def test_a_lost_context_is_told_from_an_error_after_which_others_succeed(
    gpu: FakeTorchGpu, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = load(gpu, folder / "pair.pt")
    gpu.fails["synchronize"] = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeFailure, match="illegal memory access") as failure:
        session.infer(INPUTS)
    assert not isinstance(failure.value, ContextLost)

    class Lost(FakeCuda):
        def memory(self) -> tuple[int, int]:
            raise ContextLost("the GPU's context is lost")

    monkeypatch.setattr(cuda, "connect", Lost)
    gpu.fails["synchronize"] = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(ContextLost):
        session.infer(INPUTS)
    with pytest.raises(RuntimeFailure, match="expected the inputs") as wrong:
        session.infer({"left": LEFT})
    assert wrong.value.reason == Reason.DATA_INVALID, "the client's fault asks the GPU nothing"


def test_a_build_of_pytorch_that_cannot_use_the_gpu_is_said(gpu: FakeTorchGpu, folder: Path) -> None:
    gpu.there = False
    with pytest.raises(RuntimeFailure, match=r"PyTorch cannot use this node's GPU \(NVIDIA Fake\)") as failure:
        load(gpu, folder / "pair.pt")
    assert failure.value.reason == Reason.NODE_INCOMPATIBLE


@pytest.mark.parametrize(
    ("name", "told"),
    [("pair.pt", "PyTorch could not load the model"), ("pair.pt2", "could not move the model to the GPU")],
)
def test_a_model_that_does_not_get_there_is_said(name: str, told: str, gpu: FakeTorchGpu, tmp_path: Path) -> None:
    example = torch_models.EXAMPLES["convolutional"]
    (torch_models.save_script if name == "pair.pt" else torch_models.save_program)(example, tmp_path / name)
    gpu.device = "cuda"  # which this machine does not have
    with pytest.raises(RuntimeFailure, match=told):
        load(gpu, tmp_path / name)


# ------------------------------------------------------------------------------------------------------------ PyTorch's calls


def test_the_calls_are_those_that_do_not_wait() -> None:
    asked: list[tuple[Any, ...]] = []

    def tell(name: str) -> Any:
        return lambda *arguments, **options: asked.append((name, *arguments, options))

    module = SimpleNamespace(
        cuda=SimpleNamespace(
            Stream=tell("Stream"), stream=tell("stream"), synchronize=tell("synchronize"), is_available=lambda: True
        ),
        empty=tell("empty"),
    )
    event = SimpleNamespace(record=tell("record"), elapsed_time=lambda end: 1.5)
    module.cuda.Event = lambda **options: asked.append(("Event", options)) or event
    tensor: Any = SimpleNamespace(to=tell("to"), copy_=tell("copy_"))
    stream = SimpleNamespace(synchronize=tell("stream.synchronize"))
    gpu = _TorchCuda(module)
    assert gpu.is_there()
    gpu.create_stream()
    gpu.on(stream)
    gpu.pinned((2, 3), torch.float16)
    gpu.copy_in(tensor)
    gpu.copy_out(tensor, tensor)
    gpu.synchronize(stream)
    gpu.synchronize()
    assert gpu.milliseconds(gpu.mark(), event) == 1.5
    assert asked == [
        ("Stream", {}),
        ("stream", stream, {}),
        ("empty", (2, 3), {"dtype": torch.float16, "pin_memory": True}),
        ("to", "cuda", {"non_blocking": True}),
        ("copy_", tensor, {"non_blocking": True}),
        ("stream.synchronize", {}),
        ("synchronize", {}),
        ("Event", {"enable_timing": True}),
        ("record", {}),
    ]


def test_a_run_tells_its_time_on_the_gpu_where_that_is_asked_for(gpu: FakeTorchGpu, folder: Path) -> None:
    session = load(gpu, folder / "pair.pt")
    session.infer(INPUTS)
    assert "mark" not in gpu.calls, "serving does not pay for it"
    session.time_on_gpu()
    gpu.calls.clear()
    session.infer(INPUTS)
    assert (gpu.calls[0], gpu.calls[-2:]) == ("mark", ["mark", "synchronize"])
    assert session.gpu_milliseconds() == 1.0
