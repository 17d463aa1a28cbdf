"""TensorRT: engines built on the node that will serve, for the GPU that it has. See `engine` and `engine_build`."""

from __future__ import annotations

import tensorrt

from fettle.api.vocabulary import RuntimeName
from fettle.runtimes.engine import EngineRuntime
from fettle.runtimes.engine_build import Library

RUNTIME = EngineRuntime(Library(RuntimeName.TENSORRT, tensorrt, "tensorrt-cu12", ahead_of_time=False))
