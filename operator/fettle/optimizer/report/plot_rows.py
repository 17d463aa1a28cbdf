"""Plots with a row per candidate: speed-up, accuracy drop, spread of the times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fettle.api.measured import Interval
from fettle.api.report import Distribution
from fettle.optimizer.report.plot import BAD, FAINT, MARKERS, Point, figure, logarithmic, svg
from fettle.optimizer.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 5.6  # inches: as wide as half a page, so that its type is of the page's size
ROW = 0.36


def speedups(points: Sequence[Point], beside: str) -> str | None:
    """Speed-up of each candidate over `beside`, with its interval, the fastest on top. None if there are none."""
    drawn = _fastest_last([point for point in points if point.speedup is not None])
    if not drawn:
        return None
    canvas, axes = figure(WIDTH, 0.9 + ROW * len(drawn))
    for row, point in enumerate(drawn):
        assert point.speedup is not None
        _interval(axes, row, point, point.speedup, 1.0)
    axes.axvline(1, color=FAINT, linewidth=1, linestyle=(0, (5, 4)))
    _names(axes, drawn)
    axes.set_xlabel(f"times as fast as {beside} (more is better)")
    told = "; ".join(f"{p.name} {number(p.speedup.value)} times" for p in reversed(drawn) if p.speedup)
    return svg(canvas, f"Speed-up of every timed candidate with its 95 % interval: {told}")


def drops(points: Sequence[Point], label: str, max_drop: float | None, percent: bool) -> str | None:
    """The drop of each candidate, with its interval and the bound, in the order of `speedups`. None if there are none.

    A drop far beyond the bound is marked at the edge, so that the others fill the plot.
    """
    drawn = _fastest_last([point for point in points if point.drop is not None])
    if not drawn:
        return None
    factor = 100.0 if percent else 1.0
    edge = _edge([point.drop for point in drawn if point.drop is not None], max_drop) * factor
    canvas, axes = figure(WIDTH, 0.9 + ROW * len(drawn))
    for row, point in enumerate(drawn):
        assert point.drop is not None
        _drop(axes, row, point, point.drop, factor, edge)
    axes.axvline(0, color=FAINT, linewidth=1, linestyle=(0, (5, 4)))
    if max_drop is not None:
        _bound(axes, max_drop * factor, f"allowed: {number(max_drop * factor)}")
    lowest = min(0.0, *(point.drop.low * factor for point in drawn if point.drop is not None))
    axes.set_xlim(max(lowest, -edge) - 0.05 * edge, edge * 1.08)
    _names(axes, drawn)
    axes.set_xlabel(label)
    told = "; ".join(f"{p.name} {number(p.drop.value * factor)}" for p in reversed(drawn) if p.drop)
    return svg(canvas, f"{label} of every judged candidate with its interval: {told}")


def spreads(points: Sequence[Point], distributions: Mapping[str, Distribution], bound: float | None) -> str | None:
    """The spread of the times of single runs: line from p1 to p99, box from p25 to p75, mark at the median. None without runs.

    `distributions` holds the distributions by candidate; `bound` is the allowed latency in milliseconds.
    """
    drawn = [point for point in points if point.name in distributions]
    drawn.sort(key=lambda point: -distributions[point.name].milliseconds[50])
    if not drawn:
        return None
    canvas, axes = figure(WIDTH, 0.9 + ROW * len(drawn))
    for row, point in enumerate(drawn):
        times = distributions[point.name].milliseconds
        marker, colour, area = MARKERS[point.kind]
        axes.plot([times[1], times[99]], [row, row], color=colour, linewidth=1.2)
        axes.plot([times[25], times[75]], [row, row], color=colour, linewidth=8, alpha=0.35, solid_capstyle="butt")
        axes.scatter([times[50]], [row], marker=marker, s=area * 0.6, color=colour, zorder=3)
    ends = [distributions[point.name].milliseconds for point in drawn]
    logarithmic(axes, min(times[1] for times in ends), max(times[99] for times in ends))
    if bound is not None and axes.get_xlim()[0] <= bound <= axes.get_xlim()[1]:
        _bound(axes, bound, f"allowed: {number(bound)}")
    _names(axes, drawn)
    axes.set_xlabel("time of a single run, ms (less is better)")
    told = "; ".join(f"{p.name} median {number(distributions[p.name].milliseconds[50])} ms" for p in reversed(drawn))
    return svg(canvas, f"Spread of the times of single runs, from the 1st to the 99th percentile: {told}")


def _bound(axes: Axes, value: float, text: str) -> None:
    axes.axvline(value, color=BAD, linewidth=1, linestyle=(0, (5, 4)))
    axes.annotate(
        text,
        (value, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        color=BAD,
        fontsize=9,
    )


def _fastest_last(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.speedup.value if point.speedup else 0)


def _interval(axes: Axes, row: int, point: Point, interval: Interval, factor: float) -> None:
    marker, colour, area = MARKERS[point.kind]
    axes.plot([interval.low * factor, interval.high * factor], [row, row], color=colour, linewidth=2)
    axes.scatter([interval.value * factor], [row], marker=marker, s=area * 0.7, color=colour, zorder=3)


def _drop(axes: Axes, row: int, point: Point, lost: Interval, factor: float, edge: float) -> None:
    if lost.value * factor <= edge:
        _interval(axes, row, point, lost, factor)
        return
    colour = MARKERS[point.kind][1]
    axes.scatter([edge], [row], marker=">", s=44, color=colour, zorder=3)
    text = number(lost.value * factor)
    axes.annotate(text, (edge, row), xytext=(-8, -3), textcoords="offset points", ha="right", fontsize=9, color=colour)


def _edge(drops: Sequence[Interval], max_drop: float | None) -> float:
    highest = max(one.high for one in drops)
    if max_drop is None or max_drop <= 0:
        return highest or 0.01
    return min(max(highest, 1.2 * max_drop), 3 * max_drop)


def _names(axes: Axes, drawn: Sequence[Point]) -> None:
    axes.set_yticks(range(len(drawn)), [f"{point.name}  {point.label}" for point in drawn])
    axes.set_ylim(-0.6, len(drawn) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
