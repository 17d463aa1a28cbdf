"""A claim with a model and a store, and preparing in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.data import models
from tests.probed_once import probed_once

from fettle.api.data import CalibrationSpec, DataSpec, EvaluationSpec, GeneratedSpec
from fettle.api.report import PrepareReport
from fettle.api.source import InputSpec, SourceSpec
from fettle.api.task import BuildPlan, PrepareTask
from fettle.errors import FettleError
from fettle.optimizer import stage
from fettle.runtimes.base import Array
from fettle.store.store import Store
from fettle.store.uris import Mounts


@dataclass(frozen=True)
class Workbench:
    """One claim `claim`: `model/model.onnx`, data files by name, the store."""

    folder: Path

    @property
    def mounts(self) -> Mounts:
        """Where the claim lies."""
        return Mounts({"claim": self.folder})

    @property
    def store(self) -> Store:
        """The store in the claim."""
        return Store.open("pvc://claim/store", self.mounts)

    def put(self, model: onnx.ModelProto, *, external: bool = False) -> Path:
        """Write the source."""
        return models.save(model, self.folder / "model/model.onnx", external=external)

    def data(self, name: str, **arrays: Array) -> str:
        """Write items; their address."""
        np.savez(self.folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        return f"pvc://claim/{name}.npz"

    def task(
        self,
        *,
        uri: str = "pvc://claim/model/model.onnx",
        evaluation: EvaluationSpec | None = None,
        calibration: CalibrationSpec | None = None,
        generated: GeneratedSpec | None = None,
        inputs: Sequence[InputSpec] = (),
        sha256: str | None = None,
        builds: Sequence[BuildPlan] = (),
        source: SourceSpec | None = None,
    ) -> PrepareTask:
        """The task of preparing it. `source` stands for what is said of one otherwise."""
        return PrepareTask(
            store="pvc://claim/store",
            source=source or SourceSpec(uri=uri, inputs=tuple(inputs), sha256=sha256),
            data=DataSpec(evaluation=evaluation, calibration=calibration, generated=generated),
            builds=tuple(builds),
        )

    def prepare(self, task: PrepareTask | None = None) -> PrepareReport:
        """What preparing answers. Raises FettleError."""
        with probed_once():
            report = stage.run(task or self.task(), self.mounts)
        assert isinstance(report, PrepareReport)
        return report

    def refused(self, **task: Any) -> FettleError:
        """What preparing raises for that task."""
        with pytest.raises(FettleError) as caught:
            self.prepare(self.task(**task))
        return caught.value

    def portable(self, report: PrepareReport, name: str = "portable") -> onnx.ModelProto:
        """The portable form that was stored."""
        loaded: onnx.ModelProto = onnx.load(str(self.store.fetch_model(report.portable, self.folder / name)))
        return loaded
