"""What the default plan needs to know about the portable form: its traits, and which operators take the time."""

from __future__ import annotations

import statistics
import time

from fettle.api.recipe import RuntimeSettings
from fettle.api.report import Traits
from fettle.api.signature import Signature
from fettle.optimizer.data.items import Items
from fettle.optimizer.onnx import traits as onnx_traits
from fettle.optimizer.prepare.portable import Portable
from fettle.runtimes.onnxruntime import RUNTIME as ONNXRUNTIME

PROFILE_SECONDS = 1.0


def traits(portable: Portable, signature: Signature, probes: Items) -> Traits:
    """Traits of the portable form, with a quick profile (one thread, one item) that is not a measurement."""
    settings = RuntimeSettings(threads=1)
    inputs = probes.whole(0)
    times = ONNXRUNTIME.profile(portable.path, settings, inputs)
    total = sum(times.values())
    matrix = sum(spent for kind, spent in times.items() if kind in onnx_traits.MATRIX)
    lstm = times.get("LSTM", 0.0) if onnx_traits.bounded_lstm(portable.model.graph) else 0.0
    session = ONNXRUNTIME.load(portable.path, settings, signature)
    session.infer(inputs)
    runs: list[float] = []
    while sum(runs) < PROFILE_SECONDS and len(runs) < 100:
        start = time.perf_counter()
        session.infer(inputs)
        runs.append(time.perf_counter() - start)
    session.close()
    return onnx_traits.traits(portable.model).model_copy(
        update={
            "matmul_time_share": round(matrix / total, 3) if total else 0.0,
            "lstm_time_share": round(lstm / total, 3) if total else 0.0,
            "p50_milliseconds": round(1000 * statistics.median(runs), 3),
        }
    )
