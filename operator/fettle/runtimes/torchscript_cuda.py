"""PyTorch on an NVIDIA GPU: what `torchscript` runs, with weights, inputs and kernels on the GPU.

Facts that this file rests on (2.15): what was traced on a CPU names the CPU wherever it makes a tensor, so those names are changed before the
first run; a copy to or from pinned memory is put on the stream and does not wait, and PyTorch uses that memory again only when it is over; a
tensor belongs to the stream on which it was made, so weights have to be there before another stream reads them. PyTorch rounds convolutions
to TF32 unless told otherwise; the setting belongs to the process. The interpreter of TorchScript raises running out of memory as any error.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.export.passes import move_to_device_pass

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes import cuda
from fettle.runtimes.base import Array, Arrays, Interrupt, numpy_dtype
from fettle.runtimes.torchscript import (
    COMPUTE,
    Program,
    TorchScript,
    TorchScriptSession,
    exported_program,
    failure,
    open_program,
    require_numbers,
)

PRECISIONS = {Precision.FLOAT32: "ieee", Precision.TF32: "tf32"}  # as PyTorch calls them


class Gpu(Protocol):
    """PyTorch's side of one GPU. Copies and kernels go to the stream of the context `on`, and nothing waits for them but `synchronize`."""

    device: str

    def is_there(self) -> bool:
        """Whether this build of PyTorch can use a GPU here."""
        ...

    def create_stream(self) -> Any:
        """A stream, which is given back with its last reference."""
        ...

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """A context in which everything goes to `stream`."""
        ...

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the host that is copied without the host's help."""
        ...

    def copy_in(self, host: torch.Tensor) -> torch.Tensor:
        """Put a copy of pinned memory to the GPU on the stream."""
        ...

    def copy_out(self, host: torch.Tensor, tensor: torch.Tensor) -> None:
        """Put a copy of `tensor` to pinned memory on the stream."""
        ...

    def synchronize(self, stream: Any | None = None) -> None:
        """Wait for all that was put on the stream, or on any."""
        ...

    def mark(self) -> Any:
        """Put a mark on the stream, which gets the time at which all before it is done."""
        ...

    def milliseconds(self, begin: Any, end: Any) -> float:
        """The time between two marks, once their stream was waited for."""
        ...


class _TorchCuda:
    """`Gpu` with the module torch."""

    device = "cuda"

    def __init__(self, module: Any = torch) -> None:
        self._torch = module

    def is_there(self) -> bool:
        there: bool = self._torch.cuda.is_available()
        return there

    def create_stream(self) -> Any:
        return self._torch.cuda.Stream()

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._torch.cuda.stream(stream)
        return context

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self._torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def copy_in(self, host: torch.Tensor) -> torch.Tensor:
        return host.to(self.device, non_blocking=True)

    def copy_out(self, host: torch.Tensor, tensor: torch.Tensor) -> None:
        host.copy_(tensor, non_blocking=True)

    def synchronize(self, stream: Any | None = None) -> None:
        if stream is None:
            self._torch.cuda.synchronize()
        else:
            stream.synchronize()

    def mark(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end))


