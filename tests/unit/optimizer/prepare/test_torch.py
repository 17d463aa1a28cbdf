"""PyTorch's files: prepared and answering as PyTorch does, or refused without a line of their code run."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.source import InputSpec
from fettle.api.vocabulary import Basis, FormatName, RuntimeName
from fettle.errors import FettleError
from fettle.runtimes import base

pytestmark = pytest.mark.usefixtures("operators_gathered_once")
SCRIPT, EXPORT = FormatName.TORCH_SCRIPT, FormatName.TORCH_EXPORT
NAMES = ("convolutional", "fixed_batch", "block", "pair")


def written(bench: Workbench, name: str, format: FormatName) -> tuple[Any, str]:
    """The example and the address of its file."""
    from tests.data import torch_models

    example = torch_models.EXAMPLES.get(name, torch_models.UNSUPPORTED)
    save, file = {
        SCRIPT: (torch_models.save_script, "model.pt"),
        EXPORT: (torch_models.save_program, "model.pt2"),
    }[format]
    save(example, bench.folder / file)
    return example, f"pvc://claim/{file}"


def refused(bench: Workbench, uri: str, inputs: tuple[InputSpec, ...] = ()) -> FettleError:
    return bench.refused(uri=uri, inputs=inputs)


@pytest.mark.parametrize("format", [SCRIPT, EXPORT])
@pytest.mark.parametrize("name", NAMES)
def test_the_portable_form_and_the_source_answer_as_the_module_does(
    bench: Workbench, name: str, format: FormatName
) -> None:
    example, uri = written(bench, name, format)
    report = bench.prepare(bench.task(uri=uri, inputs=example.specs if format == SCRIPT else ()))
    assert (report.source.format, report.original.format, report.basis) == (format, format, Basis.SOURCE_RUNTIME)
    assert report.portable_runtimes == (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO, RuntimeName.TORCHSCRIPT)
    assert report.signature.batchable == example.dynamic
    assert [tensor.name for tensor in report.signature.inputs] == list(example.inputs)
    outputs = ["output_0", "output_1"] if name == "pair" else ["output"]
    assert [tensor.name for tensor in report.signature.outputs] == outputs

    from tests.data import torch_models

    answer = torch_models.module_of(example)(*torch_models.tensors(example))
    expected = [one.detach().numpy() for one in (answer if isinstance(answer, tuple) else (answer,))]
    files = {RuntimeName.ONNXRUNTIME: report.portable, RuntimeName.TORCHSCRIPT: report.original}
    for runtime, model in files.items():
        entry = bench.store.fetch_model(model, bench.folder / runtime)
        settings = RuntimeSettings(threads=1, graph_optimization=runtime == RuntimeName.ONNXRUNTIME)
        session = base.get(runtime).load(entry, settings, report.signature)
        found = session.infer(example.inputs)
        for wanted, output in zip(expected, outputs, strict=True):
            np.testing.assert_allclose(found[output], wanted, rtol=1e-4, atol=1e-5)


def test_preparing_again_answers_from_the_store(bench: Workbench) -> None:
    example, uri = written(bench, "pair", SCRIPT)
    task = bench.task(uri=uri, inputs=example.specs)
    assert bench.prepare(task) == bench.prepare(task)


def test_a_branch_on_the_shape_is_kept_in_a_script(bench: Workbench) -> None:
    example, uri = written(bench, "convolutional", SCRIPT)
    varying = InputSpec(name="image", dtype="FP32", shape=("N", 3, "H", "W"))
    report = bench.prepare(bench.task(uri=uri, inputs=(varying,)))
    entry = bench.store.fetch_model(report.portable, bench.folder / "portable")
    session = base.get(RuntimeName.ONNXRUNTIME).load(entry, RuntimeSettings(threads=1), report.signature)

    import torch
    from tests.data import torch_models

    module = torch_models.module_of(example)
    for side in (6, 12):  # below and above the branch
        image = np.ones((1, 3, side, side), np.float32)
        wanted = module(torch.from_numpy(image)).detach().numpy()
        np.testing.assert_allclose(session.infer({"image": image})["output"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", [SCRIPT, EXPORT])
def test_an_operator_that_onnx_does_not_have_is_named_and_pytorch_goes_on_alone(
    bench: Workbench, format: FormatName
) -> None:
    example, uri = written(bench, "unsupported", format)
    task = bench.task(uri=uri, inputs=example.specs if format == SCRIPT else ())
    report = bench.prepare(task)
    assert report.conversion_fault is not None
    assert report.conversion_fault.reason == Reason.UNSUPPORTED_OPERATOR
    assert "bessel_j0" in report.conversion_fault.message
    assert report.portable == report.original
    assert (report.original.format, report.portable_runtimes) == (format, (RuntimeName.TORCHSCRIPT,))
    (tensor,), (output,) = report.signature.inputs, report.signature.outputs
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.batch_axis) == ("x", "FP32", (-1, 4), 0)
    assert (output.name, output.dtype, len(output.shape), output.batch_axis) == ("output", "FP32", 2, 0)
    assert bench.prepare(task) == report, "asked once more, it answers from the store"


def test_an_input_with_a_value_needs_the_conversion(bench: Workbench) -> None:
    example, uri = written(bench, "unsupported", SCRIPT)
    frozen = example.specs[0].model_copy(update={"shape": (1, 4), "value": 0})
    assert refused(bench, uri, (frozen,)).reason == Reason.UNSUPPORTED_OPERATOR


INPUTS = [
    ("none at all", (), "source.inputs must give dtype and shape of left, right"),
    ("one of two", (InputSpec(name="left", dtype="FP32", shape=("N", 6)),), "name: right"),
    ("no dtype", (InputSpec(name="left", shape=("N", 6)),), "must give dtype and shape"),
    ("another name", (InputSpec(name="middle", dtype="FP32", shape=("N", 6)),), "no input middle"),
]


@pytest.mark.parametrize(("what", "inputs", "words"), INPUTS, ids=[line[0] for line in INPUTS])
def test_a_script_needs_to_be_told_its_inputs(
    bench: Workbench, what: str, inputs: tuple[InputSpec, ...], words: str
) -> None:
    _, uri = written(bench, "pair", SCRIPT)
    error = refused(bench, uri, inputs)
    assert error.reason == Reason.INVALID_SPEC
    assert words in error.message


def test_shapes_that_do_not_run_are_told(bench: Workbench) -> None:
    _, uri = written(bench, "convolutional", SCRIPT)
    error = refused(bench, uri, (InputSpec(name="image", dtype="FP32", shape=("N", 5, 12, 12)),))
    assert error.reason == Reason.UNSUPPORTED_MODEL
    assert "does not run on zeros of the shapes that source.inputs gives" in error.message


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("kind", ["archive", "old", "bare"])
def test_a_pickle_is_refused_with_what_it_names_and_never_run(bench: Workbench, kind: str) -> None:
    import torch

    canary, path = bench.folder / "canary", bench.folder / "model.pt"
    if kind == "bare":
        path.write_bytes(pickle.dumps({"weights": Touch(canary)}))
    else:
        torch.save({"weights": Touch(canary)}, path, _use_new_zipfile_serialization=kind == "archive")
    error = refused(bench, "pvc://claim/model.pt")
    assert not canary.exists()
    assert error.reason == Reason.UNSAFE_PICKLE
    assert "posix.mkdir" in error.message
    assert "torch.export.save" in error.message


def test_a_module_saved_whole_is_refused_with_its_class(bench: Workbench) -> None:
    import torch
    from tests.data import torch_models

    torch.save(torch_models.Block(), bench.folder / "model.pth")
    error = refused(bench, "pvc://claim/model.pth")
    assert error.reason == Reason.UNSAFE_PICKLE
    assert "torch_models.Block" in error.message


@pytest.mark.parametrize("archive", [True, False])
def test_weights_alone_are_no_model(bench: Workbench, archive: bool) -> None:
    import torch
    from tests.data import torch_models

    weights = torch_models.Block().state_dict()
    torch.save(weights, bench.folder / "model.pt", _use_new_zipfile_serialization=archive)
    error = refused(bench, "pvc://claim/model.pt")
    assert error.reason == Reason.UNSUPPORTED_FORMAT
    assert "contains only weights (a state dict), without the model" in error.message


@pytest.mark.parametrize("format", [SCRIPT, EXPORT])
@pytest.mark.parametrize("damage", ["cut", "holed"])
def test_a_damaged_archive_is_corrupted(bench: Workbench, format: FormatName, damage: str) -> None:
    example, uri = written(bench, "block", format)
    path = bench.folder / uri.rpartition("/")[2]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        with zipfile.ZipFile(path) as archive:
            kept = {
                name: archive.read(name)
                for name in archive.namelist()
                if "data/0" not in name and "weight_0" not in name
            }
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, content in kept.items():
                archive.writestr(name, content)
    error = refused(bench, uri, example.specs)
    assert error.reason == Reason.SOURCE_CORRUPTED, error.message


def test_an_archive_of_something_else_is_no_format_that_is_read(bench: Workbench) -> None:
    np.savez(bench.folder / "model.pt.npz", a=np.zeros(3))
    error = refused(bench, "pvc://claim/model.pt.npz")
    assert error.reason == Reason.UNSUPPORTED_FORMAT
    assert "not a PyTorch one" in error.message


def test_without_pytorch_one_line_says_what_to_install(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    _, uri = written(bench, "pair", SCRIPT)
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    error = refused(bench, uri)
    assert error.reason == Reason.UNSUPPORTED_FORMAT
    assert error.message.startswith("model.pt is TorchScript, and PyTorch is not installed: pip install")
    assert "\n" not in error.message
