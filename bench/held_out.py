"""Judges what tools made on items that none of them saw, with Fettle's own code: the original's answers are the truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench.model_catalog import Case
from bench.optimize_rows import Split
from bench.side_by_side import Subject
from tools.serving import CLAIM, open_store

from fettle.api.data import CalibrationSpec, DataSpec, EvaluationSpec
from fettle.api.recipe import RuntimeSettings
from fettle.api.source import SourceSpec
from fettle.api.task import PrepareTask
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer.measure import items
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.judgement import Judgement
from fettle.optimizer.measure.process import WorkerProcess
from fettle.optimizer.measure.protocol import Judge, Load
from fettle.optimizer.prepare import stage
from fettle.store.uris import Mounts

ALPHA = 0.05
ORIGINAL = "original"


class HeldOut:
    """The original, its answers to the held-out items, and the ONNX form of it that peers get.

    Raises FettleError where the original cannot be prepared or does not suit the metric.
    """

    def __init__(self, case: Case, source: Path, split: Split, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, arrays in (("held-out", split.held_out), ("calibration", split.calibration)):
            np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        held_out = {"uri": (folder / "held-out.npz").resolve().as_uri(), "metric": case.metric}
        self.evaluation = EvaluationSpec.model_validate(held_out | case.judged)
        store = open_store(folder / "store")
        inputs = SourceSpec.model_validate({"uri": source.resolve().as_uri(), "inputs": case.inputs})
        calibration = CalibrationSpec(uri=(folder / "calibration.npz").resolve().as_uri())
        data = DataSpec(calibration=calibration, evaluation=self.evaluation)
        task = PrepareTask(store=store.uri, source=inputs, data=data, builds=())
        report = stage.run(task, store, Mounts({CLAIM: folder / "store"}, allow_files=True))
        self.signature = report.signature
        self._files = items.unpack(store, report.items, folder / "items")
        self.items = items.opened(self._files, self.signature)
        onnx = report.original.format == "ONNX"
        entry = store.fetch_model(report.original, folder / ORIGINAL)
        self.onnx = entry if onnx else store.fetch_model(report.portable, folder / "portable")
        settings = {"threads": case.threads, "graphOptimization": onnx}
        runtime = RuntimeName.ONNXRUNTIME if onnx else RuntimeName.TORCHSCRIPT
        self.original = Subject(ORIGINAL, str(entry), runtime.value, settings)
        if report.metric is not None:
            self.evaluation = self.evaluation.model_copy(update={"metric": report.metric})
        self.reference = Reference(folder / "answers", self.signature, None, self.evaluation, generated=False)
        for answer in self._answers(self.original):
            self.reference.add([answer])
        self.reference.finish()

    def judge(self, subject: Subject) -> Judgement:
        """How a tool's answers differ from the original's. Raises FettleError where it gives none."""
        return self.reference.judge(self._answers(subject), lossy=True, alpha=ALPHA)

    def _answers(self, subject: Subject) -> Iterator[Answer]:
        """One item at a time, in a process of its own: a model may take its process down."""
        settings = RuntimeSettings.model_validate(subject.settings)
        with WorkerProcess(subject.name) as worker:
            worker.load(Load(Path(subject.entry), RuntimeName(subject.runtime), settings, self.signature, self._files))
            for index in range(len(self.items)):
                yield worker.answers(Judge((index,)))[0]
