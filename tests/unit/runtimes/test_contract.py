"""What `runtimes/base.py` promises holds of every runtime in the catalog, on every format that it loads; and whoever breaks it is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fettle.api import catalog
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import DeviceKind, ModelFormat, Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure import promises
from fettle.runtimes import base
from fettle.runtimes.base import Array, Arrays, Interrupt, Interrupted

ONE = RuntimeSettings(threads=1, graph_optimization=False)
LEFT, RIGHT = np.arange(12, dtype=np.float32).reshape(2, 6), np.full((2, 1), 2, np.float32)
INPUTS = (Tensor(name="left", dtype="FP32", shape=(-1, 6)), Tensor(name="right", dtype="FP32", shape=(-1, 1)))


def signature(*outputs: str) -> Signature:
    """Two inputs; a matrix and a vector come out."""
    matrix, vector = outputs
    shapes = {matrix: (-1, 6), vector: (-1,)}
    return Signature(
        inputs=INPUTS, outputs=tuple(Tensor(name=name, dtype="FP32", shape=shape) for name, shape in shapes.items())
    )


def onnx_file(folder: Path) -> Path:
    nodes = [
        helper.make_node("Mul", ["left", "right"], ["product"]),
        helper.make_node("Add", ["left", "right"], ["sum"]),
        helper.make_node("ReduceSum", ["sum", "axes"], ["total"], keepdims=0),
    ]
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {"left": ["N", 6], "right": ["N", 1], "product": ["N", 6], "total": ["N"]}.items()
    ]
    axes = numpy_helper.from_array(np.array([1]), "axes")
    graph = helper.make_graph(nodes, "pair", tensors[:2], tensors[2:], [axes])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    return folder / "model.onnx"


def openvino_file(folder: Path) -> Path:
    import openvino

    openvino.save_model(openvino.convert_model(onnx_file(folder)), folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def script_file(folder: Path) -> Path:
    from tests.data import torch_models

    return torch_models.save_script(torch_models.EXAMPLES["pair"], folder / "model.pt")


def program_file(folder: Path) -> Path:
    from tests.data import torch_models

    return torch_models.save_program(torch_models.EXAMPLES["pair"], folder / "model.pt2")


def package_file(folder: Path) -> Path:
    from tests.data import torch_models

    if shutil.which("g++") is None:
        pytest.skip("compiling a package needs g++")
    return torch_models.save_package("pair", folder / "model.aoti")


FILES: dict[ModelFormat, tuple[Callable[[Path], Path], Signature]] = {
    "ONNX": (onnx_file, signature("product", "total")),
    "OpenVINO": (openvino_file, signature("product", "total")),
    "TorchScript": (script_file, signature("output_0", "output_1")),
    "TorchExport": (program_file, signature("output_0", "output_1")),
    "AOTInductor": (package_file, signature("output_0", "output_1")),
}
# Those of GPUs are held to it where there is one: bench/gpu, and tests/unit/runtimes/test_engine.py on a GPU that is played. LiteRT is, in the
# environment of its toolchain: tests/toolchains/tensorflow/test_litert.py.
EVERY = [
    (row.runtime, format)
    for row in catalog.RUNTIMES
    if row.device is DeviceKind.CPU and row.runtime != RuntimeName.LITERT
    for format in row.loads
]


@dataclass(frozen=True)
class Loaded:
    """A runtime, a file that it loads, and what goes in."""

    runtime: base.Runtime
    entry: Path
    signature: Signature

    @property
    def feed(self) -> dict[str, Array]:
        return {"left": LEFT.copy(), "right": RIGHT.copy()}

    def session(self, settings: RuntimeSettings = ONE) -> base.Session:
        return self.runtime.load(self.entry, settings, self.signature)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModelFormat], Path]:
    """A file of each format, made once: nobody writes to it."""

    @cache
    def file(format: ModelFormat) -> Path:
        return FILES[format][0](tmp_path_factory.mktemp(format))

    return file


@pytest.fixture(params=EVERY, ids=[f"{name}-{format}" for name, format in EVERY])
def loaded(request: pytest.FixtureRequest, files: Callable[[ModelFormat], Path]) -> Iterator[Loaded]:
    name, format = request.param
    yield Loaded(base.get(name), files(format), FILES[format][1])
    if name in (RuntimeName.TORCHSCRIPT, RuntimeName.INDUCTOR):  # their number of threads belongs to the process
        import torch

        torch.set_num_threads(1)


def test_the_promises_hold(loaded: Loaded) -> None:
    session = loaded.session()
    promises.require(loaded.runtime.name, session, loaded.signature, loaded.feed)
    answers = list(session.infer(loaded.feed).values())
    np.testing.assert_allclose(answers[0], LEFT * RIGHT)


def test_read_only_inputs_in_any_layout_and_order_are_taken(loaded: Loaded) -> None:
    left = np.asfortranarray(LEFT)
    left.flags.writeable = False
    answers = list(loaded.session().infer({"right": RIGHT, "left": left}).values())
    np.testing.assert_allclose(answers[0], LEFT * RIGHT)


def test_settings_are_read_back_and_are_those_asked_for(loaded: Loaded) -> None:
    for threads in (2, 1):
        asked = ONE.model_copy(update={"threads": threads})
        assert loaded.session(asked).effective_settings() == asked


WRONG = [
    ({"left": LEFT}, "expected the inputs ['left', 'right'], found ['left']"),
    ({"left": LEFT.astype(np.float64), "right": RIGHT}, "input left: expected FP32 [-1, 6], found FP64 [2, 6]"),
    ({"left": LEFT[:, :5], "right": RIGHT}, "found FP32 [2, 5]"),
    ({"left": LEFT[0], "right": RIGHT}, "found FP32 [6]"),
]


def test_an_input_that_does_not_fit_is_named(loaded: Loaded) -> None:
    session = loaded.session()
    for feed, words in WRONG:
        with pytest.raises(RuntimeFailure) as caught:
            session.infer(feed)
        assert words in caught.value.message
        assert caught.value.reason == Reason.DATA_INVALID


def test_many_threads_share_a_session(loaded: Loaded) -> None:
    session = loaded.session()

    def work(number: int) -> list[Array]:
        return [
            session.infer({"left": LEFT + number, "right": RIGHT})[loaded.signature.outputs[0].name] for _ in range(20)
        ]

    with ThreadPoolExecutor(4) as pool:
        for number, answers in enumerate(pool.map(work, range(4))):
            np.testing.assert_allclose(answers, [(LEFT + number) * RIGHT] * 20)


def test_a_run_whose_interrupt_is_set_has_no_answer_and_the_session_goes_on(loaded: Loaded) -> None:
    session, interrupt = loaded.session(), Interrupt()
    interrupt.set()
    with pytest.raises(Interrupted):
        session.infer(loaded.feed, interrupt)
    answers = list(session.infer(loaded.feed, Interrupt()).values())
    np.testing.assert_allclose(answers[0], LEFT * RIGHT)


def test_a_closed_session_answers_no_more(loaded: Loaded) -> None:
    session = loaded.session()
    session.infer(loaded.feed)
    session.close()
    session.close()
    with pytest.raises(RuntimeFailure, match="closed"):
        session.infer(loaded.feed)


def test_a_file_that_is_not_there_is_a_model_that_does_not_load(loaded: Loaded) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        replace(loaded, entry=loaded.entry.with_stem("nowhere")).session()
    assert caught.value.reason == Reason.MODEL_LOAD_FAILED


def test_what_ran_and_what_the_node_computes_is_told(loaded: Loaded) -> None:
    executed = loaded.runtime.executed(loaded.entry, ONE, loaded.feed, loaded.signature)
    assert executed.total == executed.int8 + executed.bf16 + executed.f16 + executed.f32 + executed.weight_only
    # Others than Float32 depend on the node.
    capabilities, row = loaded.runtime.capabilities(), catalog.runtime(loaded.runtime.name)
    assert Precision.FLOAT32 in capabilities
    assert capabilities <= set(row.precisions)


DOUBLING = Signature(
    inputs=(Tensor(name="x", dtype="FP32", shape=(-1,)),),
    outputs=(Tensor(name="doubled", dtype="FP32", shape=(-1,)), Tensor(name="count", dtype="INT64", shape=(1,))),
)


class Doubling:
    """A session that doubles its input, and breaks no promise."""

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        return {"doubled": inputs["x"] * 2, "count": np.array([len(inputs["x"])])}

    def effective_settings(self) -> RuntimeSettings:
        return ONE

    def close(self) -> None:
        pass


class Renaming(Doubling):
    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        return {"twice": inputs["x"] * 2, "count": np.array([4])}


class Reordering(Doubling):
    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        return dict(reversed(super().infer(inputs).items()))


class Widening(Doubling):
    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        return super().infer(inputs) | {"doubled": inputs["x"].astype(np.float64) * 2}


class InPlace(Doubling):
    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        inputs["x"][:] *= 2
        return super().infer({"x": inputs["x"] / 2})


class Viewing(Doubling):
    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        return super().infer(inputs) | {"doubled": inputs["x"][::-1]}


class Reusing(Doubling):
    def __init__(self) -> None:
        self.buffer = np.zeros(4, np.float32)

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        np.multiply(inputs["x"], 2, out=self.buffer)
        return super().infer(inputs) | {"doubled": self.buffer}


class Locking(Doubling):
    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        outputs = super().infer(inputs)
        outputs["doubled"].flags.writeable = False
        return outputs


class Drifting(Doubling):
    def __init__(self) -> None:
        self.runs = 0

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        self.runs += 1
        outputs = super().infer(inputs)
        return outputs | {"doubled": outputs["doubled"] + np.float32(self.runs)}


BREAKING = [
    (Renaming, "outputs have the names and the order of the signature, ['doubled', 'count'], and it answered ['twice', 'count']"),
    (Reordering, "and it answered ['count', 'doubled']"),
    (Widening, "the output 'doubled' is an array of FP32, and it answered FP64"),
    (InPlace, "inputs are left as they are, and it changed ['x']"),
    (Viewing, "the output 'doubled' is a view of an input"),
    (Reusing, "the output 'doubled' lies in memory that the next run writes to"),
    (Locking, "the output 'doubled' is read-only"),
    (Drifting, "the same inputs get the same answer (else its row in the catalog says repeats=False), and the output 'doubled' moved"),
]  # fmt: skip


@pytest.mark.parametrize(("session", "words"), BREAKING, ids=[session.__name__ for session, _ in BREAKING])
def test_a_broken_promise_names_the_runtime_and_the_promise(session: type[Doubling], words: str) -> None:
    feed = {"x": np.array([1, np.nan, 3, -4], np.float32)}
    promises.require(RuntimeName.OPENVINO, Doubling(), DOUBLING, feed)
    with pytest.raises(RuntimeFailure) as caught:
        promises.require(RuntimeName.OPENVINO, session(), DOUBLING, feed)
    assert caught.value.reason == Reason.OUTPUTS_INVALID
    assert caught.value.message.startswith("the runtime openvino (runtimes/openvino.py) violated its contract: ")
    assert words in caught.value.message


def test_a_runtime_that_says_so_may_answer_otherwise_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(catalog.runtime(RuntimeName.OPENVINO), repeats=False)
    monkeypatch.setattr(catalog, "runtime", lambda name: row)
    promises.require(RuntimeName.OPENVINO, Drifting(), DOUBLING, {"x": np.ones(4, np.float32)})
