"""What onnxruntime and OpenVINO do with ONNX files beyond the contract (test_contract.py), and none of their traps."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.data import models

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import BY_V2, Signature
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.optimizer.onnx import model
from fettle.runtimes import base
from fettle.runtimes.base import Interrupt, Interrupted

NAMES = (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO)  # torchscript has files of its own: test_torchscript.py
BOTH = pytest.mark.parametrize("name", NAMES)
ONE = RuntimeSettings(threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    for name in ("dynamic_batch", "two_inputs_two_outputs", "texts", "recurrent", "custom_operator", "sequence_output"):
        models.save(models.BY_NAME[name](), made / name / "model.onnx")
    models.save(models.quantized(made), made / "quantized/model.onnx")
    return made


def with_batch_axis(signature: Signature) -> Signature:
    def first(tensors: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(tensor.model_copy(update={"batch_axis": 0}) for tensor in tensors)  # type: ignore[attr-defined]

    return Signature.model_validate({"inputs": first(signature.inputs), "outputs": first(signature.outputs)})


@BOTH
def test_without_a_signature_inputs_and_outputs_are_those_of_the_file(folder: Path, name: RuntimeName) -> None:
    session = base.get(name).load(folder / "two_inputs_two_outputs/model.onnx", ONE)
    feed = {"left": np.ones((2, 6), np.float32), "right": np.ones((2, 1), np.float32)}
    assert list(session.infer(feed)) == ["product", "total"]
    with pytest.raises(RuntimeFailure, match=re.escape("input left: expected FP32 [-1, 6], found FP32 [2, 5]")):
        session.infer(feed | {"left": feed["left"][:, :5]})


def test_both_runtimes_answer_alike(folder: Path) -> None:
    feed = {"image": models.images(5)}
    answers = [base.get(name).load(folder / "dynamic_batch/model.onnx", ONE).infer(feed) for name in NAMES]
    np.testing.assert_allclose(answers[0]["scores"], answers[1]["scores"], rtol=1e-4, atol=1e-6)


@BOTH
def test_batches_of_any_size_follow_one_another_even_read_only_ones(folder: Path, name: RuntimeName) -> None:
    session = base.get(name).load(folder / "dynamic_batch/model.onnx", ONE)
    for size in (1, 7, 2, 5):
        images = models.images(size)
        images.flags.writeable = False
        assert session.infer({"image": images})["scores"].shape == (size, 4)
    assert session.infer({"image": np.asfortranarray(models.images(3))})["scores"].shape == (3, 4)


def test_more_threads_than_openvino_really_uses_are_refused(folder: Path) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        base.get(RuntimeName.OPENVINO).load(folder / "dynamic_batch/model.onnx", RuntimeSettings(threads=256))
    assert caught.value.reason == Reason.NODE_INCOMPATIBLE
    assert "at least as many CPUs as threads" in caught.value.message


def test_a_static_batch_takes_that_batch_and_no_other(folder: Path) -> None:
    runtime = base.get(RuntimeName.OPENVINO)
    path = folder / "dynamic_batch/model.onnx"
    signature = with_batch_axis(model.signature(model.read(path)))
    session = runtime.load(path, RuntimeSettings(threads=1, batch_size=2), signature)
    assert session.infer({"image": models.images(2)})["scores"].shape == (2, 4)
    with pytest.raises(RuntimeFailure):
        session.infer({"image": models.images(3)})


def test_a_static_batch_without_a_batch_axis_is_refused(folder: Path) -> None:
    with pytest.raises(RuntimeFailure, match="needs a batch axis"):
        settings = RuntimeSettings(threads=1, batch_size=2)
        base.get(RuntimeName.OPENVINO).load(folder / "dynamic_batch/model.onnx", settings)


@BOTH
def test_what_ran_in_int8_is_counted_from_what_really_ran(folder: Path, name: RuntimeName) -> None:
    runtime, feed = base.get(name), {"image": models.images(1)}
    plain = runtime.executed(folder / "dynamic_batch/model.onnx", ONE, feed)
    assert (plain.f32, plain.int8, plain.total) == (3, 0, 3)
    quantized = runtime.executed(folder / "quantized/model.onnx", ONE, feed)
    assert quantized.int8 >= 2
    assert quantized.total == 3


def test_openvino_computes_in_float32_unless_asked(folder: Path) -> None:
    runtime, path = base.get(RuntimeName.OPENVINO), folder / "dynamic_batch/model.onnx"
    feed = {"image": models.images(1)}
    assert runtime.executed(path, ONE, feed).bf16 == 0
    if Precision.BFLOAT16 in runtime.capabilities():
        asked = RuntimeSettings(threads=1, precision=Precision.BFLOAT16)
        assert runtime.executed(path, asked, feed).bf16 == 3
        assert runtime.load(path, asked).effective_settings() == asked


def test_onnxruntime_has_no_other_precision(folder: Path) -> None:
    with pytest.raises(RuntimeFailure, match="computes in float32"):
        asked = RuntimeSettings(threads=1, precision=Precision.BFLOAT16)
        base.get(RuntimeName.ONNXRUNTIME).load(folder / "dynamic_batch/model.onnx", asked)


@BOTH
@pytest.mark.parametrize("dtype", ["BF16", "FP16", "FP64", "UINT64", "INT8"])
def test_every_number_that_the_protocol_has_goes_in_and_out(tmp_path: Path, name: RuntimeName, dtype: str) -> None:
    kind = BY_V2[dtype].onnx
    nodes = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    made = models.model(nodes, [models.tensor("x", ["N", 3], kind)], [models.tensor("y", ["N", 3], kind)])
    session = base.get(name).load(models.save(made, tmp_path / "model.onnx"), ONE)
    given = np.arange(6).reshape(2, 3).astype(base.numpy_dtype(dtype))
    found = session.infer({"x": given})["y"]
    assert found.dtype == given.dtype
    assert (found == given).all()


def test_texts_go_in_as_str_or_bytes(folder: Path) -> None:
    session = base.get(RuntimeName.ONNXRUNTIME).load(folder / "texts/model.onnx", ONE)
    scores = session.infer({"word": np.array([["yes"], [b"no"], ["?"]], dtype=object)})["score"]
    assert scores.tolist() == [[2.0, 3.0], [-2.0, -3.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("custom_operator", Reason.UNSUPPORTED_OPERATOR),
        ("sequence_output", Reason.UNSUPPORTED_MODEL),
        ("nowhere", Reason.MODEL_LOAD_FAILED),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(folder: Path, model: str, reason: Reason) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        base.get(RuntimeName.ONNXRUNTIME).load(folder / model / "model.onnx", ONE)
    assert caught.value.reason == reason
    assert str(folder / model) + "/" not in caught.value.message or model == "nowhere"


def test_importing_a_runtime_connects_to_nothing() -> None:
    script = """
