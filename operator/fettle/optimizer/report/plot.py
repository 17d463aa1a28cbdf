"""The report's plots, as SVG with colours from the page, so that they are readable in light and dark mode."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fettle.api.measured import Interval
from fettle.optimizer.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that matplotlib can draw; each becomes a variable of the page's style sheet.
INK, FAINT, GOOD, BAD, PLAIN, BASE = "#0a0b0c", "#0a0b1c", "#0a0b2c", "#0a0b3c", "#0a0b4c", "#0a0b5c"
VARIABLES = {INK: "ink", FAINT: "faint", GOOD: "good", BAD: "bad", PLAIN: "plain", BASE: "base"}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched, and has the page's font
    "svg.hashsalt": "fettle",  # the same figures give the same file
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Point:
    """A candidate in the plots. `kind`: selected, passed, rejected or original. `label` is its number in the table."""

    label: str
    kind: str
    name: str
    milliseconds: Interval | None
    drop: Interval | None
    speedup: Interval | None


LINE = 10  # points from one line of numbers to the next
PER_LINE = 4  # numbers in a line of a label
RIGHT = 0.75  # share of the plot's width from which a label stands to the left of its mark
PLACES = ((7, 5), (-7, 5), (-7, -14), (7, -14))
MARKERS: dict[str, tuple[str, str, int]] = {
    "selected": ("*", GOOD, 190),
    "passed": ("o", PLAIN, 48),
    "rejected": ("X", BAD, 52),
    "pruned": ("x", PLAIN, 40),
    "original": ("D", BASE, 52),
}
LEGEND = {
    "selected": "published",
    "passed": "passed, not preferred",
    "rejected": "rejected",
    "pruned": "rejected early",
    "original": "the original",
}


def pareto(points: Sequence[Point], drop_label: str, max_drop: float | None, percent: bool) -> str | None:
    """Latency against accuracy drop, with intervals, and the bound as a line. None if nothing can be drawn.

    Candidates that were rejected by the quick timing have a latency but no drop: they are drawn on the axis.
    """
    drawn = [point for point in points if point.milliseconds is not None and point.drop is not None]
    if not drawn:
        return None
    factor = 100.0 if percent else 1.0
    canvas, axes = figure(5.6, 4.0)
    top, bottom = _window(drawn, max_drop, factor)
    for point, place in zip(drawn, _places(drawn, 0.12 * top / factor), strict=True):
        _draw(axes, point, factor, top, place)
    if max_drop is not None:
        axes.axhline(max_drop * factor, color=BAD, linewidth=1, linestyle=(0, (5, 4)))
        axes.annotate(
            f"allowed: {number(max_drop * factor)}",
            (1, max_drop * factor),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color=BAD,
            fontsize=9,
        )
    axes.set_ylim(bottom, top)
    unjudged = [point for point in points if point.milliseconds is not None and point.drop is None]
    latencies = [point.milliseconds for point in (*drawn, *unjudged) if point.milliseconds is not None]
    logarithmic(axes, min(one.low for one in latencies), max(one.high for one in latencies))
    _on_the_axis(axes, unjudged)
    axes.set_xlabel("median latency, ms (less is better)")
    axes.set_ylabel(f"{drop_label} (less is better)")
    _legend(axes, [*drawn, *unjudged])
    told = "; ".join(f"{one.name} {number(_middle(one))} ms" for one in (*drawn, *unjudged))
    return svg(canvas, f"Median latency against {drop_label}, a mark per timed candidate: {told}")


def _draw(axes: Axes, point: Point, factor: float, top: float, place: tuple[int, int]) -> None:
    assert point.milliseconds is not None and point.drop is not None
    marker, colour, area = MARKERS[point.kind]
    x, y = point.milliseconds.value, point.drop.value * factor
    off = y > top
    if off:
        marker, y = "^", top - 0.02 * abs(top)
    else:
        axes.plot([x, x], [point.drop.low * factor, point.drop.high * factor], color=colour, linewidth=1, alpha=0.8)
        axes.plot([point.milliseconds.low, point.milliseconds.high], [y, y], color=colour, linewidth=1, alpha=0.8)
    hollow = point.kind == "original"
    axes.scatter(
        [x],
        [y],
        marker=marker,
        s=area,
        color="none" if hollow else colour,
        edgecolors=colour,
        linewidths=1.4,
        zorder=3,
        clip_on=False,
    )
    text = f"{point.label} ({number(point.drop.value * factor)})" if off else point.label
    axes.annotate(
        text,
        (x, y),
        xytext=place,
        textcoords="offset points",
        fontsize=9,
        color=INK,
        zorder=5,
        ha="right" if place[0] < 0 else "left",
    )


def _on_the_axis(axes: Axes, points: Sequence[Point]) -> None:
    """Marks for latencies without a drop; numbers of marks that are too close together share one label, and labels never overlap."""
    written: list[Any] = []
    for near in _side_by_side(points):
        for point in near:
            marker, colour, area = MARKERS[point.kind]
            where = axes.get_xaxis_transform()
            axes.scatter(
                [_middle(point)], [0.035], transform=where, marker=marker, s=area * 0.7, color=colour, zorder=3
            )
        x = _middle(near[-1])
        beyond = axes.transAxes.inverted().transform(axes.transData.transform((x, 0)))[0] > RIGHT
        label = axes.annotate(
            _numbers(near),
            (x, 0.035),
            xycoords=("data", "axes fraction"),
            xytext=PLACES[1] if beyond else PLACES[0],
            textcoords="offset points",
            ha="right" if beyond else "left",
            fontsize=9,
            color=INK,
        )
        while any(label.get_window_extent().overlaps(other) for other in written):
            label.set_position((label.get_position()[0], label.get_position()[1] + LINE))
        written.append(label.get_window_extent())


def _numbers(points: Sequence[Point]) -> str:
    """The numbers of marks that share a label, in lines that are not wider than the plot has room for."""
    numbers = [point.label for point in points]
    lines = [", ".join(numbers[start : start + PER_LINE]) for start in range(0, len(numbers), PER_LINE)]
    return ",\n".join(lines)


def _side_by_side(points: Sequence[Point]) -> list[list[Point]]:
    """Points in groups of about the same latency, the fastest first."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=_middle):
        if groups and _middle(point) < 1.08 * _middle(groups[-1][-1]):
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _places(points: Sequence[Point], reach: float) -> list[tuple[int, int]]:
    """Where each label goes, in points from its mark. Labels of marks that are close together (drops no further apart than
    `reach`) point away from each other."""
    order = sorted(range(len(points)), key=lambda index: _middle(points[index]))
    span = math.log(max(map(_middle, points)) / min(map(_middle, points))) or 1.0
    clusters = [[order[0]]]
    for before, index in pairwise(order):
        beside = math.log(_middle(points[index]) / _middle(points[before])) < 0.06 * span
        if beside and abs(_lost(points[index]) - _lost(points[before])) < reach:
            clusters[-1].append(index)
        else:
            clusters.append([index])
    places = [PLACES[0]] * len(points)
    for cluster in clusters:
        for turn, index in enumerate(cluster[:-1]):
            places[index] = PLACES[1 + turn % 3]
    return places


