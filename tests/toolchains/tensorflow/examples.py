"""Networks of Keras and TensorFlow, as their users save them."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from fettle.store.arrays import Array

ITEMS = 40


def pictures() -> Array:
    """Pictures, channels last."""
    return np.random.default_rng(0).normal(size=(ITEMS, 12, 12, 3)).astype(np.float32)


def convolutional() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((12, 12, 3), name="image"),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
            layers.Dense(4, activation="softmax", name="scores"),
        ]
    )


def two_inputs() -> keras.Model:
    keras.utils.set_random_seed(1)
    words, more = keras.Input((6,), dtype="int32", name="words"), keras.Input((3,), name="more")
    read = layers.LSTM(5)(layers.Embedding(20, 4)(words))
    joined = layers.Concatenate()([read, more])
    return keras.Model(
        [words, more], {"kind": layers.Dense(2, name="kind")(joined), "value": layers.Dense(1, name="value")(joined)}
    )


def save_keras(model: keras.Model, folder: Path) -> str:
    model.save(folder / "model.keras")
    return "model.keras"


def save_h5(model: keras.Model, folder: Path) -> str:
    model.save(folder / "model.h5")
    return "model.h5"


def save_saved_model(model: keras.Model, folder: Path) -> str:
    model.export(folder / "saved", verbose=False)
    return "saved"


def save_tflite(model: keras.Model, folder: Path) -> str:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    (folder / "model.tflite").write_bytes(converter.convert())
    return "model.tflite"


def int8(integer_boundary: bool) -> bytes:
    """A TFLite file in int8, its boundary in uint8 or in float32."""
    converter = tf.lite.TFLiteConverter.from_keras_model(convolutional())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([picture[None]] for picture in pictures())
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if integer_boundary:
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    content: bytes = converter.convert()
    return content


SAVERS: Mapping[str, Callable[[keras.Model, Path], str]] = {
    "Keras": save_keras,
    "h5": save_h5,
    "SavedModel": save_saved_model,
    "TFLite": save_tflite,
}


class Module(tf.Module):
    """A module with two functions, a variable and a table of words."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable(3.0)
        keys, values = tf.constant(["cat", "dog"]), tf.constant([1, 2], tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), 0)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def scaled(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * self.scale}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def summed(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"sum": tf.reduce_sum(x, axis=1, keepdims=True)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "word")])
    def looked_up(self, word: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"number": self.table.lookup(word)}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def exotic(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.math.bessel_i0e(x) + tf.math.igamma(tf.abs(x) + 1, tf.abs(x))}


def save_module(folder: Path, *names: str) -> str:
    """A SavedModel with these functions of `Module` as its signatures."""
    module = Module()
    tf.saved_model.save(module, str(folder / "saved"), signatures={name: getattr(module, name) for name in names})
    return "saved"
