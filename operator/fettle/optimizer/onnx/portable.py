"""The steps from a source to the portable form: only standard operators, folded and fused, with unchanged outputs.

Each step is a function from a model to a model without guarantees: `prepare` runs the result and keeps it only if the outputs stay equal. A step
that does not apply returns its argument. If a library fails, its exception is raised.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import inliner, numpy_helper, shape_inference, version_converter

from fettle.api.reasons import Reason
from fettle.api.signature import BY_ONNX
from fettle.api.source import InputSpec
from fettle.errors import SourceError
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx.fuse import hard_swish
from fettle.optimizer.onnx.loops import free_loops, lighten_loops
from fettle.optimizer.onnx.stft import convolve_stft

# Fusions of the common folding step need LayerNormalization (17) and Gelu (20).
WANTED_OPSETS = (21, 17, 13)
RAISE_BELOW = 17
GROWTH_LIMIT = (2.0, 16 << 20)  # folding may not make a file larger than this factor plus these bytes
REVISION = 4  # of the steps and of what is found out about their result, for every format: raise it when they change


@dataclass(frozen=True)
class Step:
    """A change of the graph. The first of `attempts` that leaves the outputs unchanged is used."""

    name: str
    attempts: tuple[Callable[[onnx.ModelProto], onnx.ModelProto], ...]


def steps(model: onnx.ModelProto) -> list[Step]:
    """The steps for a model whose inputs and outputs are plain tensors."""
    wanted = [
        Step("inline functions", (inline_functions,)),
        Step("drop initializers from inputs", (drop_initializer_inputs,)),
    ]
    if onnx_model.opset(model) < RAISE_BELOW:
        wanted.append(Step("raise the opset", tuple(_converter(version) for version in WANTED_OPSETS)))
    if not onnx_model.external_files(model):  # it would write the weights into one file, and no such file holds 2 GiB
        wanted.append(Step("fold and fuse", (fold_and_fuse,)))
    wanted.append(Step("fuse HardSwish", (hard_swish,)))
    wanted.append(Step("run STFT as a convolution", (convolve_stft,)))
    wanted.append(Step("lighten loops", (lighten_loops, free_loops)))
    wanted.append(Step("infer shapes", (infer_shapes,)))
    return wanted


def _converter(version: int) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    return lambda model: convert_opset(model, version)


# ------------------------------------------------------------------------------------------------------------- the boundary


def strip_zip_map(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove ZipMap nodes (scikit-learn's sequence of maps): their input, the probabilities, becomes the output of the same name.

    The columns are the classes in the order of the removed node's labels, which is the order of the classifier's classes.
    """
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "ZipMap"}
    wanted = [value for value in model.graph.output if value.name in made]
    if not wanted:
        return model
    changed = deepcopy(model)
    graph = changed.graph
    for value in graph.output:
        node = made.get(value.name)
        if node is None:
            continue
        labels = next((len(a.ints) or len(a.strings) for a in node.attribute if a.name.startswith("classlabels")), 0)
        batch = next((size or name or None for size, name in _first_dimension(graph)), None)
        index = next(i for i, one in enumerate(graph.node) if one.output and one.output[0] == value.name)
        source = graph.node[index].input[0]
        del graph.node[index]
        # The name of the output stays: callers know it.
        graph.node.append(
            onnx.helper.make_node("Identity", [source], [value.name], name=f"{value.name}_without_ZipMap")
        )
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, [batch, labels or None]))
    return changed


def _first_dimension(graph: onnx.GraphProto) -> list[tuple[int, str]]:
    """Size (0: varies) and name of the first input's first dimension."""
    values = onnx_model.inputs(graph)
    axes = onnx_model.dimensions(values[0]) if values else []
    return [(max(size, 0), name) for size, name in axes[:1]]


def require_inputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Remove the default values of these inputs, so that they become required inputs."""
    if not names:
        return model
    changed = deepcopy(model)
    graph = changed.graph
    declared = {value.name: value for value in graph.input}
    for tensor in list(graph.initializer):
        if tensor.name in names:
            if not onnx_model.has_rank(declared[tensor.name]):
                whole = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                declared[tensor.name].CopyFrom(whole)
            graph.initializer.remove(tensor)
    for sparse in list(graph.sparse_initializer):
        if sparse.values.name in names:
            graph.sparse_initializer.remove(sparse)
    return changed


def freeze_inputs(model: onnx.ModelProto, specs: Sequence[InputSpec]) -> onnx.ModelProto:
    """Turn inputs with a `value` into constants. Raises SourceError if the shape of such an input varies."""
    frozen = {spec.name: spec.value for spec in specs if spec.value is not None}
    if not frozen:
        return model
    changed = deepcopy(model)
    for value in list(changed.graph.input):
        if value.name not in frozen:
            continue
        sizes = [size for size, _ in onnx_model.dimensions(value)]
        if any(size < 0 for size in sizes[1:]) or (sizes and sizes[0] < 0):
            message = f"source.inputs freezes {value.name!r}, whose shape varies: set its shape as well"
            raise SourceError(message, reason=Reason.INVALID_SPEC)
        row = BY_ONNX[value.type.tensor_type.elem_type]
        array = np.full(sizes, frozen[value.name], dtype=row.numpy)
        changed.graph.initializer.append(numpy_helper.from_array(array, value.name))
        changed.graph.input.remove(value)
    return changed


def lower(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """`model` with an opset and IR version that the runtime can read."""
    changed = (
        convert_opset(model, version)
        if onnx_model.opset(model) > version
        else onnx.ModelProto.FromString(model.SerializeToString())
    )
    changed.ir_version = min(changed.ir_version, onnx_model.READABLE_IR)
    return changed


# ---------------------------------------------------------------------------------------------------------------- the steps


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace calls of the model's own functions by their bodies, because later steps only know operators."""
    return inliner.inline_local_functions(model) if model.functions else model


