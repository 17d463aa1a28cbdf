"""`fettle optimize` without its processes: each task here and now, as its process would do it, and nothing timed for long."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tests.data import models
from tests.probed_once import probed_once
from tests.warm import warm

from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.task import AnyTask, MeasureTask, task_hash
from fettle.cli.local.run import LocalRun, RunInput
from fettle.errors import FettleError
from fettle.optimizer import measure, stage
from fettle.optimizer.measure import process
from fettle.optimizer.measure.schedule import TimingSchedule
from fettle.plan.run.state import TaskPhase, TaskRequest, TaskState
from fettle.store.store import AnyReport, Store
from fettle.store.uris import Mounts

# Answers do not depend on how long is timed. No speed-up can be claimed of one start: what is lossy and passes ends as Unstable.
SHORT = TimingSchedule(least_starts=1, looks=(1,), least_rounds=1, rounds=2, most_rounds=2, block_seconds=0.02)


class InProcess:
    """Runs each task in this process."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts

    async def run(self, request: TaskRequest) -> TaskState:
        """The task's outcome."""
        try:
            report = self._report(request.task)
        except FettleError as error:
            return TaskState(
                request.task_hash,
                TaskPhase.FAILED,
                request.attempt,
                reason=error.reason,
                message=error.message,
                retryable=error.retryable,
                finished_at=datetime.now(UTC),
            )
        return TaskState(request.task_hash, TaskPhase.SUCCEEDED, request.attempt, report, finished_at=datetime.now(UTC))

    def _report(self, task: AnyTask) -> AnyReport:
        if not isinstance(task, MeasureTask):
            with probed_once():
                return stage.run(task, self._mounts)
        store = Store.open(task.store, self._mounts)
        with warm(process):
            report = measure.run(task, store, SHORT)
        store.put_result(task_hash(task), report)  # where publishing finds it
        return report


async def optimized(spec: OptimizedModelSpec, mounts: Mounts) -> OptimizedModelStatus:
    """The status that the whole run ends with; its store is the claim `fettle-store`."""
    runner = InProcess(mounts)
    return await LocalRun(RunInput("default", "here", 1, spec, "pvc://fettle-store", 0.3), runner).run()


async def quantized(
    folder: Path, model: onnx.ModelProto, items: Mapping[str, Any], max_drop: float, **evaluation: Any
) -> OptimizedModelStatus:
    """The same of a model with one int8 candidate. `items`: its evaluation data by input, and `labels` if there are any."""
    models.save(model, folder / "model.onnx")
    np.savez(folder / "items.npz", **items)
    (folder / "store").mkdir()
    spec = OptimizedModelSpec.model_validate(
        {
            "source": {"uri": "pvc://models/model.onnx"},
            "data": {"evaluation": {"uri": "pvc://models/items.npz", **evaluation}},
            "targets": [{"name": "cpu", "runtimes": ["onnxruntime"]}],
            "recipes": [{"name": "int8", "steps": [{"quantize": {"mode": "Static"}}]}],
            "constraints": {"accuracy": {"maxDrop": max_drop}, "speedup": {"min": 0.01}},
        }
    )
    return await optimized(spec, Mounts({"models": folder, "fettle-store": folder / "store"}))
