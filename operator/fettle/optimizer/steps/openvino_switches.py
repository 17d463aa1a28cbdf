"""A model quantized by NNCF, with a switch at every quantized value: each layer can run in int8 or in float32, in one compiled model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from fettle.optimizer.loss import Infer
from fettle.optimizer.measure.items import Answer
from fettle.runtimes.base import Array
from fettle.runtimes.openvino import PRODUCTS

SWITCHES = "fettle_switches"
SCALED = 0.2  # of a weight's norm: what goes beyond is no rounding to 8 bits
# They hand values on as they are: what is quantized in front of one is for the layer behind it.
PASSING = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "VariadicSplit", "StridedSlice"}
    | {"Slice", "ReduceMax", "ReduceMin", "Pad", "Tile", "ShuffleChannels", "SpaceToDepth", "DepthToSpace", "Relu"}
    | {"Clamp", "Interpolate", "Broadcast", "Gather", "BatchToSpace", "SpaceToBatch"}
)


class OpenVinoSwitches:
    """See `layers.Switches`. `quantized` is modified in place; `original` is the model that it was made from."""

    def __init__(self, quantized: ov.Model, original: ov.Model) -> None:
        self._outputs = {name: place for place, port in enumerate(quantized.outputs) for name in port.get_names()}
        self._users = {fake.get_friendly_name(): _users(fake) for fake in _fakes(quantized)}
        order = [operation.get_friendly_name() for operation in quantized.get_ordered_ops()]
        quantizing = set().union(*self._users.values()) if self._users else set()
        self.layers = tuple(name for name in order if name in quantizing)
        self.products = frozenset(
            operation.get_friendly_name() for operation in quantized.get_ops() if operation.get_type_name() in PRODUCTS
        )
        self._places: dict[str, int] = {}  # fake quantization, or layer with quantized weights -> its switch
        parameter = ops.parameter([-1], np.bool_, name=SWITCHES)
        parameter.get_output_tensor(0).set_names({SWITCHES})
        self._weighted = _weighted(quantized, original, quantizing)
        for fake in _fakes(quantized):
            source, targets = fake.input_value(0), list(fake.output(0).get_target_inputs())
            chosen = ops.select(self._switch(parameter, fake.get_friendly_name()), fake.output(0), source)
            for target in targets:
                target.replace_source_output(chosen.output(0))
        for name, (target, weight) in self._weighted.items():
            chosen = ops.select(
                self._switch(parameter, f"{name}/weight"), target.get_source_output(), ops.constant(weight)
            )
            target.replace_source_output(chosen.output(0))
        quantized.add_parameters([parameter])
        quantized.validate_nodes_and_infer_types()
        hint = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        self._compiled = ov.Core().compile_model(quantized, "CPU", hint)

    def infer(self, quantized: frozenset[str]) -> Infer:
        """See `layers.Switches.infer`."""
        on = np.zeros(len(self._places), np.bool_)
        for name, users in self._users.items():
            on[self._places[name]] = bool(users & quantized)
        for name in self._weighted:
            on[self._places[f"{name}/weight"]] = name in quantized

        def run(feed: Answer) -> dict[str, Array]:
            values = list(self._compiled({**feed, SWITCHES: on}, share_inputs=False, share_outputs=False).values())
            return {name: np.asarray(values[place]) for name, place in self._outputs.items()}

        return run

    def _switch(self, parameter: Any, name: str) -> Any:
        place = self._places.setdefault(name, len(self._places))
        return ops.gather(parameter, ops.constant(np.int64(place)), ops.constant(np.int64(0)))


def _fakes(model: ov.Model) -> list[Any]:
    return [operation for operation in model.get_ordered_ops() if operation.get_type_name() == "FakeQuantize"]


def _users(fake: Any) -> frozenset[str]:
    """Layers that use the value that `fake` quantizes."""
    waiting = _targets(fake)
    seen: set[str] = set()
    users: set[str] = set()
    while waiting:
        operation = waiting.pop()
        name = operation.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if operation.get_type_name() in PASSING:
            waiting.extend(_targets(operation))
        elif operation.get_type_name() not in ("Result", "FakeQuantize", "ShapeOf"):
            users.add(name)
    return frozenset(users)


def _targets(operation: Any) -> list[Any]:
    return [target.get_node() for port in operation.outputs() for target in port.get_target_inputs()]


def _weighted(quantized: ov.Model, original: ov.Model, layers: set[str]) -> dict[str, tuple[Any, Array]]:
    """For each layer, its input for weights and the original weights; without layers whose weights the tool has scaled."""
    before = {operation.get_friendly_name(): operation for operation in original.get_ops()}
    found: dict[str, tuple[Any, Array]] = {}
    for operation in quantized.get_ordered_ops():
        name = operation.get_friendly_name()
        if name not in layers or name not in before or operation.get_type_name() not in PRODUCTS:
            continue
        for place in (0, 1):
            if _is_constant(operation.input_value(place)) and _is_constant(before[name].input_value(place)):
                original_weight = _value(before[name].input_value(place))
                if _alike(_value(operation.input_value(place)), original_weight):
                    found[name] = (operation.input(place), original_weight)
    return found


def products(model: ov.Model, feed: Answer) -> int:
    """The number of multiplications for one answer in layers with weights; 0 if shapes are not known before a run."""
    shaped = model.clone()
    try:
        shaped.reshape({name: list(array.shape) for name, array in feed.items()})
    except RuntimeError:
        return 0
    total = 0
    for operation in shaped.get_ops():
        kind = operation.get_type_name()
        if kind not in PRODUCTS or not all(
            value.get_partial_shape().is_static for value in (*operation.inputs(), operation.output(0))
        ):
            continue
        made = math.prod(operation.output(0).get_shape())
        if kind == "MatMul":
            inner = operation.input(0).get_shape()
            transposed = operation.get_attributes().get("transpose_a", False)
            total += made * (inner[-2 if transposed else -1] if len(inner) > 1 else inner[0])
        else:
            weight = operation.input(1).get_shape()
            into = math.prod(operation.input(0).get_shape()) if "Backprop" in kind else made
            total += into * math.prod(weight) // max(weight[0] * (weight[1] if "Group" in kind else 1), 1)
    return total


def _alike(quantized: Array, weight: Array) -> bool:
    """Whether a quantized weight differs from `weight` only by rounding. SmoothQuant scales weights, and activations by the inverse."""
    if quantized.shape != weight.shape:
        return False
    return float(np.linalg.norm(quantized - weight)) <= SCALED * float(np.linalg.norm(weight))


def _is_constant(value: Any) -> bool:
    """Whether `value` is independent of the model's inputs."""
    waiting, seen = [value.get_node()], set()
    while waiting:
        operation = waiting.pop()
        if operation.get_type_name() in ("Parameter", "ReadValue"):
            return False
        name = operation.get_friendly_name()
        if name not in seen:
            seen.add(name)
            waiting.extend(source.get_node() for source in operation.input_values())
    return True


def _value(value: Any) -> Array:
    node = value.get_node()
    if node.get_type_name() == "Constant":
        return np.asarray(node.data)
    compiled = ov.Core().compile_model(ov.Model([value], []), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled([])[0])
