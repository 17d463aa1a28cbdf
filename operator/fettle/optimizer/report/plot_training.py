"""How trainings went, epoch by epoch: the score on held-out items, the losses, the learning rate, and where and why each ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fettle.api.report import TrainingFigures
from fettle.optimizer.report.plot import BAD, BASE, FAINT, GOOD, INK, PLAIN, panels, svg
from fettle.optimizer.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 5.6  # inches
SCORE, LOSS, RATE = 2.4, 1.6, 1.1  # heights of the three plots


def curve(name: str, figures: TrainingFigures) -> str | None:
    """What a training did in each epoch; None where it had none."""
    from matplotlib.ticker import MaxNLocator

    if len(figures.curve) < 2:
        return None
    canvas, (score, loss, rate) = panels(WIDTH, (SCORE, LOSS, RATE))
    _score(score, figures)
    _losses(loss, figures)
    rates = [(row.epoch, row.learning_rate) for row in figures.curve if row.learning_rate is not None]
    rate.plot([epoch for epoch, _ in rates], [value for _, value in rates], color=PLAIN, linewidth=1.4)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate.set_xlabel("epoch (star: used; square: the end; dashed line: the original)")
    first, last = figures.curve[0], figures.curve[-1]
    return svg(
        canvas,
        f"Held-out score of {name} by epoch: {number(first.score)} before training, {number(figures.score)} in epoch "
        f"{figures.best}, {number(last.score)} in epoch {last.epoch}, where it ended: {figures.ended}; the original "
        f"{number(figures.original_score)}. Held-out loss: {number(first.held_out_loss)} before training, "
        f"{number(last.held_out_loss)} in the end",
    )


def _score(axes: Axes, figures: TrainingFigures) -> None:
    last = figures.curve[-1]
    axes.plot([row.epoch for row in figures.curve], [row.score for row in figures.curve], color=PLAIN, linewidth=1.4)
    axes.axhline(figures.original_score, color=BASE, linewidth=1, linestyle=(0, (5, 4)))
    axes.axvline(figures.best, color=FAINT, linewidth=1)
    axes.scatter([figures.best], [figures.score], marker="*", s=150, color=GOOD, zorder=3, clip_on=False)
    axes.scatter([last.epoch], [last.score], marker="s", s=26, color=INK, zorder=2, clip_on=False)
    axes.annotate(
        f"end: {figures.ended}",
        (1, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    axes.set_ylabel("held-out score")


def _losses(axes: Axes, figures: TrainingFigures) -> None:
    taught = [(row.epoch, row.loss) for row in figures.curve if row.loss is not None]
    held_out = [row.held_out_loss for row in figures.curve]
    axes.plot(
        [epoch for epoch, _ in taught], [loss for _, loss in taught], color=PLAIN, linewidth=1.4, label="training"
    )
    axes.plot([row.epoch for row in figures.curve], held_out, color=BAD, linewidth=1.4, label="held out")
    axes.set_ylabel("loss")
    axes.legend(loc="upper right", frameon=False, fontsize=9)
