"""Frozen graphs of TensorFlow 1: prepared, and answering as a session does; or refused with the names that the graph has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tests.toolchains.optimizing import answers, optimized
from tests.toolchains.tensorflow import examples
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import PrepareReport
from fettle.api.source import InputSpec, SourceSpec
from fettle.api.vocabulary import Basis, FormatName, RuntimeName
from fettle.runtimes import base
from fettle.store.arrays import Array

FILE = "graph.pb"


def weights(*shape: int) -> Any:
    return tf.constant(np.random.default_rng(1).normal(size=shape).astype(np.float32))


def placeholder(name: str, *shape: int | None, dtype: Any = tf.float32) -> Any:
    return tf.compat.v1.placeholder(dtype, shape, name=name)


def network() -> None:
    """Channels last, one output."""
    image = placeholder("image", None, 12, 12, 3)
    hidden = tf.nn.relu(tf.nn.conv2d(image, weights(3, 3, 3, 8), 1, "SAME"), name="hidden")
    tf.nn.softmax(tf.linalg.matmul(tf.reduce_mean(hidden, [1, 2]), weights(8, 4)), name="scores")


def two_ends() -> None:
    """Two inputs, two outputs, one of them with two tensors."""
    left, right = placeholder("left", None, 6), placeholder("right", None, 6)
    tf.add(left, right, name="total")
    tf.split(left, 2, axis=1, name="halves")


def scaled() -> None:
    """An input that is a setting, and one that has a default."""
    x, scale = placeholder("x", None, 4), placeholder("scale")
    shift = tf.compat.v1.placeholder_with_default(tf.constant(3.0), [], name="shift")
    tf.add(x * scale, shift, name="y")


def shapeless() -> None:
    """An input of any shape."""
    x = tf.compat.v1.placeholder(tf.float32, None, name="x")
    tf.nn.relu(tf.linalg.matmul(x, weights(4, 3)), name="y")


def unfrozen() -> None:
    """Weights in variables."""
    kernel = tf.compat.v1.get_variable("kernel", [4, 3], use_resource=False)
    tf.linalg.matmul(placeholder("x", None, 4), kernel, name="y")


def put(build: Callable[[], None], folder: Path, operator: str | None = None) -> tf.Graph:
    """The graph, written to its file; `operator` in the place of its last node's."""
    graph = tf.Graph()
    with graph.as_default():
        build()
    definition = graph.as_graph_def()
    if operator is not None:
        definition.node[-1].op = operator
    (folder / FILE).write_bytes(definition.SerializeToString())
    return graph


def told(graph: tf.Graph, outputs: Sequence[str], **given: Any) -> list[Array]:
    """What a session answers."""
    with tf.compat.v1.Session(graph=graph) as session:
        names = [name if ":" in name else f"{name}:0" for name in outputs]
        found: list[Array] = session.run(names, {f"{name}:0": value for name, value in given.items()})
    return found


def source(inputs: Sequence[InputSpec] = (), outputs: Sequence[str] | None = None) -> SourceSpec:
    return SourceSpec(uri=f"pvc://claim/{FILE}", inputs=tuple(inputs), outputs=outputs and tuple(outputs))


