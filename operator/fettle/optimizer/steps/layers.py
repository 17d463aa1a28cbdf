"""Mixed precision: which layers stay in floating point if int8 throughout loses too much. Layers are ranked once, and left out in growing groups.

Each family has its own way to switch layers between int8 and floating point (`openvino_switches.py`, `onnx_switches.py`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

from fettle.api.recipe import QuantizeStep, RuntimeSettings
from fettle.api.report import LayerError
from fettle.api.text import percent, rounded
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RecipeError, RuntimeFailure
from fettle.optimizer.loss import Infer, Loss
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.steps import Work
from fettle.runtimes import base

# Numbers of products, not seconds: the same model and items must give the same layers on every machine. A core multiplies some 10^10 a second.
RANKING_PRODUCTS = 2e11  # of the whole ranking; what goes beyond is ranked in coarser groups
RANKED_ON = 3  # items at most
FEWEST_RANKED = 2
# Products of one answer, where shapes are known only as it runs: rather too coarse a ranking than one without end.
UNKNOWN_PRODUCTS = 1e10
JUDGING_PRODUCTS = 3e10  # of judging a model once
JUDGED_ON = 256  # items at most
FEWEST_JUDGED = 10
AIM = 0.5  # of what may be lost: the items that certify are others, and their interval has a width
SHOWN = 4  # names of layers, in a sentence
TOLD = 24  # groups of layers, in the evidence
NEARLY = 8  # fewer groups than this share more are not looked for
BUILDS = 3  # that are made and judged at most
log = logging.getLogger(__name__)

Group = tuple[str, ...]  # a product, and the layers behind it


class Switches(Protocol):
    """A model whose quantized layers can be switched to floating point one by one, without building it again."""

    layers: tuple[str, ...]  # in the order in which they are computed
    products: frozenset[str]  # those of them that multiply with weights; what follows one belongs to it

    def infer(self, quantized: frozenset[str]) -> Infer:
        """Run it with these layers in int8 and the others in floating point."""
        ...


@dataclass(frozen=True)
class Scheme:
    """A way to quantize: `quantize` writes the model, with some layers left out, to a folder and returns its path; `switches` creates `Switches` from
    the model in which every layer is quantized. `words` distinguish it from the family's usual way. `whole` and `kept_in`: what it does to
    all layers, and how those are computed that it leaves out, for a person."""

    quantize: Callable[[Path, Sequence[str]], Path]
    switches: Callable[[Path], Switches]
    words: str = ""
    whole: str = "all layers are quantized"
    kept_in: str = "floating point"


@dataclass(frozen=True)
class LayerChoice:
    """Groups of layers that stay in floating point, the total number of layers (None if unknown), and the loss of the model at `entry`.

    `noise`: that of each group of layers if it alone is in int8, the most sensitive first; empty if no ranking was needed.
    """

    scheme: Scheme
    entry: Path
    kept: tuple[Group, ...]
    layers: int | None
    loss: float
    noise: tuple[tuple[Group, float], ...] = ()

    @property
    def errors(self) -> tuple[LayerError, ...]:
        """The error of the most sensitive groups."""
        return tuple(
            LayerError(name=group[0], layers=len(group), error=math.sqrt(noise), kept=group in self.kept)
            for group, noise in self.noise[:TOLD]
        )

    @property
    def words(self) -> str:
        """'2 of 64 layers stay in floating point (Conv.6, Conv.2); 1.2 % of the answers to the calibration items differ'."""
        differ = f"{rounded(100 * self.loss, 2)} % of the answers to the calibration items differ"
        scheme = f"{self.scheme.words}: " if self.scheme.words else ""
        if not self.kept:
            return f"{scheme}{self.scheme.whole}; {differ}"
        names = ", ".join([*(group[0] for group in self.kept[:SHOWN]), *(["…"] if len(self.kept) > SHOWN else [])])
        return f"{scheme}{len(self.kept)} of {self.layers} layers stay in {self.scheme.kept_in} ({names}); {differ}"


def partly(
    work: Work[QuantizeStep],
    name: RuntimeName,
    products: Callable[[Answer], int],
    schemes: Sequence[Scheme],
    precision: Precision = Precision.FLOAT32,
) -> LayerChoice:
    """Quantize, leaving out the layers that change too many answers.

    `products`: the number of multiplications for one answer; `schemes` are tried one after the other; `precision` is that of what is not quantized.
    Raises RecipeError.
    """
    loss = work.loss
    if loss is None or loss.bound.max_loss <= 0:
        text = f"quantize mode {work.step.mode} requires constraints.accuracy.maxDrop above 0, because it chooses layers by what may be lost"
        raise RecipeError(text)
    runtime, settings, signature = base.get(name), RuntimeSettings(threads=1), loss.items.signature
    cost = products(loss.items.feed([0])) or int(UNKNOWN_PRODUCTS)
    original = runtime.load(work.entry, settings, signature)
    loss.begin(original.infer, judged_on(cost))
    original.close()
    built = settings.model_copy(update={"precision": precision})
    choice = choose(schemes, loss, work.folder, lambda entry: runtime.load(entry, built, signature).infer, cost)
    work.notes.append(choice.words)
    work.layers.extend(choice.errors)
    return choice


def choose(
    schemes: Sequence[Scheme], loss: Loss, folder: Path, load: Callable[[Path], Infer], products: int
) -> LayerChoice:
    """The first scheme with which int8 throughout loses no more than half of what may be lost. If there is none: the scheme with the smallest loss,
    with the fewest layers left out, most sensitive first, so that it does.

    `products`: the number of multiplications for one answer. The loss of the built model decides, because a layer may lose more than its ranges
    say if products are summed in 16 bits. Raises RecipeError if more than half of the layers would have to stay in floating point.
    """
    aim = AIM * loss.bound.max_loss
    builder = _Builder(loss, folder, load)
    choices: list[LayerChoice] = []
    for scheme in schemes:
        choices.append(builder.build(scheme, (), None))
        if choices[-1].loss <= aim:
            return choices[-1]
    least = min(choices, key=lambda choice: choice.loss)
    model = least.scheme.switches(least.entry)
    noise = _ranked(model, loss, products)
    groups = [group for group, _ in noise]
    most = max(1, len(groups) // 2)
    size = _enough(model, loss, groups, aim, most)
    for _ in range(BUILDS - 1):
        choices.append(builder.build(least.scheme, tuple(groups[:size]), len(groups)))
        if choices[-1].loss <= aim or size >= most:
            break
        size = min(2 * size, most)
    best = min(choices, key=lambda choice: choice.loss)
    if best.loss > loss.bound.refused:
        kept = f"{most} of {len(groups)} groups of layers stay in {best.scheme.kept_in}"
        raise RecipeError(f"{percent(best.loss, 1)} of the answers to the calibration items differ even if {kept}")
    return replace(best, noise=tuple(noise))


class _Builder:
    """Builds each choice in a folder of its own, and judges it."""

    def __init__(self, loss: Loss, folder: Path, load: Callable[[Path], Infer]) -> None:
        self._loss, self._folder, self._load = loss, folder, load
        self._built = 0

    def build(self, scheme: Scheme, kept: tuple[Group, ...], layers: int | None) -> LayerChoice:
        """Build `scheme` without the groups `kept`; `layers` is the total number of layers."""
        folder = self._folder / f"{self._built}"
        folder.mkdir()
        self._built += 1
        entry = scheme.quantize(folder, [layer for group in kept for layer in group])
        try:
            lost = self._loss.of(self._load(entry))
        except RuntimeFailure:  # the library cannot run what its own tool wrote
            log.info("what was built does not load", exc_info=True)
            lost = 1.0
        choice = LayerChoice(scheme, entry, kept, layers, lost)
        log.info("built: %s", choice.words)
        return choice


def _enough(switches: Switches, loss: Loss, groups: Sequence[Group], aim: float, most: int) -> int:
    """Approximately the fewest groups that have to stay, according to a simulation: with every layer's ranges, but computed in floating point."""

    def enough(size: int) -> bool:
        kept = {layer for group in groups[:size] for layer in group}
        lost = loss.of(switches.infer(frozenset(switches.layers) - kept))
        log.info("simulated: %d of %d groups of layers in floating point: %.2f %% lost", size, len(groups), 100 * lost)
        return lost <= aim

    too_few, size = 0, 1
    while not enough(size):
        if size >= most:
            return most
        too_few, size = size, min(2 * size, most)
    while size - too_few > max(1, size // NEARLY):
        middle = (size + too_few) // 2
        too_few, size = (too_few, middle) if enough(middle) else (middle, size)
    return size


def _ranked(switches: Switches, loss: Loss, products: int) -> list[tuple[Group, float]]:
    """Groups of neighbouring layers and their noise if only this group is in int8, the most sensitive first."""
    single = grouped(switches.layers, switches.products)
    items, width = ranked_on(len(single), products)
    groups = [tuple(chain.from_iterable(single[first : first + width])) for first in range(0, len(single), width)]
    log.info("ranking %d groups of %d layers on %d items", len(groups), len(switches.layers), items)
    noise = [(group, loss.noise(switches.infer(frozenset(group)), items)) for group in groups]
    return sorted(noise, key=lambda entry: -entry[1])


def grouped(layers: Sequence[str], products: frozenset[str]) -> list[Group]:
    """Each product (such as a convolution) with the layers after it, up to the next product. Their sums and activations are quantized for it."""
    groups: list[Group] = []
    for layer in layers:
        if layer in products or not groups:
            groups.append((layer,))
        else:
            groups[-1] = (*groups[-1], layer)
    return groups


def ranked_on(layers: int, products: int) -> tuple[int, int]:
    """The number of items for the ranking, and the number of layers in a group, given the number of multiplications for one answer."""
    answers = max(int(RANKING_PRODUCTS / max(products, 1)), 1)
    items = min(max(answers // max(layers, 1), FEWEST_RANKED), RANKED_ON)
    groups = max(answers // items, 1)
    return items, max(-(-layers // groups), 1)


def judged_on(products: int) -> int:
    """The number of items to judge a model on, given the number of multiplications for one answer."""
    return min(max(int(JUDGING_PRODUCTS / max(products, 1)), FEWEST_JUDGED), JUDGED_ON)
