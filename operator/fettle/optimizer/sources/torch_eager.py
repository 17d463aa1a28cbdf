"""A module of PyTorch as it runs eagerly: exported with the sizes that vary, and the judge of what it is converted to."""

from __future__ import annotations

import inspect
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes as refined

from fettle.api.reasons import Reason
from fettle.api.source import InputSpec
from fettle.api.text import joined
from fettle.errors import ConversionError, SourceError
from fettle.optimizer.sources import torch_onnx
from fettle.optimizer.sources.torch_boundary import first_that_runs, names_of, tensors_of, undescribed
from fettle.runtimes.base import Arrays
from fettle.runtimes.torchscript import Program, exported_program, named_outputs, to_array, to_tensor

Shape = tuple[int | str, ...]
FIXES = 4  # ranges of sizes that PyTorch's exporter may narrow, each in another attempt
# Sizes tried for a dimension that varies: networks that halve a small one five times have none left to vary.
SIZES = (64, 16, 256, 1024, 16384)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EagerModel:
    """`shapes` of the inputs, in the order in which the module takes them, words in the place of sizes that vary; an example of each.

    `least`: what a size must be at the least. `vary`: a size that the module turns out to fix is a fault, else it is fixed.
    """

    module: Any
    shapes: Mapping[str, Shape]
    examples: Mapping[str, torch.Tensor]
    least: Mapping[str, int]
    vary: bool = True

    def to_onnx(self) -> onnx.ModelProto:
        """See `LoadedModel.to_onnx`. Raises SourceError, ConversionError."""
        # PyTorch has other names for some inputs.
        program = replace(exported_program(self._exported()), inputs=tuple(self.shapes))
        with tempfile.TemporaryDirectory() as folder:
            made = onnx.load(str(torch_onnx.convert(program, (), Path(folder) / "model.onnx")))
        _name_sizes(made, self.shapes)
        return made

    def save(self, folder: Path) -> Path:
        """See `SourceFormat.native`. Raises SourceError, ConversionError."""
        folder.mkdir()
        torch.export.save(self._exported(), folder / "model.pt2")
        return folder / "model.pt2"

    def run(self, inputs: Arrays) -> Arrays:
        """See `LoadedModel.run`."""
        with torch.inference_mode():
            answer = self.module(**{name: to_tensor(array) for name, array in inputs.items()})
        return {name: to_array(tensor) for name, tensor in named_outputs(answer).items()}

    def _exported(self) -> Any:
        """The program. A size that the module bounds is bounded as the exporter proposes."""
        words = dict.fromkeys(size for shape in self.shapes.values() for size in shape if isinstance(size, str))
        # What is proposed is read as formulas, in which some words mean something else, and others nothing.
        names = {word: f"{word}_size" if word.isidentifier() else f"size_{place}" for place, word in enumerate(words)}
        sizes = {word: torch.export.Dim(names[word], min=self.least.get(word)) for word in words}
        shapes: Any = {
            name: {axis: sizes[size] for axis, size in enumerate(shape) if isinstance(size, str)}
            for name, shape in self.shapes.items()
        }
        for _ in range(FIXES):
            try:
                with torch.no_grad():
                    return torch.export.export(
                        self.module, (), dict(self.examples), dynamic_shapes=shapes, strict=False
                    )
            except torch._dynamo.exc.UserError as error:
                fixes = re.findall(r"(?m)^\s+(\w+ = .+)$", str(error).partition("Suggested fixes")[2])
                if self.vary:
                    _refuse_fixed(str(error), fixes, {name: word for word, name in names.items()})
                if not fixes:
                    raise
                log.info("sizes that vary are bounded: %s", fixes)
                shapes = refined("\n".join(("Suggested fixes:", *fixes)), shapes)
        raise ConversionError(
            "PyTorch's exporter found no bounds for the sizes that vary: fix some of them in source.inputs"
        )


def described(module: Any, specs: Sequence[InputSpec]) -> EagerModel:
    """`module` with the inputs that `source.inputs` describes. Raises SourceError: InvalidSpec, UnsupportedModel where it does not run."""
    given = {spec.name: spec for spec in specs}
    names = _names(module, given)
    inputs = tensors_of(names, given)
    shapes = {
        name: tuple(_word(name, axis, size) for axis, size in enumerate(given[name].shape or ())) for name in names
    }
    frozen = {spec.name: spec.value for spec in specs if spec.value is not None}
    program = Program(module, names, lambda tensors: module(**dict(zip(names, tensors, strict=True))))
    examples, answer = first_that_runs(program, inputs, shapes, frozen, SIZES)
    names_of(answer)
    return EagerModel(module, shapes, dict(zip(names, examples, strict=True)), {})


def _word(name: str, axis: int, size: int | str) -> int | str:
    """A size that varies has a name, also where it is written as -1."""
    if isinstance(size, str) or size > 0:
        return size
    return "N" if axis == 0 else f"{name}_{axis}"


def _names(module: Any, given: Mapping[str, InputSpec]) -> tuple[str, ...]:
    """Names of the arguments that are given, in the order of `forward`. Raises SourceError (InvalidSpec)."""
    parameters = inspect.signature(module.forward).parameters.values()
    taken = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    names = [one.name for one in taken]
    kind = type(module).__name__
    if not names:
        message = f"the forward of {kind} names no inputs: write it with an argument for each, such as `def forward(self, image)`"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    unknown = [name for name in given if name not in names]
    if unknown:
        message = f"source.inputs names {joined(unknown)}, which the forward of {kind} does not take; it takes {joined(names)}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    needed = [one.name for one in taken if one.default is one.empty or one.name in given]
    lacking = undescribed(needed, given)
    if lacking:
        message = (
            f"a PyTorch module does not record the types of its inputs: source.inputs must give dtype and shape of {joined(lacking)}, "
            f'such as {{name: {lacking[0]}, dtype: FP32, shape: ["N", 3, 224, 224]}}'
        )
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    if not needed:
        message = f"source.inputs must describe at least one of the inputs of {kind}: {joined(names)}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    return tuple(needed)


def _refuse_fixed(said: str, fixes: Sequence[str], words: Mapping[str, str]) -> None:
    """Raises SourceError (UnsupportedModel) for a size that is said to vary, and of which the exporter says that it cannot."""
    found = re.findall(r"marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)", said)
    found += [(name, size) for name, _, size in (fix.partition(" = ") for fix in fixes) if size.isdigit()]
    fixed = {words[name]: size for name, size in found if name in words}
    if fixed:
        told = joined([f"{word} to {size}" for word, size in fixed.items()])
        message = (
            f"the module fixes the size {told} when it is exported, because it computes with it as a plain number: take the size from the "
            "input (such as x.shape[0]) wherever it is used, or write a number in its place in source.inputs"
        )
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)


def _name_sizes(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> None:
    """Give the sizes that vary the names that they have in `shapes`."""
    names = {
        size.dim_param: wanted
        for value in model.graph.input
        for size, wanted in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True)
        if size.dim_param and isinstance(wanted, str)
    }
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]
