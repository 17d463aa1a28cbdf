"""ONNX Runtime's own tools: `quant_pre_process`, then static quantization with its documented defaults (QDQ, S8S8, MinMax)."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.peers import job
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The items, one after the other."""

    def __init__(self, feeds: list[job.Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> job.Feed | None:
        """The next item; None after the last."""
        return next(self._feeds, None)


def prepared(work: job.Job) -> Path:
    """The model after shape inference and graph optimization; without symbolic inference where that fails, as its documentation says."""
    path = work.out / "prepared.onnx"
    try:
        quant_pre_process(work.model, path)
    except Exception as error:  # noqa: BLE001  it raises bare Exceptions
        print(f"symbolic shape inference is skipped: {error}", file=sys.stderr)
        quant_pre_process(work.model, path, skip_symbolic_shape=True)
    return path


def main() -> None:
    """Run the flow."""
    work = job.read()
    source = prepared(work)
    quantize_static(source, work.out / "model.onnx", Reader(work.feeds()))
    source.unlink()
    work.answer("model.onnx", "onnxruntime")


if __name__ == "__main__":
    main()
