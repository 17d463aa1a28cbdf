"""One and the same network in ONNX and as PyTorch saves it: the same answers through each, those that it gives in TensorFlow's formats
(tests/toolchains/tensorflow/test_one_network.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.data import models, one_network
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.recipe import RuntimeSettings
from fettle.api.source import InputSpec, SourceSpec
from fettle.api.vocabulary import FormatName, RuntimeName
from fettle.runtimes import base

SHAPE = (one_network.SIZE, one_network.SIZE, one_network.COLORS)


def save_onnx(folder: Path) -> str:
    nodes = [
        helper.make_node("Transpose", [one_network.INPUT], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["turned", "kernel", "kernel_bias"], ["convolved"]),
        helper.make_node("Relu", ["convolved"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("Gemm", ["mean", "dense", "dense_bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=1),
    ]
    weights = [
        models.stored("kernel", one_network.KERNEL.transpose(3, 2, 0, 1)),
        models.stored("kernel_bias", one_network.KERNEL_BIAS),
        models.stored("dense", one_network.DENSE),
        models.stored("dense_bias", one_network.DENSE_BIAS),
    ]
    inputs, outputs = models.tensor(one_network.INPUT, ["N", *SHAPE]), models.tensor("shares", ["N", 4])
    onnx.save(models.model(nodes, [inputs], [outputs], weights), folder / "model.onnx")
    return "model.onnx"


def module() -> Any:
    """The network in PyTorch, which takes pictures whose channels are last."""
    from tests.data import one_network_in_torch

    return one_network_in_torch.module()


def save_script(folder: Path) -> str:
    import torch

    torch.jit.save(torch.jit.script(module()), folder / "model.pt")
    return "model.pt"


def save_program(folder: Path) -> str:
    import torch

    program = torch.export.export(
        module(), (torch.rand(2, *SHAPE),), dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=64)}}
    )
    torch.export.save(program, folder / "model.pt2")
    return "model.pt2"


SAVERS: list[tuple[FormatName, Callable[[Path], str]]] = [
    (FormatName.ONNX, save_onnx),
    (FormatName.TORCH_SCRIPT, save_script),
    (FormatName.TORCH_EXPORT, save_program),
]


@pytest.mark.parametrize(("format", "save"), SAVERS, ids=[name for name, _ in SAVERS])
@pytest.mark.usefixtures("operators_gathered_once")
def test_the_answers_are_those_of_the_network(
    bench: Workbench, format: FormatName, save: Callable[[Path], str]
) -> None:
    inputs = (InputSpec(name=one_network.INPUT, dtype="FP32", shape=("N", *SHAPE)),)
    source = SourceSpec(
        uri=f"pvc://claim/{save(bench.folder)}", inputs=inputs if format == FormatName.TORCH_SCRIPT else ()
    )
    evaluation = EvaluationSpec(uri=bench.data("items", **{one_network.INPUT: one_network.PICTURES}))
    report = bench.prepare(bench.task(source=source, evaluation=evaluation))
    assert report.source.format == format
    entry = bench.store.fetch_model(report.portable, bench.folder / "portable")
    session = base.get(RuntimeName.ONNXRUNTIME).load(entry, RuntimeSettings(threads=1), report.signature)
    (found,) = session.infer({one_network.INPUT: one_network.PICTURES}).values()
    np.testing.assert_allclose(found, one_network.answers(), rtol=1e-4, atol=1e-5)
