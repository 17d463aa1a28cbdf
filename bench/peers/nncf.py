"""NNCF on OpenVINO's representation: post-training quantization with its defaults, or with accuracy control.

Accuracy control gets the metric and the bound that Fettle gets, and tunes on the evaluation items.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nncf
import openvino as ov
from bench.peers import job

from fettle.api.data import EvaluationSpec
from fettle.api.signature import Signature
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.items import Answer, answers

ALPHA = 0.05  # of an interval that nobody reads here


class Validation:
    """The metric of a model on the evaluation items: the original's answers are the truth, so its own is 1."""

    def __init__(self, work: job.Job, original: ov.CompiledModel, folder: Path) -> None:
        self._signature = Signature.model_validate(work.signature)
        self._feeds = work.feeds("evaluation")
        evaluation = EvaluationSpec.model_validate(work.evaluation)
        self._reference = Reference(folder, self._signature, None, evaluation, generated=False)
        self._reference.add([self._answer(original, feed) for feed in self._feeds])
        self._reference.finish()

    def __call__(self, model: ov.CompiledModel, _: Iterable[Any]) -> tuple[float, None]:
        """NNCF's validation function. Answers that are none are worth nothing."""
        said = (self._answer(model, feed) for feed in self._feeds)
        try:
            return self._reference.judge(said, lossy=True, alpha=ALPHA).accuracy.value, None
        except RuntimeFailure:
            return 0.0, None

    def _answer(self, model: ov.CompiledModel, feed: job.Feed) -> Answer:
        said = model(feed)
        by_place = zip(self._signature.outputs, model.outputs, strict=True)
        return answers(self._signature, {tensor.name: said[port] for tensor, port in by_place}, 1)[0]


def controlled(work: job.Job, model: ov.Model, calibration: nncf.Dataset) -> ov.Model:
    """int8, but for the layers that accuracy control reverts."""
    with tempfile.TemporaryDirectory() as folder:
        validation = Validation(work, ov.Core().compile_model(model, "CPU"), Path(folder))
        return nncf.quantize_with_accuracy_control(
            model,
            calibration_dataset=calibration,
            validation_dataset=nncf.Dataset(work.feeds("evaluation")),
            validation_fn=validation,
            max_drop=work.max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
        )


def main() -> None:
    """Run the flow."""
    work = job.read()
    model = ov.Core().read_model(work.model)
    calibration = nncf.Dataset(work.feeds())
    control = work.options.get("accuracyControl")
    quantized = controlled(work, model, calibration) if control else nncf.quantize(model, calibration)
    ov.save_model(quantized, work.out / "model.xml", compress_to_fp16=False)
    work.answer("model.xml", "openvino")


if __name__ == "__main__":
    main()
