"""From PyTorch's files to ONNX.

A program of torch.export goes through the exporter of today, which needs onnxscript; a script through the one before it, which is
deprecated and the only one that keeps a script's control flow (docs/design/torch.md). That one stops at arguments with defaults and at
answers that are no plain tuples, so it is given a script around the script. Both are known to write another opset than the one asked for,
and names of their own: what came out is checked.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from fettle.api.reasons import Reason
from fettle.api.signature import BY_V2, Signature
from fettle.api.source import InputSpec
from fettle.api.text import clip
from fettle.errors import ConversionError, SourceError
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.sources.torch_boundary import first_that_runs, names_of, outputs_of_export, script_inputs
from fettle.runtimes.torchscript import Program

SCRIPT_OPSET = 20  # the newest that the older exporter writes
EXPORT_OPSET = 21
log = logging.getLogger(__name__)


def convert(program: Program, specs: Sequence[InputSpec], path: Path) -> Path:
    """Write `program` as ONNX to `path`.

    Raises SourceError: InvalidSpec (source.inputs does not fit, or is needed), UnsupportedModel; ConversionError where the exporter cannot
    write it: UnsupportedOperator naming it, UnsupportedModel, UnsupportedOpset.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if program.exported is not None:
        _refuse_training(program.exported)
        inputs, outputs, opset = program.inputs, outputs_of_export(program.exported), EXPORT_OPSET
        _refuse_twins(inputs, outputs)
        _quietly(lambda: _export(program, outputs, path))
    else:
        inputs, outputs = _convert_script(program, specs, path)
        opset = SCRIPT_OPSET
    _check(path, inputs, outputs, opset)
    return path


def _refuse_twins(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    twins = sorted(set(inputs) & set(outputs))
    if twins:
        message = (
            f"{', '.join(twins)} is the name of both an input and an output (outputs are called 'output' or as the keys of a dictionary); "
            "rename one of them and export the model again"
        )
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)


# ----------------------------------------------------------------------------------------------------------- exported programs


def _refuse_training(exported: Any) -> None:
    for node in exported.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        names = [one.name for one in schema.arguments] if schema is not None else []
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        if given.get("training") is True:
            message = (
                f"the program was exported in training mode: its {node.target} normalizes each batch with the statistics of that batch; "
                "call model.eval() before torch.export.export"
            )
            raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)


def _export(program: Program, outputs: Sequence[str], path: Path) -> None:
    _drop_ranges_of_products(program.exported)
    names = list(outputs)
    made = torch.onnx.export(
        program.exported, dynamo=True, opset_version=EXPORT_OPSET, output_names=names, verbose=False
    )
    if made is None:
        raise RuntimeError("the exporter returned nothing")
    _part(made.model.graph, program.inputs, outputs)
    made.save(path)


def _drop_ranges_of_products(exported: Any) -> None:
    """A size such as `2 * height` is read back (2.15) with a range of its own, at which decomposing stops; that of `height` remains."""
    for node in exported.graph.nodes:
        for size in getattr(node.meta.get("val"), "shape", ()):
            ranges = size.node.shape_env.var_to_range if isinstance(size, torch.SymInt) else {}
            for product in [one for one in ranges if not one.is_symbol]:
                del ranges[product]


