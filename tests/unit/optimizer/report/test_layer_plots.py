"""The error of each layer in the report, where mixed precision ranked them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.unit.optimizer.report.run_of_digits import BUILD, PREPARE, fill, open_store, published

from fettle.api.report import BuildEntry, BuildReport, LayerError, PrepareReport
from fettle.optimizer.report import plot_layers
from fettle.store.cache import write_build

LAYERS = (
    LayerError(name="Conv.6 <b>", layers=3, error=41.5, kept=True),
    LayerError(name="Conv.2", layers=1, error=0.25, kept=False),
    LayerError(name="Gemm.1", layers=2, error=0.0, kept=False),
)


def test_the_report_draws_the_error_of_each_layer_and_says_which_keep_a_higher_precision(tmp_path: Path) -> None:
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
    assert told.endswith("of these, in higher precision: Conv.6 &lt;b&gt;")
    assert "<b>" not in page.split("Error by layer")[1]


def test_each_layer_has_a_bar_and_every_colour_is_the_pages() -> None:
    drawn = plot_layers.errors("int8-mixed-openvino", LAYERS)
    for label in ("Conv.2", "Gemm.1", "kept in higher precision", "in lower precision", "in tolerances (RMS)"):
        assert label in drawn
    assert "#0a0b" not in drawn


def test_a_run_that_takes_a_build_as_it_is_shows_the_error_of_each_layer_too(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    fill(store, tmp_path / "model")
    prepare, build = store.result(PREPARE), store.result(BUILD)
    assert isinstance(prepare, PrepareReport) and isinstance(build, BuildReport) and build.built is not None
    taken = BuildEntry(name="int8-mixed-openvino", cache_key="5" * 64, built=build.built)
    store.put_result(PREPARE, prepare.model_copy(update={"builds": (*prepare.builds, taken)}))
    write_build(store, taken.cache_key, build.built, LAYERS)
    assert "Error by layer of int8-mixed-openvino: Conv.6 &lt;b&gt; moves the answers most" in published(store)


@pytest.mark.parametrize("name", ["$x^{$", "a$\\frac$b", "$", "%s", "\\n", "名"])
def test_whatever_a_model_calls_its_layers_is_drawn_as_it_is(name: str) -> None:
    assert f">{name}<" in plot_layers.errors("int8-mixed-openvino", [LAYERS[0].model_copy(update={"name": name})])