def _lost(point: Point) -> float:
    return point.drop.value if point.drop is not None else 0.0


def _middle(point: Point) -> float:
    return point.milliseconds.value if point.milliseconds is not None else 1.0


def _window(points: Sequence[Point], max_drop: float | None, factor: float) -> tuple[float, float]:
    """Top and bottom of the drop axis: drops near the bound fill the plot, drops far beyond it are marked at the upper edge."""
    drops = [point.drop for point in points if point.drop is not None]
    highs, lows = [one.high * factor for one in drops], [one.low * factor for one in drops]
    bound = (max_drop or 0) * factor
    passing = [point.drop.high * factor for point in points if point.drop is not None and point.kind != "rejected"]
    enough = max([3 * bound, *(1.3 * high for high in passing)], default=0)
    top = min(1.12 * max(highs), enough) if enough > 0 else 1.12 * max(highs)
    top = max(top, 1.2 * bound, 1e-9)
    bottom = min(0.0, *lows)
    return top, max(bottom, -top) - 0.08 * top


def logarithmic(axes: Axes, low: float, high: float) -> None:
    """The axis of latencies from `low` to `high`: logarithmic if they differ a lot, with plain numbers.

    A time of 0 (less than the clock's resolution) cannot be drawn on a logarithmic axis.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if 0 < 8 * low < high:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.25, high * 1.4)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    else:
        room = 0.12 * (high - low) or 0.2 * high
        axes.set_xlim(max(0.0, low - room), high + room)
        axes.xaxis.set_major_locator(MaxNLocator(7))


def _legend(axes: Axes, points: Sequence[Point]) -> None:
    for kind in MARKERS:
        if any(point.kind == kind for point in points):
            marker, colour, area = MARKERS[kind]
            axes.scatter([], [], marker=marker, s=area * 0.6, color=colour, label=LEGEND[kind])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=3, frameon=False, fontsize=9, handletextpad=0.2)


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A plot of that size in inches, in the page's own colours and type."""
    canvas, (axes,) = panels(width, (height,))
    return canvas, axes


def panels(width: float, heights: Sequence[float]) -> tuple[Figure, tuple[Axes, ...]]:
    """Plots above each other that have their horizontal axis in common."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(STYLE)  # this process does nothing else with matplotlib
    canvas = Figure(figsize=(width, sum(heights)), layout="constrained")
    canvas.patch.set_alpha(0)
    drawn = canvas.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes in drawn:
        axes.patch.set_alpha(0)
        axes.grid(visible=True, color=FAINT, linewidth=0.5, alpha=0.5)
        axes.set_axisbelow(True)
    return canvas, tuple(drawn)


def svg(drawn: Figure, title: str) -> str:
    """The figure as an <svg> element whose colours are the page's variables."""
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    # The page scales it; a fixed width would not fit a phone.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