def _part(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give an input that is handed on as an output its own name back: in the graph they are one value, called as the output."""
    copies = {
        place: ir.node("Identity", [value]) for place, value in enumerate(graph.outputs) if value.is_graph_input()
    }
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    for place, copy in copies.items():
        made = copy.outputs[0]
        made.name, made.shape, made.type = outputs[place], graph.outputs[place].shape, graph.outputs[place].type
        graph.append(copy)
        graph.outputs[place] = made


# -------------------------------------------------------------------------------------------------------------------- scripts


def _convert_script(
    program: Program, specs: Sequence[InputSpec], path: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write a script; the names of its inputs and outputs."""
    inputs = script_inputs(program, specs)
    names = tuple(tensor.name for tensor in inputs.inputs)
    shapes = {spec.name: spec.shape for spec in specs if spec.shape is not None}
    frozen = {spec.name: spec.value for spec in specs if spec.value is not None}
    example, answer = first_that_runs(program, inputs, shapes, frozen)
    outputs = names_of(answer)
    _refuse_twins(names, outputs)
    axes = {
        name: {axis: str(size) for axis, size in enumerate(shape) if not isinstance(size, int) or size < 1}
        for name, shape in shapes.items()
    }
    _quietly(
        lambda: torch.onnx.export(
            _plain_script(program, names, answer),
            tuple(example),
            str(path),
            dynamo=False,
            opset_version=SCRIPT_OPSET,
            input_names=list(names),
            output_names=list(outputs),
            dynamic_axes={name: each for name, each in axes.items() if each},
        )
    )
    _restore_unused(path, inputs, axes)
    return names, outputs


def _plain_script(program: Program, names: Sequence[str], answer: Any) -> Any:
    """A script of tensors only around the script: its other arguments keep their defaults, `answer`'s structure becomes a tuple."""
    around = torch.nn.Module()
    around.model = program.module
    made = torch.jit.script(around)
    given = ", ".join(f"{name}={name}" for name in names)
    whole = "_".join(("answer", *names))  # no argument is called so
    parts = ", ".join(f"{whole}{place}" for place in _places(answer))
    made.define(f"def forward(self, {', '.join(names)}):\n    {whole} = self.model({given})\n    return {parts}\n")
    return made.eval()


def _places(answer: Any) -> list[str]:
    """Where the tensors of an answer stand, in the order of `named_outputs`: '' for a tensor, '[0]', "['key'][1]"."""
    if isinstance(answer, torch.Tensor):
        return [""]
    parts = answer.items() if isinstance(answer, Mapping) else enumerate(answer)
    return [f"[{key!r}]{inner}" for key, value in parts for inner in _places(value)]


def _restore_unused(path: Path, inputs: Signature, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Inputs that no answer depends on, which the exporter leaves out: callers give them all the same."""
    model = onnx.load(str(path), load_external_data=False)
    exported = {value.name: value for value in onnx_model.inputs(model.graph)}
    if len(exported) == len(inputs.inputs):
        return
    values = []
    for tensor in inputs.inputs:
        shape = [axes[tensor.name].get(axis, size) for axis, size in enumerate(tensor.shape)]
        made = onnx.helper.make_tensor_value_info(tensor.name, BY_V2[tensor.dtype].onnx, shape)
        values.append(exported.get(tensor.name, made))
    del model.graph.input[:]
    model.graph.input.extend(values)
    onnx.save(model, str(path))


# ----------------------------------------------------------------------------------------------------------------- what came out


def _quietly(export: Callable[[], Any]) -> None:
    """Run an exporter. Raises ConversionError: UnsupportedOperator naming it, UnsupportedModel."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            export()
    except Exception as error:
        faults = [_plain_text(fault) for fault in _chain(error)]
        text = " ".join(faults)
        log.info("the export failed", exc_info=True)
        operator = _operator(text)
        if operator is not None:
            message = f"the model uses {operator}, for which PyTorch's exporter has no ONNX operator"
            raise ConversionError(message, reason=Reason.UNSUPPORTED_OPERATOR) from error
        # The first of the chain is how to report a fault to PyTorch's authors; the last is the fault.
        message = f"PyTorch's exporter could not write the model as ONNX: {clip(faults[-1], 350)}"
        raise ConversionError(message, reason=Reason.UNSUPPORTED_MODEL) from error


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _plain_text(error: BaseException) -> str:
    """An exception's words on one line, without the terminal's colours."""
    return " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split()) or type(error).__name__


def _operator(text: str) -> str | None:
    """The operator that an exporter's message says it does not know."""
    patterns = (
        r"[Ee]xporting the operator '([\w:.]+)' to ONNX opset version \d+ is not supported",
        r"No (?:ONNX function|decompositions registered|Decompositions).*?<OpOverload\(op='([\w:.]+)'",
        r"ONNX export failed on (?:an operator with unrecognized namespace|operator) ([\w:.]+)",
    )
    matches = (re.search(pattern, text) for pattern in patterns)
    return next((match[1].replace("::", ".") for match in matches if match is not None), None)


def _check(path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], opset: int) -> None:
    """Names, and the opset, are the ones asked for. Raises ConversionError."""
    model = onnx.load(str(path), load_external_data=False)
    names = [value.name for value in onnx_model.inputs(model.graph)]
    if names != list(inputs):
        message = f"the exported graph has the inputs {names}, the model {list(inputs)}"
        raise ConversionError(message, reason=Reason.UNSUPPORTED_MODEL)
    names = [value.name for value in model.graph.output]
    if names != list(outputs):
        message = f"the exported graph has the outputs {names}, the model {list(outputs)}"
        raise ConversionError(message, reason=Reason.UNSUPPORTED_MODEL)
    if onnx_model.opset(model) != opset:
        message = f"expected opset {opset}, PyTorch's exporter wrote {onnx_model.opset(model)}"
        raise ConversionError(message, reason=Reason.UNSUPPORTED_OPSET)
