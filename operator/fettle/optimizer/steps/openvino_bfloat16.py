"""bfloat16 where it holds: what a model loses by it often comes from few layers, such as a spectrum whose logarithm is taken. They stay in float32.

OpenVINO keeps a layer in float32 under a hint of bfloat16 if its conversion to half precision is disabled. The Python interface cannot say so, the
file can. The precision itself stays a setting of the runtime: without it, the file computes in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from fettle.api.recipe import QuantizeStep
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RecipeError
from fettle.optimizer.loss import Infer
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.steps import Work
from fettle.optimizer.steps.layers import Scheme, partly
from fettle.optimizer.steps.openvino_switches import SWITCHES, products
from fettle.runtimes import base
from fettle.runtimes.base import Array
from fettle.runtimes.openvino import PRODUCTS

# As OpenVINO writes it itself: whatever the type of an input is, it is not converted to float16, and neither to bfloat16 (2026.4).
MARK = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
_VARYING = frozenset({"Parameter", "ReadValue"})


def where_it_holds(work: Work[QuantizeStep]) -> Path:
    """The model for OpenVINO, with a mark on the layers that change too many answers in bfloat16. Raises RecipeError."""
    if Precision.BFLOAT16 not in base.get(RuntimeName.OPENVINO).capabilities():
        raise RecipeError("this node's CPU does not compute BFloat16 in hardware")
    # Read once: operations without a name of their own get another one at each reading.
    model = ov.Core().read_model(work.entry)
    scheme = Scheme(
        lambda folder, kept: _saved(model, folder, kept),
        lambda _: Roundings(model.clone()),
        whole="BFloat16 throughout",
        kept_in="float32",
    )
    choice = partly(work, RuntimeName.OPENVINO, lambda feed: products(model, feed), [scheme], Precision.BFLOAT16)
    if not choice.kept:
        raise RecipeError(f"{choice.words}: precision BFloat16 needs no layers in float32")
    return choice.entry


def _saved(model: ov.Model, folder: Path, kept: Sequence[str]) -> Path:
    """The model in OpenVINO's own format, with the layers `kept` marked."""
    entry = folder / "model.xml"
    ov.save_model(model, entry, compress_to_fp16=False)
    tree = ElementTree.parse(entry)
    names = set(kept)
    for layer in tree.iterfind("layers/layer"):
        if layer.get("name") in names:
            known = layer.find("rt_info")
            if known is None:
                known = ElementTree.Element("rt_info")
                layer.insert(next(at for at, part in enumerate(layer) if part.tag in ("input", "output")), known)
            ElementTree.SubElement(known, "attribute", MARK)
    tree.write(entry, encoding="utf-8", xml_declaration=True)
    return entry


class Roundings:
    """See `layers.Switches`: each layer can have its inputs and outputs rounded to bfloat16, in one compiled model. `model` is modified in place."""

    def __init__(self, model: ov.Model) -> None:
        self._outputs = {name: place for place, port in enumerate(model.outputs) for name in port.get_names()}
        rounded = _rounded(model)
        self.layers = tuple(operation.get_friendly_name() for operation, _ in rounded)
        self.products = frozenset(
            operation.get_friendly_name() for operation, _ in rounded if operation.get_type_name() in PRODUCTS
        )
        parameter = ops.parameter([-1], np.bool_, name=SWITCHES)
        parameter.get_output_tensor(0).set_names({SWITCHES})
        for place, (operation, ports) in enumerate(rounded):
            switch = ops.gather(parameter, ops.constant(np.int64(place)), ops.constant(np.int64(0)))
            for port in ports:
                port.replace_source_output(_switched(switch, port.get_source_output()))
            for output in operation.outputs():
                targets = list(output.get_target_inputs())
                # OpenVINO keeps what comes behind the last product in float32.
                if output.get_element_type() == ov.Type.f32 and not any(_is_result(target) for target in targets):
                    value = _switched(switch, output)
                    for target in targets:
                        target.replace_source_output(value)
        model.add_parameters([parameter])
        model.validate_nodes_and_infer_types()
        hint = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        self._compiled = ov.Core().compile_model(model, "CPU", hint)

    def infer(self, quantized: frozenset[str]) -> Infer:
        """See `layers.Switches.infer`."""
        on = np.array([name in quantized for name in self.layers])

        def run(feed: Answer) -> dict[str, Array]:
            values = list(self._compiled({**feed, SWITCHES: on}, share_inputs=False, share_outputs=False).values())
            return {name: np.asarray(values[place]) for name, place in self._outputs.items()}

        return run


def _switched(switch: Any, value: Any) -> Any:
    """`value`, rounded to bfloat16 where the switch is on."""
    return ops.select(switch, ops.convert(ops.convert(value, "bf16"), "f32"), value).output(0)


def _is_result(target: Any) -> bool:
    return bool(target.get_node().get_type_name() == "Result")


def _rounded(model: ov.Model) -> list[tuple[Any, list[Any]]]:
    """Each operation that computes on float32, in the order of computation, with the inputs that a switch may change: those that depend on the
    model's inputs, and weights of products."""
    varying: set[str] = set()
    found: list[tuple[Any, list[Any]]] = []
    for operation in model.get_ordered_ops():
        kind, sources = operation.get_type_name(), [value.get_node() for value in operation.input_values()]
        varies = [source.get_friendly_name() in varying for source in sources]
        if not any(varies) and kind not in _VARYING:
            continue
        varying.add(operation.get_friendly_name())
        ports = [
            port
            for port, changes in zip(operation.inputs(), varies, strict=True)
            if port.get_element_type() == ov.Type.f32 and (changes or kind in PRODUCTS)
        ]
        if ports and not _is_result(operation.input(0)):
            found.append((operation, ports))
    return found
