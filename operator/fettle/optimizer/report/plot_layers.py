"""The error of each group of layers in lower precision, as it was measured to choose those that keep a higher one."""

from __future__ import annotations

from collections.abc import Sequence

from fettle.api.report import LayerError
from fettle.api.text import clip, joined
from fettle.optimizer.report.plot import GOOD, PLAIN, panels, svg
from fettle.optimizer.report.text import number

WIDTH, ROW = 5.6, 0.24  # inches
LEAST = 1e-6  # tolerances: less is drawn as that, because the axis is logarithmic
NAME = 40  # characters


def errors(name: str, layers: Sequence[LayerError]) -> str:
    """A bar for each group of layers, the most sensitive on top."""
    from matplotlib.patches import Patch

    canvas, (axes,) = panels(WIDTH, (0.9 + ROW * len(layers),))
    rows = range(len(layers))
    lengths = [max(layer.error, LEAST) for layer in layers]
    axes.barh(rows, lengths, color=[GOOD if layer.kept else PLAIN for layer in layers], height=0.7)
    # Names come from the model: `$` in one begins no formula.
    axes.set_yticks(rows, [clip(layer.name, NAME) for layer in layers], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("error if it alone is in lower precision, in tolerances (RMS)")
    meanings = ((GOOD, "kept in higher precision"), (PLAIN, "in lower precision"))
    axes.legend(handles=[Patch(color=colour, label=label) for colour, label in meanings], frameon=False, fontsize=9)
    worst, kept = layers[0], [layer.name for layer in layers if layer.kept]
    return svg(
        canvas,
        f"Error by layer of {name}: {worst.name} moves the answers most if it alone is in lower precision, by {number(worst.error)} "
        f"tolerances; of these, in higher precision: {joined(kept) if kept else 'none'}",
    )
