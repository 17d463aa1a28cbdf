"""TensorRT RTX: engines built ahead of time, on any node, for an architecture that is named. See `engine` and `engine_build`."""

from __future__ import annotations

import tensorrt_rtx

from fettle.api.vocabulary import RuntimeName
from fettle.runtimes.engine import EngineRuntime
from fettle.runtimes.engine_build import Library

RUNTIME = EngineRuntime(
    Library(RuntimeName.TENSORRT_RTX, tensorrt_rtx, "tensorrt-rtx-cu12", ahead_of_time=True, compiles_on_load=True)
)
