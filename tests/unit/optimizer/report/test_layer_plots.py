"""The error of each layer in the report, where mixed precision ranked them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.optimizer.report.run_of_digits import BUILD, fill, open_store, published

from fettle.api.report import BuildReport, LayerError
from fettle.optimizer.report import plot_layers

LAYERS = (
    LayerError(name="Conv.6 <b>", layers=3, error=41.5, kept=True),
    LayerError(name="Conv.2", layers=1, error=0.25, kept=False),
    LayerError(name="Gemm.1", layers=2, error=0.0, kept=False),
)


def test_the_report_draws_the_error_of_each_layer_and_says_which_stay_in_floating_point(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    fill(store, tmp_path / "model")
    assert "Error by layer" not in published(store)
    build = store.result(BUILD)
    assert isinstance(build, BuildReport)
    store.put_result(BUILD, build.model_copy(update={"name": "int8-mixed-openvino", "layers": LAYERS}))
    page = published(store)
    (told,) = re.findall(r'aria-label="(Error by layer [^"]*)"', page)
    assert (
        "int8-mixed-openvino: Conv.6 &lt;b&gt; moves the answers most if it alone is in lower precision, by 41.5 tolerances"
        in told
    )
    assert "in higher precision stay Conv.6 &lt;b&gt;" in told
    assert "<b>" not in page.split("Error by layer")[1]


def test_each_layer_has_a_bar_and_every_colour_is_the_pages() -> None:
    drawn = plot_layers.errors("int8-mixed-openvino", LAYERS)
    for label in ("Conv.2", "Gemm.1", "floating point", "int8", "in tolerances (RMS)"):
        assert label in drawn
    assert "#0a0b" not in drawn
