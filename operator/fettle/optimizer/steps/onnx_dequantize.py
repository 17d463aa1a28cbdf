"""A quantized ONNX model in float32 again.

What was quantized for one runtime is often slow in another: ranges that are taken while the model runs cost more than integer convolutions save, and
OpenVINO has no fast kernels for them at all. In float32 each runtime has, and a quantization that suits it can follow.
"""

from __future__ import annotations

from pathlib import Path

from fettle.api.recipe import DequantizeStep
from fettle.api.text import joined
from fettle.errors import RecipeError
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx import portable
from fettle.optimizer.onnx.dequantize import dequantized
from fettle.optimizer.steps import Work


def dequantize(work: Work[DequantizeStep]) -> Path:
    """The model with float32 weights and activations. Raises RecipeError for a model that is not quantized, or in a form that is not known."""
    model = onnx_model.load(work.entry)
    if not portable.quantized_operators(model):
        raise RecipeError("the model is not quantized")
    changed = dequantized(model)
    if left := portable.quantized_operators(changed):
        raise RecipeError(f"the model has {joined(sorted(left), 'and')}, which this step cannot put into float32")
    if sum(len(tensor.raw_data) for tensor in changed.graph.initializer) > onnx_model.INLINE_LIMIT:
        raise RecipeError(
            f"in float32 its weights would be larger than {onnx_model.INLINE_LIMIT / 1e9:.1f} GB, which no graph can hold"
        )
    path = work.folder / "model.onnx"
    onnx_model.save(portable.infer_shapes(changed), path, work.entry.parent)
    return path
