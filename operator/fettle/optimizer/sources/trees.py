"""What the formats of boosted trees have in common: one table of numbers goes in, a class with probabilities or a number comes out."""

from __future__ import annotations

from typing import Any

from fettle.optimizer.sources.sklearn_onnx import TABLE

OPSET = 15  # of the standard operators; trees are ai.onnx.ml's


def table_type(columns: int) -> list[tuple[str, Any]]:
    """The one input of a converted model, as onnxmltools takes it."""
    from onnxmltools.convert.common.data_types import FloatTensorType

    return [(TABLE, FloatTensorType([None, columns]))]