class TorchScriptCudaSession(TorchScriptSession):
    """A program on the GPU, and a stream for each run that may overlap another: copies of one with kernels of the other."""

    def __init__(self, program: Program, settings: RuntimeSettings, signature: Signature, gpu: Gpu) -> None:
        super().__init__(program, settings, signature)
        self._gpu = gpu
        self._marked, self._milliseconds = False, 0.0
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(settings.streams):
            self._idle.put(gpu.create_stream())
        gpu.synchronize()  # the weights are there, whichever stream reads them

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """See `base.Session.infer`. Raises ContextLost where no later run can succeed."""
        with cuda.telling_lost_contexts():
            return super().infer(inputs, interrupt)

    def answers(self, program: Program, feed: Arrays) -> dict[str, torch.Tensor]:
        """See `TorchScriptSession.answers`: copies in, kernels and copies out on one stream, and one wait at the end."""
        stream = self._idle.get()
        try:
            with self._gpu.on(stream):
                begin = self._gpu.mark() if self._marked else None
                given = [self._there(array) for array in feed.values()]
                found = self.named(program.call(given))
                here = {tensor.name: self._here(found[tensor.name]) for tensor in self._signature.outputs}
                end = self._gpu.mark() if self._marked else None
            self._gpu.synchronize(stream)
            if begin is not None:
                self._milliseconds = self._gpu.milliseconds(begin, end)
        finally:
            self._idle.put(stream)
        return here

    def _there(self, array: Array) -> torch.Tensor:
        """`array` on the GPU, with one copy in the host's memory on the way."""
        require_numbers(array)
        rounded = array.dtype == numpy_dtype("BF16")
        bits = array.view(np.int16) if rounded else array
        host = self._gpu.pinned(bits.shape, torch.from_numpy(np.empty(0, bits.dtype)).dtype)
        np.copyto(host.numpy(), bits)
        there = self._gpu.copy_in(host)
        return there.view(torch.bfloat16) if rounded else there

    def _here(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` in the host's memory once the stream was waited for. A model may leave an output there by itself."""
        whole = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
        if whole.device.type != self._gpu.device:
            return whole
        host = self._gpu.pinned(whole.shape, whole.dtype)
        self._gpu.copy_out(host, whole)
        return host

    def time_on_gpu(self) -> None:
        """See `base.TimedOnGpu`."""
        self._marked = True

    def gpu_milliseconds(self) -> float:
        """See `base.TimedOnGpu`."""
        return self._milliseconds

    def effective_settings(self) -> RuntimeSettings:
        """See `base.Session.effective_settings`."""
        rounds = {switch.fp32_precision for switch in _switches()} != {PRECISIONS[Precision.FLOAT32]}
        precision = Precision.TF32 if rounds else Precision.FLOAT32
        return super().effective_settings().model_copy(update={"precision": precision})


class TorchScriptCuda(TorchScript):
    """See `base.Runtime`. `gpu`: PyTorch's side of the GPU."""

    name = RuntimeName.TORCHSCRIPT_CUDA
    # Those that dispatch to CUDA's own kernels, and what freezing fuses for cuDNN.
    compute = COMPUTE | {
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::cudnn_convolution_relu",
        "aten::cudnn_convolution_add_relu",
    }

    def __init__(self, gpu: Gpu | None = None) -> None:
        self._gpu = gpu or _TorchCuda()

    def require(self, settings: RuntimeSettings) -> None:
        """See `TorchScript.require`."""
        if settings.precision not in PRECISIONS or settings.batch_size is not None:
            message = f"{self.name} only supports float32 and TF32, without a fixed batch size"
            raise RuntimeFailure(message, reason=Reason.RECIPE_NOT_APPLICABLE)

    def open(self, entry: Path) -> Program:
        """See `TorchScript.open`. Raises RuntimeFailure: NodeIncompatible without a GPU, or where PyTorch cannot use it."""
        gpu = cuda.connect()
        if not self._gpu.is_there():
            message = (
                f"PyTorch cannot use this node's GPU ({gpu.name()}): check that the driver is new enough for CUDA "
                f"{torch.version.cuda}, and use an image for GPUs with PyTorch"
            )
            raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
        return on_device(open_program(entry, self._gpu.device), self._gpu.device)

    def session(self, program: Program, settings: RuntimeSettings, signature: Signature) -> TorchScriptSession:
        """See `TorchScript.session`."""
        for switch in _switches():
            switch.fp32_precision = PRECISIONS[settings.precision]
        return TorchScriptCudaSession(program, settings, signature, self._gpu)

    def fused(self, entry: Path) -> int:
        """See `TorchScript.fused`: here what is fused is an operator like others."""
        return 0

    def capabilities(self) -> frozenset[Precision]:
        """See `base.Runtime.capabilities`."""
        return cuda.offered(self.name)


def on_device(program: Program, device: str) -> Program:
    """`program`, which has not run yet, with all that it makes on a device. Raises RuntimeFailure."""
    try:
        if program.exported is not None:
            return exported_program(move_to_device_pass(program.exported, device))
        for part in program.module.modules():
            for name in part._c._method_names():
                _name_device(part._c._get_method(name).graph, device)
        return program
    except Exception as error:
        raise failure("PyTorch could not move the model to the GPU", error) from error


def _name_device(graph: Any, device: str) -> None:
    """Let each device that a graph names be `device`."""
    for node in graph.findAllNodes("prim::Constant", True):
        if node.output().type().kind() == "DeviceObjType":
            node.s_("value", device)


def _switches() -> tuple[Any, ...]:
    """Where PyTorch keeps what products of float32 may be rounded to."""
    return torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn


RUNTIME = TorchScriptCuda()
