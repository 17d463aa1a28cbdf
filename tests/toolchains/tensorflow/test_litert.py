"""The runtime `litert` keeps the promises of every runtime, and answers as the library does; its own are about shapes, names and types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tests.toolchains.tensorflow import examples
from tests.unit.runtimes.test_contract import (  # noqa: F401  the contract, on the file of this module's fixture
    LEFT,
    ONE,
    RIGHT,
    Loaded,
    signature,
    test_a_closed_session_answers_no_more,
    test_a_file_that_is_not_there_is_a_model_that_does_not_load,
    test_a_run_whose_interrupt_is_set_has_no_answer_and_the_session_goes_on,
    test_an_input_that_does_not_fit_is_named,
    test_many_threads_share_a_session,
    test_read_only_inputs_in_any_layout_and_order_are_taken,
    test_settings_are_read_back_and_are_those_asked_for,
    test_the_promises_hold,
    test_what_ran_and_what_the_node_computes_is_told,
)

from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.runtimes import base, litert


def converted(function: Any, *specs: tf.TensorSpec) -> bytes:
    """A function as a TFLite file, whose signature has the names of `specs`."""
    module = tf.Module()
    module.function = tf.function(function, input_signature=specs, autograph=False)
    content: bytes = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.function.get_concrete_function()], module
    ).convert()
    return content


def pair(left: tf.Tensor, right: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"product": left * right, "total": tf.reduce_sum(left + right, axis=1)}


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    path = tmp_path / "model.tflite"
    specs = tf.TensorSpec([None, 6], tf.float32, "left"), tf.TensorSpec([None, 1], tf.float32, "right")
    path.write_bytes(converted(pair, *specs))
    return Loaded(base.get(RuntimeName.LITERT), path, signature("product", "total"))


def test_batches_of_any_size_follow_one_another(loaded: Loaded) -> None:
    session = loaded.session()
    for items in (1, 5, 2, 2, 1):
        answers = session.infer({"left": np.resize(LEFT, (items, 6)), "right": np.resize(RIGHT, (items, 1))})
        np.testing.assert_allclose(answers["product"], np.resize(LEFT, (items, 6)) * 2)
        assert answers["total"].shape == (items,)


def test_a_fixed_shape_stays_as_it_is_and_a_failed_run_costs_no_session(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(converted(lambda x: {"y": x * 2.0}, tf.TensorSpec([1, 3], tf.float32, "x")))
    tensor = Tensor(name="x", dtype="FP32", shape=(-1, 3))
    session = base.get(RuntimeName.LITERT).load(
        path, ONE, Signature(inputs=(tensor,), outputs=(tensor.model_copy(update={"name": "y"}),))
    )
    path.unlink()  # what a session needs it has
    with pytest.raises(RuntimeFailure, match="running the model failed"):
        session.infer({"x": np.ones((2, 3), np.float32)})
    assert session.infer({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2.0] * 3], "and the session goes on"


def test_integers_at_the_boundary_stay_integers_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(examples.int8(integer_boundary=True))
    boundary = litert.boundary(path)
    assert [tensor.dtype for tensor in (*boundary.inputs, *boundary.outputs)] == ["UINT8", "UINT8"]
    runtime = base.get(RuntimeName.LITERT)
    items = {boundary.inputs[0].name: np.full((2, 12, 12, 3), 7, np.uint8)}
    (answer,) = runtime.load(path, ONE, boundary).infer(items).values()
    assert (answer.dtype, answer.shape) == (np.uint8, (2, 4))
    executed = runtime.executed(path, ONE, items, boundary)
    assert (executed.int8, executed.total) == (3, 3), "two convolutions and a dense layer"


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"precision": Precision.BFLOAT16}, "computes as the file says"), ({"batch_size": 4}, "fixed batch size")],
)
def test_what_litert_cannot_be_told_is_refused(loaded: Loaded, asked: dict[str, object], words: str) -> None:
    with pytest.raises(RuntimeFailure, match=words) as caught:
        loaded.session(ONE.model_copy(update=asked))
    assert caught.value.reason == Reason.RECIPE_NOT_APPLICABLE


def other_names() -> tuple[bytes, Signature]:
    tensor = Tensor(name="picture", dtype="FP32", shape=(-1, 2))
    content = converted(lambda x: {"y": x + 1.0}, tf.TensorSpec([None, 2], tf.float32, "x"))
    return content, Signature(inputs=(tensor,), outputs=(tensor,))


def another_type() -> tuple[bytes, Signature]:
    content, _ = other_names()
    x, y = (Tensor(name=name, dtype="INT8", shape=(-1, 2)) for name in "xy")
    return content, Signature(inputs=(x,), outputs=(y,))


def damaged() -> tuple[bytes, Signature]:
    content, told = other_names()
    return content[: len(content) // 2], told


@pytest.mark.parametrize(
    ("make", "reason", "words"),
    [
        (other_names, Reason.UNSUPPORTED_MODEL, r"expected the tensors \['picture'\], the file has"),
        (another_type, Reason.UNSUPPORTED_MODEL, r"expected INT8 \[-1, 2\], the file has FP32 \[-1, 2\]"),
        (damaged, Reason.MODEL_LOAD_FAILED, "LiteRT could not load the model"),
    ],
)
def test_a_file_that_is_not_what_the_signature_says_is_refused(
    tmp_path: Path, make: Callable[[], tuple[bytes, Signature]], reason: Reason, words: str
) -> None:
    content, told = make()
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(RuntimeFailure, match=words) as caught:
        base.get(RuntimeName.LITERT).load(path, ONE, told)
    assert caught.value.reason == reason


def test_what_is_missing_among_the_kernels_is_named(tmp_path: Path) -> None:
    module = tf.Module()
    module.function = tf.function(
        lambda x: {"y": tf.math.tan(x)}, input_signature=[tf.TensorSpec([2], tf.float32, "x")]
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.function.get_concrete_function()], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    path = tmp_path / "model.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(RuntimeFailure, match=r"Tan|Select TensorFlow op") as caught:
        base.get(RuntimeName.LITERT).load(path, ONE)
    assert caught.value.reason == Reason.UNSUPPORTED_OPERATOR
