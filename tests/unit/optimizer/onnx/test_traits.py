"""What a graph says of itself."""

from __future__ import annotations

import pytest
from tests.data import loop_models

from fettle.optimizer.onnx.traits import bounded_lstm


def test_a_layer_behind_another_has_an_input_with_bounds() -> None:
    assert bounded_lstm(loop_models.stacked().graph) == ["second"]


@pytest.mark.parametrize("fault", ["cell", "activation"])
def test_a_cell_and_an_activation_without_bounds_have_none(fault: str) -> None:
    made = loop_models.stacked()
    first = made.graph.node[0]
    if fault == "cell":
        first.output[:] = ["", "", "all0"]
    else:
        first.attribute.add(name="activations", type=8, strings=[b"Sigmoid", b"Tanh", b"Relu"])
    assert bounded_lstm(made.graph) == []
