"""Weights of matrix products in 8 or 4 bits, with ONNX Runtime's MatMulNBits: blocks of weights share a scale, and no calibration is needed.

The operator rounds activations to 8 bits while it multiplies (accuracy level 4), each block by a range of its own, so that no item depends on
another. With float32 activations it would first write all weights in float32, which is slower than never to have quantized them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container
from itertools import count
from pathlib import Path

import onnx
from onnxruntime.quantization import matmul_nbits_quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel

from fettle.api.recipe import QuantizeStep
from fettle.errors import RecipeError
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx import portable
from fettle.optimizer.steps import Work
from fettle.optimizer.steps.onnx_scope import before_recurrent

PRODUCTS = ("MatMul", "Gemm")
BLOCK = 64  # weights of a column that share a scale; with 32, products of many rows take longer
_MULTIPLIED = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
ROUNDED_ACTIVATIONS = 4  # MatMulNBits: accuracy_level


def int8(work: Work[QuantizeStep]) -> Path:
    """Weights in 8 bits. Raises RecipeError."""
    return _compressed(work, 8)


def int4(work: Work[QuantizeStep]) -> Path:
    """Weights in 4 bits. Raises RecipeError."""
    return _compressed(work, 4)


def _compressed(work: Work[QuantizeStep], bits: int) -> Path:
    model = _loaded(work)
    if portable.is_quantized(model):
        raise RecipeError("the model is already quantized")
    asked = work.step.operators or PRODUCTS
    kinds = {node.op_type for node in model.graph.node}
    if not kinds & set(asked) & set(PRODUCTS):
        raise RecipeError(f"the model has no {', '.join(asked)} whose weights could be quantized")
    for body in onnx_model.graphs(model.graph):
        portable.name_nodes(body)
    _own_weights(model.graph)
    others = [node.name for node in onnx_model.nodes(model) if node.op_type == "MatMul" and "MatMul" not in asked]
    changed = ONNXModel(model)
    if "Gemm" in asked:
        changed.replace_gemm_with_matmul()  # the quantizer only knows MatMul
    logging.getLogger(matmul_nbits_quantizer.__name__).setLevel(logging.WARNING)  # it names every node
    quantizer = MatMulNBitsQuantizer(
        changed.model,
        bits=bits,
        block_size=BLOCK,
        is_symmetric=True,
        accuracy_level=ROUNDED_ACTIVATIONS,
        nodes_to_exclude=[*others, *_other_types(changed.model.graph), *before_recurrent(changed.model.graph)],
    )
    quantizer.process()
    made = quantizer.model.model
    if not any(node.op_type == "MatMulNBits" for node in onnx_model.nodes(made)):
        raise RecipeError(
            f"no {' or '.join(asked)} in this model multiplies by stored weights, so there are none to quantize"
        )
    target = work.folder / "model.onnx"
    onnx_model.save(made, target, work.entry.parent, link=False)
    return target


def _loaded(work: Work[QuantizeStep]) -> onnx.ModelProto:
    """The model with all its weights, also those that are so large that they stay in other files everywhere else."""
    model = onnx_model.load(work.entry)
    if not onnx_model.external_files(model):
        return model
    copy = work.folder / "work" / "model.onnx"
    copy.parent.mkdir(parents=True)
    onnx_model.save(model, copy, work.entry.parent, link=False)
    whole: onnx.ModelProto = onnx.load(str(copy))
    return whole


def _own_weights(graph: onnx.GraphProto) -> None:
    """Give each product, in branches and loop bodies as well, a weight that nothing else reads, and after which nothing else is called.

    The tools transpose and replace weights as if no other node read them, and call what they make after them.
    """
    bodies = list(onnx_model.graphs(graph))
    stored = {tensor.name: (tensor, body) for body in bodies for tensor in body.initializer}
    uses = Counter(name for body in bodies for node in body.node for name in node.input)
    uses.update(value.name for body in bodies for value in body.output)
    taken = {*stored, *uses, *(name for body in bodies for node in body.node for name in node.output)}
    for node in [node for body in bodies for node in body.node if node.op_type in PRODUCTS]:
        name = node.input[1]
        if name not in stored or (uses[name] == 1 and _free(name, taken)):
            continue
        own, owner = stored[name]
        if uses[name] > 1:
            uses[name] -= 1
            own = owner.initializer.add()
            own.CopyFrom(stored[name][0])
        own.name = node.input[1] = next(
            fresh for number in count() if (fresh := f"{name}_{number}") not in taken and _free(fresh, taken)
        )
        taken.add(own.name)


def _free(name: str, taken: Container[str]) -> bool:
    """Whether the tool can call what it makes of this weight as it does."""
    return not any(f"{name}_{end}" in taken for end in ("Q8", "Q4", "scales"))


def _other_types(graph: onnx.GraphProto) -> list[str]:
    """Names of products in numbers that MatMulNBits does not multiply: integers, float64."""
    bodies = list(onnx_model.graphs(graph))
    others = {tensor.name for body in bodies for tensor in body.initializer if tensor.data_type not in _MULTIPLIED}
    return [node.name for body in bodies for node in body.node if node.op_type == "MatMul" and node.input[1] in others]
