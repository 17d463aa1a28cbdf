"""What was trained, written: as a program that can be trained further, and as the portable form that every candidate is made of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from fettle.api.signature import Signature
from fettle.api.text import quoted
from fettle.errors import ConversionError, RecipeError, RuntimeFailure
from fettle.optimizer.measure.items import MappedItems
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.prepare.portable import portable
from fettle.optimizer.reference import OriginalAnswers
from fettle.optimizer.sources.base import Inputs, Original
from fettle.optimizer.sources.boundary import plain
from fettle.optimizer.sources.torch_onnx import convert
from fettle.optimizer.training.program import Module, call, opened, own_inputs, own_outputs, runner, varying
from fettle.runtimes.torchscript import open_program


class _Named(torch.nn.Module):
    """A model whose inputs and outputs have the names of files that steps hand on."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The answers by name."""
        flat = call(self.module, inputs)
        return dict(zip(own_outputs(len(flat)), flat, strict=True))


def save(module: Module, example: Sequence[torch.Tensor], signature: Signature, path: Path) -> Path:
    """Write `module` as a program of torch.export. Raises RecipeError where PyTorch cannot."""
    names = own_inputs(len(signature.inputs))
    # The names of a program's inputs are those of the arguments.
    source = f"def forward(self, {', '.join(names)}):\n    return self.named(({', '.join(names)},))\n"
    space: dict[str, Any] = {}
    exec(source, space)  # of names that are written here
    around = type("Around", (torch.nn.Module,), {"forward": space["forward"]})()
    around.named = _Named(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                around.eval(), tuple(example), dynamic_shapes=varying(signature), strict=False
            )
            torch.export.save(program, path)
    except Exception as error:  # the library raises what it likes
        raise RecipeError(f"PyTorch could not export the model: {quoted(error)}") from error
    return path


def as_onnx(module: Module, example: Sequence[torch.Tensor], signature: Signature, work: Path) -> Path:
    """`module` as `model.onnx` with the names of `signature`, in `work` beside what is made on the way. Raises RecipeError."""
    work.mkdir(parents=True)
    program = save(module, example, signature, work / "model.pt2")
    try:
        made = _renamed(convert(open_program(program), (), work / "converted" / "model.onnx"), signature)
    except ConversionError as error:
        raise RecipeError(f"the model could not be converted to ONNX: {error.message}") from error
    return made.replace(work / "model.onnx")


def to_portable(program: Path, signature: Signature, items: MappedItems, folder: Path) -> Path:
    """The portable form of a program that `save` wrote, with the names of `signature`, checked to answer alike. Raises RecipeError."""
    folder.mkdir(parents=True)
    try:
        graph = _renamed(convert(open_program(program), (), folder / "converted" / "model.onnx"), signature)
        bounded = plain(onnx_model.load(graph), Inputs((), lambda: ()))
        run = runner(opened(program, signature), signature)
        reference = OriginalAnswers.of(run, items)
        original = Original(bounded.model, graph, signature, {}, run, untouched=False, converted=True)
        return portable(original, reference, folder / "work").path
    except (ConversionError, RuntimeFailure) as error:
        raise RecipeError(f"the trained model could not be converted to the portable form: {error.message}") from error


def _renamed(path: Path, signature: Signature) -> Path:
    model = ir.load(path)
    for values, tensors in ((model.graph.inputs, signature.inputs), (model.graph.outputs, signature.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            value.name = tensor.name
    proto = ir.to_proto(model)
    _without_notes(proto)
    target = path.with_name("named.onnx")
    onnx.save(proto, str(target))
    return target


def _without_notes(proto: onnx.ModelProto) -> None:
    """Without the exporter's notes: they name files and lines of whoever exported, and the same weights are to be the same file."""
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    for part in (
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
        *proto.graph.value_info,
    ):
        part.ClearField("doc_string")
        del part.metadata_props[:]