import socket, time
def refuse(*arguments, **keywords):
    print("CONNECTS", arguments[:2], flush=True)
    raise OSError
socket.getaddrinfo = socket.socket.connect = refuse
from fettle.api.optimizedmodel import RuntimeName
from fettle.runtimes import base
for name in (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO):
    base.get(name).capabilities()
time.sleep(0.5)  # what reports does it in a process of its own
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""


@BOTH
def test_a_run_is_ended_from_another_thread_and_the_session_goes_on(name: RuntimeName) -> None:
    slow = Path(__file__).parents[3] / "examples" / "digits" / "slow" / "model.onnx"
    session = base.get(name).load(slow, ONE)
    image = {"image": np.zeros((1, 1, 32, 32), np.float32)}

    def ended() -> bool:
        interrupt = Interrupt()
        timer = threading.Timer(0.005, interrupt.set)
        timer.start()
        try:
            session.infer(image, interrupt)
        except Interrupted:
            return True
        finally:
            timer.join()
        return False

    assert any(ended() for _ in range(20))  # the other thread may come too late
    before = Interrupt()
    before.set()
    with pytest.raises(Interrupted):
        session.infer(image, before)
    expected = session.infer(image)["logits"]
    np.testing.assert_array_equal(session.infer(image, Interrupt())["logits"], expected)
    session.close()


BF16 = base.numpy_dtype("BF16")
NUMBERS, TEXTS = np.array([1.5, -2.0], BF16), np.array(["a", "ü\0"], object)
MIXED = [  # inputs, and the input of which each output is a copy, as float where it is not of the same type
    ("bfloat16 in and out", ["BF16"], ["BF16"]),
    ("bfloat16 in, texts and float out", ["BF16"], ["FP32"]),
    ("bfloat16 and texts in, float and texts out", ["BF16", "BYTES"], ["FP32", "BYTES"]),
]


def mixed(inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """Each output is the input at its place, cast to its type."""

    def side(letter: str, dtypes: list[str]) -> list[onnx.ValueInfoProto]:
        return [onnx.helper.make_tensor_value_info(f"{letter}{n}", BY_V2[t].onnx, ["N"]) for n, t in enumerate(dtypes)]

    nodes = [
        onnx.helper.make_node("Cast", [f"x{n}"], [f"y{n}"], to=BY_V2[dtype].onnx)
        if dtype != inputs[n]
        else onnx.helper.make_node("Identity", [f"x{n}"], [f"y{n}"])
        for n, dtype in enumerate(outputs)
    ]
    graph = onnx.helper.make_graph(nodes, "mixed", side("x", inputs), side("y", outputs))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize("interrupt", [None, Interrupt()], ids=["", "that may be ended early"])
@pytest.mark.parametrize(("what", "inputs", "outputs"), MIXED, ids=[case[0] for case in MIXED])
def test_bfloat16_runs_beside_other_types(
    tmp_path: Path, what: str, inputs: list[str], outputs: list[str], interrupt: Interrupt | None
) -> None:
    session = base.get(RuntimeName.ONNXRUNTIME).load(models.save(mixed(inputs, outputs), tmp_path / "m.onnx"), ONE)
    given = {"BF16": NUMBERS, "BYTES": TEXTS}
    answer = session.infer({f"x{n}": given[dtype] for n, dtype in enumerate(inputs)}, interrupt)
    for n, dtype in enumerate(outputs):
        assert base.v2_dtype(answer[f"y{n}"]) == dtype
        assert answer[f"y{n}"].tolist() == given[inputs[n]].tolist()


def test_what_the_library_has_no_call_for_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    path = models.save(mixed(["BF16", "BYTES"], ["BF16", "BYTES"]), tmp_path / "m.onnx")
    with pytest.raises(RuntimeFailure, match="cannot run a model with string inputs and bfloat16 outputs") as raised:
        base.get(RuntimeName.ONNXRUNTIME).load(path, ONE)
    assert raised.value.reason is Reason.UNSUPPORTED_MODEL