def answer(bench: Workbench, report: PrepareReport, **given: Array) -> dict[str, Array]:
    """What the portable form answers."""
    entry = bench.store.fetch_model(report.portable, bench.folder / "portable")
    session = base.get(RuntimeName.ONNXRUNTIME).load(entry, RuntimeSettings(threads=1), report.signature)
    return session.infer(given)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def test_a_graph_with_one_end_needs_no_words(bench: Workbench) -> None:
    graph, items = put(network, bench.folder), examples.pictures()
    evaluation = EvaluationSpec(uri=bench.data("items", image=items))
    report = bench.prepare(bench.task(source=source(), evaluation=evaluation))
    assert (report.source.format, report.basis) == (FormatName.FROZEN_GRAPH, Basis.PORTABLE_FORM)
    (tensor,), (output,) = report.signature.inputs, report.signature.outputs
    assert (tensor.name, tensor.shape, tensor.batch_axis) == ("image", (-1, 12, 12, 3), 0), "the layout is the user's"
    assert (output.name, output.batch_axis) == ("scores", 0)
    (wanted,) = told(graph, ["scores"], image=items)
    np.testing.assert_allclose(answer(bench, report, image=items)["scores"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outputs", [("total",), ("halves:1", "total:0")])
def test_outputs_are_nodes_or_tensors_and_bear_the_names_that_they_are_given(
    bench: Workbench, outputs: tuple[str, ...]
) -> None:
    graph, given = put(two_ends, bench.folder), {"left": numbers(5, 6), "right": numbers(5, 6)}
    report = bench.prepare(bench.task(source=source(outputs=outputs)))
    assert [tensor.name for tensor in report.signature.inputs] == ["left", "right"]
    assert [tensor.name for tensor in report.signature.outputs] == list(outputs)
    found = answer(bench, report, **given)
    for name, wanted in zip(outputs, told(graph, outputs, **given), strict=True):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5)


def test_only_what_the_outputs_need_is_an_input(bench: Workbench) -> None:
    put(two_ends, bench.folder)
    report = bench.prepare(bench.task(source=source(outputs=["halves"])))
    assert [tensor.name for tensor in report.signature.inputs] == ["left"]


def test_a_setting_becomes_a_constant_and_a_default_stays(bench: Workbench) -> None:
    graph, x = put(scaled, bench.folder), numbers(5, 4)
    report = bench.prepare(bench.task(source=source([InputSpec(name="scale", value=2)])))
    assert [tensor.name for tensor in report.signature.inputs] == ["x"]
    (wanted,) = told(graph, ["y"], x=x, scale=2)
    np.testing.assert_allclose(answer(bench, report, x=x)["y"], wanted, rtol=1e-5)


def test_a_graph_may_begin_at_an_inner_tensor(bench: Workbench) -> None:
    graph, hidden = put(network, bench.folder), numbers(3, 12, 12, 8)
    report = bench.prepare(bench.task(source=source([InputSpec(name="hidden")])))
    assert [tensor.name for tensor in report.signature.inputs] == ["hidden"]
    (wanted,) = told(graph, ["scores"], hidden=hidden)
    np.testing.assert_allclose(answer(bench, report, hidden=hidden)["scores"], wanted, rtol=1e-4, atol=1e-5)


def test_a_shape_that_the_graph_does_not_tell_comes_from_the_spec(bench: Workbench) -> None:
    graph, x = put(shapeless, bench.folder), numbers(5, 4)
    error = bench.refused(source=source())
    assert (error.reason, "set source.inputs[].shape" in error.message) == (Reason.INVALID_SPEC, True), error.message
    report = bench.prepare(bench.task(source=source([InputSpec(name="x", shape=("N", 4))])))
    (wanted,) = told(graph, ["y"], x=x)
    np.testing.assert_allclose(answer(bench, report, x=x)["y"], wanted, rtol=1e-5)


REFUSED: list[tuple[str, Callable[[], None], SourceSpec, Reason, str]] = [
    ("two ends", two_ends, source(), Reason.INVALID_SPEC, "it ends in total, halves and halves:1"),
    ("another output", network, source(outputs=["logits"]), Reason.INVALID_SPEC, "to those of the model; it ends in scores"),
    ("another input", network, source([InputSpec(name="picture")]), Reason.INVALID_SPEC, "its placeholders are image (float32 [?, 12, 12, 3])"),
    ("an input too many", two_ends, source([InputSpec(name="right")], ["halves"]), Reason.INVALID_SPEC, "on which the outputs halves do not depend"),
    ("an output that is an input", scaled, source(outputs=["shift"]), Reason.INVALID_SPEC, "do not depend on any placeholder"),
    ("not frozen", unfrozen, source(), Reason.UNSUPPORTED_MODEL, "its 1 variables, such as kernel"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "build", "spec", "reason", "words"), REFUSED, ids=[line[0] for line in REFUSED])
def test_what_does_not_fit_the_graph_is_refused_with_its_names(
    bench: Workbench, what: str, build: Callable[[], None], spec: SourceSpec, reason: Reason, words: str
) -> None:
    put(build, bench.folder)
    error = bench.refused(source=spec)
    assert (error.reason, words in error.message) == (reason, True), error.message


def test_an_operator_that_tensorflow_does_not_have_is_named(bench: Workbench) -> None:
    put(network, bench.folder, operator="OfSomebodysOwn")
    error = bench.refused(source=source())
    assert (error.reason, "has no operator OfSomebodysOwn" in error.message) == (Reason.UNSUPPORTED_OPERATOR, True)


def test_a_graph_that_is_cut_off_is_damaged(bench: Workbench) -> None:
    put(network, bench.folder)
    path = bench.folder / FILE
    path.write_bytes(path.read_bytes()[:-9])
    assert bench.refused(source=source()).reason == Reason.SOURCE_CORRUPTED


def test_a_graph_becomes_an_artifact(tmp_path: Path) -> None:
    graph, items = put(network, tmp_path), {"image": examples.pictures()}
    status = optimized(tmp_path, FILE, items)
    (found,) = answers(tmp_path, status, items).values()
    exact = next(row["exact"] for row in status["candidates"] if row["name"] == status["artifacts"][0]["candidate"])
    (wanted,) = told(graph, ["scores"], **items)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 if exact else 0.1)
