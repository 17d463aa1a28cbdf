"""Neural Compressor for ONNX: static quantization as its first page shows it, every parameter at its default."""

from __future__ import annotations

from bench.peers import job
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import config, quantize


class Reader(data_reader.CalibrationDataReader):  # type: ignore[misc]
    """The items, one after the other, and again from the first."""

    def __init__(self, feeds: list[job.Feed]) -> None:
        self._feeds = feeds
        self.rewind()

    def get_next(self) -> job.Feed | None:
        """The next item; None after the last."""
        return next(self._rest, None)

    def rewind(self) -> None:
        """Begin again."""
        self._rest = iter(self._feeds)


def main() -> None:
    """Run the flow."""
    work = job.read()
    settings = config.StaticQuantConfig(calibration_data_reader=Reader(work.feeds()))
    quantize(str(work.model), str(work.out / "model.onnx"), settings)
    work.answer("model.onnx", "onnxruntime")


if __name__ == "__main__":
    main()
