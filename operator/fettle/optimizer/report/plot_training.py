"""How trainings went: the score on held-out items after each epoch."""

from __future__ import annotations

from fettle.api.report import TrainingFigures
from fettle.optimizer.report.plot import BASE, FAINT, GOOD, PLAIN, figure, svg
from fettle.optimizer.report.text import number

WIDTH, HEIGHT = 5.6, 2.6  # inches


def curve(name: str, figures: TrainingFigures) -> str | None:
    """Score and loss of a training, epoch by epoch; None where it had no epoch."""
    if len(figures.curve) < 2:
        return None
    canvas, axes = figure(WIDTH, HEIGHT)
    epochs = [row.epoch for row in figures.curve]
    axes.plot(epochs, [row.score for row in figures.curve], color=PLAIN, linewidth=1.4)
    axes.axhline(figures.original_score, color=BASE, linewidth=1, linestyle=(0, (5, 4)))
    axes.axvline(figures.best, color=FAINT, linewidth=1)
    axes.scatter([figures.best], [figures.score], marker="*", s=150, color=GOOD, zorder=3, clip_on=False)
    axes.set_xlabel("epoch (the star is the epoch that was used, the dashed line is the original)")
    axes.set_ylabel("held-out score")
    last = figures.curve[-1]
    return svg(
        canvas,
        f"Held-out score of {name} by epoch: {number(figures.curve[0].score)} before training, {number(figures.score)} in epoch "
        f"{figures.best}, {number(last.score)} in epoch {last.epoch}; the original {number(figures.original_score)}",
    )
