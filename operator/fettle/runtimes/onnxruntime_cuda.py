"""ONNX Runtime on an NVIDIA GPU.

Facts that this file rests on (1.31): a provider that cannot start is left out without an error, and the model runs on the CPU: `open` looks
at what is there. The provider needs CUDA's and cuDNN's libraries, and the loader does not look where NVIDIA's Python packages have them:
`preload_dlls` does. Products of float32 are rounded to TF32 unless `use_tf32` is 0. The precision is the file's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from fettle.api import catalog
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes import cuda
from fettle.runtimes.base import Array, Arrays, Interrupt
from fettle.runtimes.onnxruntime import OnnxRuntime, OnnxRuntimeSession

PROVIDER = "CUDAExecutionProvider"


class OnnxRuntimeCudaSession(OnnxRuntimeSession):
    """As on the CPU; what the library does not tell is whether a kernel left the GPU's context unusable."""

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """See `base.Session.infer`. Raises ContextLost where no later run can succeed."""
        with cuda.telling_lost_contexts():
            return super().infer(inputs, interrupt)


class OnnxRuntimeCuda(OnnxRuntime):
    """See `base.Runtime`. What the GPU has no kernel for runs on the CPU, in the same session."""

    name = RuntimeName.ONNXRUNTIME_CUDA
    session = OnnxRuntimeCudaSession
    precisions = frozenset(catalog.runtime(RuntimeName.ONNXRUNTIME_CUDA).precisions)

    def providers(self, settings: RuntimeSettings) -> tuple[Any, ...]:
        """CUDA, and the CPU for what that has no kernel for."""
        tf32 = "1" if settings.precision == Precision.TF32 else "0"
        return ((PROVIDER, {"device_id": "0", "use_tf32": tf32}), "CPUExecutionProvider")

    def capabilities(self) -> frozenset[Precision]:
        """See `base.Runtime.capabilities`."""
        return cuda.offered(self.name)

    def open(self, entry: Path, options: ort.SessionOptions, settings: RuntimeSettings) -> ort.InferenceSession:
        """As on the CPU. Raises RuntimeFailure: NodeIncompatible without a GPU, or where this build of the library has no CUDA."""
        cuda.connect()
        ort.preload_dlls()
        if PROVIDER not in ort.get_available_providers():
            message = "this build of onnxruntime has no CUDA; use an image for GPUs, which has onnxruntime-gpu"
            raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
        session = super().open(entry, options, settings)
        if PROVIDER not in session.get_providers():
            message = (
                "onnxruntime could not start CUDA and would run on the CPU: check that the versions of the "
                "driver, CUDA and cuDNN are compatible"
            )
            raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)
        return session


RUNTIME = OnnxRuntimeCuda()
