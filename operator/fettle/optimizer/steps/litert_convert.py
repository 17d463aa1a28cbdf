"""Files of LiteRT's, made by TensorFlow's own converter of the source as a SavedModel: as it is, or quantized on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fettle.api.recipe import OptimizeGraphStep, QuantizeStep
from fettle.api.step import StepParameters
from fettle.api.vocabulary import QuantizePreset
from fettle.errors import RecipeError
from fettle.optimizer.sources import tensorflow
from fettle.optimizer.steps import Work
from fettle.runtimes.base import Array

_UNKNOWN = re.compile(r"'?tf\.(\w+)'? op is neither a custom op nor a flex op")


def float32(work: Work[OptimizeGraphStep]) -> Path:
    """As it is. Raises RecipeError."""
    return _converted(work, _converter(work))


def float16(work: Work[QuantizeStep]) -> Path:
    """Weights in float16, which LiteRT reads into float32 when it loads them. Raises RecipeError."""
    import tensorflow as tf

    converter = _quantizing(work)
    converter.target_spec.supported_types = [tf.float16]
    return _converted(work, converter)


def dynamic(work: Work[QuantizeStep]) -> Path:
    """Weights in int8 per channel; ranges of activations are found at run time. Raises RecipeError."""
    return _converted(work, _quantizing(work))


def static(work: Work[QuantizeStep]) -> Path:
    """Weights and activations in int8, ranges from the calibration items, inputs and outputs as they were. Raises RecipeError."""
    items = work.calibrated

    def feeds() -> Iterator[dict[str, Array]]:
        return (items.feed([index]) for index in range(len(items)))

    converter = _quantizing(work)
    converter.representative_dataset = feeds
    return _converted(work, converter)


def _quantizing(work: Work[QuantizeStep]) -> Any:
    """A converter that quantizes whatever it can. Raises RecipeError."""
    if work.step.operators or work.step.preset is not QuantizePreset.DEFAULT:
        raise RecipeError("litert quantizes every operator that it can: leave operators and preset out of the recipe")
    converter = _converter(work)
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter


def _converter(work: Work[Any]) -> Any:
    """TensorFlow's converter of the model. Raises RecipeError."""
    if work.entry.name != tensorflow.ENTRY:
        raise RecipeError("litert converts and quantizes in one step: leave the others out of the recipe")
    tensorflow.quiet()
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_saved_model(str(work.entry.parent), signature_keys=[tensorflow.SERVING])


def _converted(work: Work[StepParameters], converter: Any) -> Path:
    """The file. Raises RecipeError, and whatever TensorFlow raises."""
    try:
        content = converter.convert()
    except Exception as error:
        unknown = sorted(set(_UNKNOWN.findall(str(error))))
        if not unknown:
            raise
        message = f"LiteRT has no counterpart for these operators of the model: {', '.join(unknown[:5])}"
        raise RecipeError(message) from error
    path = work.folder / "model.tflite"
    path.write_bytes(content)
    return path