def drop_initializer_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove weights from the list of inputs, where old files have them, so that they can be folded."""
    kept = onnx_model.inputs(model.graph)
    if len(kept) == len(model.graph.input):
        return model
    changed = deepcopy(model)
    del changed.graph.input[:]
    changed.graph.input.extend(kept)
    changed.ir_version = max(changed.ir_version, onnx_model.FREE_INITIALIZERS_IR)
    return changed


def convert_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """`model` with the standard operators of `version`, and the matching IR version."""
    if onnx_model.opset(model) == version:
        return model
    changed: onnx.ModelProto = version_converter.convert_version(model, version)
    changed.ir_version = onnx_model.ir_version_for(version)
    return changed


def fold_and_fuse(model: onnx.ModelProto) -> onnx.ModelProto:
    """Apply ONNX Runtime's basic optimizations offline: fold constants, `If`, and BatchNormalization into Conv; fuse GELU and LayerNormalization.

    Returns the argument if the result would not be portable (it has operators of another domain, or is larger), and for quantized graphs (their
    Q/DQ pairs must stay) and half-precision graphs (the library adds casts to float32).
    """
    if is_quantized(model) or has_half_precision(model):
        return model
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory(prefix="fettle-fold-") as folder:
        path = Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        changed = onnx.load(str(path))
    before = {node.domain for node in onnx_model.nodes(model)}
    used = {node.domain for node in onnx_model.nodes(changed)}
    factor, extra = GROWTH_LIMIT
    if used - before - onnx_model.STANDARD_DOMAINS or changed.ByteSize() > factor * model.ByteSize() + extra:
        return model
    _tidy(changed, model, used)
    return changed


def _tidy(changed: onnx.ModelProto, before: onnx.ModelProto, used: set[str]) -> None:
    """Restore what saving an optimized graph lost or added: names of nodes, only the opsets that it uses, its own metadata."""
    kept = [
        entry for entry in changed.opset_import if entry.domain in used or entry.domain in onnx_model.STANDARD_DOMAINS
    ]
    imports = [onnx.helper.make_opsetid(entry.domain, entry.version) for entry in kept]
    del changed.opset_import[:]
    changed.opset_import.extend(imports)
    changed.producer_name, changed.producer_version = before.producer_name, before.producer_version
    del changed.metadata_props[:]
    changed.metadata_props.extend(before.metadata_props)
    name_nodes(changed.graph)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a unique name, because quantizers and profiles identify nodes by name."""
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


def fix_sizes(model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """`model` with these sizes of inputs where its own vary and these do not (-1), and with all shapes that follow."""
    changed = deepcopy(model)
    fixed = 0
    for value in onnx_model.inputs(changed.graph):
        for axis, size in zip(value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False):
            if size > 0 >= axis.dim_value:
                axis.dim_value = size
                fixed += 1
    if not fixed:
        return model
    del changed.graph.value_info[:]
    return infer_shapes(changed)


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the shapes of inner tensors, as far as they can be inferred."""
    changed: onnx.ModelProto = shape_inference.infer_shapes(model, data_prop=True)
    name_nodes(changed.graph)
    return changed


# ----------------------------------------------------------------------------------------------------------------- questions

_QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QuantizeLinear",
    }
)


def quantized_operators(model: onnx.ModelProto) -> frozenset[str]:
    """The operators that compute in integers, or whose weights are stored as integers."""
    used = {node.op_type for node in onnx_model.nodes(model)}
    return frozenset(kind for kind in used if kind in _QUANTIZED or kind.startswith("QLinear"))


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether any part of the model already computes in integers, or stores weights as integers."""
    return bool(quantized_operators(model))


def has_half_precision(model: onnx.ModelProto) -> bool:
    """Whether weights or inputs are 16-bit floats."""
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    stored = (tensor.data_type for graph in onnx_model.graphs(model.graph) for tensor in graph.initializer)
    given = (value.type.tensor_type.elem_type for value in model.graph.input)
    return any(kind in half for kind in (*stored, *given))
