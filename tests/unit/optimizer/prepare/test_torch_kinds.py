"""What people's PyTorch models take and give: each kind of boundary is prepared, or refused with what to do."""

from __future__ import annotations

import pytest
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport
from fettle.api.source import InputSpec
from fettle.errors import FettleError

pytestmark = pytest.mark.usefixtures("operators_gathered_once")
Inputs = tuple[InputSpec, ...]


def given(name: str, *shape: int | str, dtype: str = "FP32") -> InputSpec:
    return InputSpec(name=name, dtype=dtype, shape=shape)


X = given("x", "N", 4)


def prepared(bench: Workbench, file: str, name: str, inputs: Inputs = ()) -> PrepareReport:
    from tests.data import torch_kinds

    save = torch_kinds.save_script if file == "model.pt" else torch_kinds.save_program
    save(name, bench.folder / file)
    return bench.prepare(bench.task(uri=f"pvc://claim/{file}", inputs=inputs))


def boundary(report: PrepareReport) -> tuple[list[str], list[str]]:
    sides = (report.signature.inputs, report.signature.outputs)
    inputs, outputs = ([f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in side] for side in sides)
    return inputs, outputs


SCRIPTS = [
    ("arguments with defaults, left out", "Defaults", (X,), ["x FP32 [-1, 4]"], ["output FP32 [-1, 3]"]),
    (
        "a tensor after an argument with a default", "Defaults", (X, given("mask", "N", 3)),
        ["x FP32 [-1, 4]", "mask FP32 [-1, 3]"], ["output FP32 [-1, 3]"],
    ),
    (
        "an input that no answer depends on", "Unused", (X, given("lengths", "N", dtype="INT64")),
        ["x FP32 [-1, 4]", "lengths INT64 [-1]"], ["output FP32 [-1, 3]"],
    ),
    (
        "a dictionary of outputs", "Keys", (X,),
        ["x FP32 [-1, 4]"], ["logits FP32 [-1, 3]", "probabilities FP32 [-1, 3]"],
    ),
    (
        "a list in a tuple of outputs", "Nested", (given("answer", "N", 4),),
        ["answer FP32 [-1, 4]"], ["output_0 FP32 [-1, 3]", "output_1_0 FP32 [-1, 3]", "output_1_1 INT64 [-1]"],
    ),
    ("an input handed on", "HandedOn", (X,), ["x FP32 [-1, 4]"], ["output_0 FP32 [-1, 3]", "output_1 FP32 [-1, 4]"]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "name", "specs", "inputs", "outputs"), SCRIPTS, ids=[line[0] for line in SCRIPTS])
def test_a_script_keeps_its_boundary(
    bench: Workbench, what: str, name: str, specs: Inputs, inputs: list[str], outputs: list[str]
) -> None:
    report = prepared(bench, "model.pt", name, specs)
    assert boundary(report) == (inputs, outputs)
    assert report.signature.batchable


def test_a_frozen_input_is_tried_with_its_value_and_not_with_zero(bench: Workbench) -> None:
    parts = InputSpec(name="parts", dtype="INT64", shape=(1,), value=4)
    report = prepared(bench, "model.pt", "Shared", (X, parts))
    assert boundary(report) == (["x FP32 [-1, 4]"], ["output FP32 [-1, 3]"])


PROGRAMS = [
    ("batch 1 and two outputs", "Chosen", ["x FP32 [1, 4]"], ["output_0 FP32 [1, 3]", "output_1 INT64 [1]"]),
    (
        "a dictionary and a keyword as arguments", "Gathered",
        ["features_a FP32 [-1, 4]", "features_b FP32 [-1, 1]", "scale FP32 [-1, 1]"], ["output FP32 [-1, 3]"],
    ),
    ("an input handed on", "HandedOn", ["x FP32 [-1, 4]"], ["output_0 FP32 [-1, 3]", "output_1 FP32 [-1, 4]"]),
    ("a number and None as arguments", "Defaults", ["x FP32 [-1, 4]"], ["output FP32 [-1, 3]"]),
    ("int64 tokens", "Tokens", ["tokens INT64 [-1, 8]"], ["output FP32 [-1, 3]"]),
    ("a height that is any even number", "Pooled", ["x FP32 [-1, 1, -1, 8]"], ["output FP32 [-1, 2, -1, 3]"]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "name", "inputs", "outputs"), PROGRAMS, ids=[line[0] for line in PROGRAMS])
def test_an_exported_program_keeps_its_boundary(
    bench: Workbench, what: str, name: str, inputs: list[str], outputs: list[str]
) -> None:
    report = prepared(bench, "model.pt2", name)
    assert boundary(report) == (inputs, outputs)
    assert report.signature.batchable == (name != "Chosen")


MODEL = Reason.UNSUPPORTED_MODEL
REFUSED = [
    ("a list as the input", "model.pt", "Several", MODEL, "the input 'xs' is of type List[Tensor]"),
    ("a number as an output", "model.pt", "Count", MODEL, "the output 'output_1' is of type int"),
    ("complex numbers as an output", "model.pt", "Wave", MODEL, "the output 'output' is of type torch.complex64"),
    ("one name for an input and an output", "model.pt", "Twin", MODEL, "x is the name of both an input and an output"),
    ("answers that change", "model.pt", "Changing", MODEL, "gives different outputs for the same input"),
    ("a number as an output", "model.pt2", "Count", MODEL, "the output 'output_1' is of type int"),
    ("complex numbers as an output", "model.pt2", "Wave", MODEL, "the output 'output' is of type torch.complex64"),
    ("one name for an input and an output", "model.pt2", "Twin", MODEL, "x is the name of both an input and an output"),
    ("training mode", "model.pt2", "Normalized", MODEL, "call model.eval() before torch.export.export"),
    ("answers that change", "model.pt2", "Changing", MODEL, "gives different outputs for the same input"),
]


@pytest.mark.parametrize(
    ("what", "file", "name", "reason", "words"), REFUSED, ids=[f"{line[0]} in {line[1]}" for line in REFUSED]
)
def test_a_boundary_that_nothing_can_serve_is_refused_with_its_name(
    bench: Workbench, what: str, file: str, name: str, reason: Reason, words: str
) -> None:
    specs = (given("xs", "N", 4),) if name == "Several" else (X,) if file == "model.pt" else ()
    with pytest.raises(FettleError) as caught:
        prepared(bench, file, name, specs)
    assert caught.value.reason == reason
    assert words in caught.value.message


def test_what_the_exporter_stumbles_over_is_told_and_not_how_to_report_it(bench: Workbench) -> None:
    from fettle.errors import SourceError
    from fettle.optimizer.sources.torch_onnx import _quietly

    def export() -> None:
        try:
            raise AssertionError("expected a size")
        except AssertionError as fault:
            raise RuntimeError("Failed to decompose. \x1b[96mNext steps:\x1b[0m create an issue") from fault

    with pytest.raises(SourceError) as caught:
        _quietly(export)
    assert caught.value.message == "PyTorch's exporter could not write the model as ONNX: expected a size"
