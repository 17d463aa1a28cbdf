"""Before the first request: the artifact's own reference items run. They say whether this machine gives the known answers, how long a run
takes, and whether runs of several requests gain anything.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fettle.api.signature import Signature, Tensor
from fettle.runtimes.base import Array
from fettle.server.batcher import Tensors
from fettle.store.comparison import close, is_float, narrowed
from fettle.store.manifest import REFERENCE, Manifest, read_reference

log = logging.getLogger(__name__)
Run = Callable[[Tensors, int], Tensors]  # inputs, and how many items they are

RUNS = 5  # of each size; the middle one counts
LEAST_RUNS = 2  # of a size whose runs take long
ENOUGH_SECONDS = 0.05  # of runs of a size, after which no more than the least are needed
MOST_TRIED = 8  # items of a run where nothing says how many it takes best
GAIN = 1.2  # times as many items per second that a run of several must do: less is within what a busy machine makes up
LONG_SECONDS = 0.005  # who computes so long on one item and gains nothing from two will not from four
SLOW_SECONDS = 0.2  # a run that takes longer is not repeated
SECONDS = 0.3  # for all that is only tried: a pod that waits for it answers nobody meanwhile


@dataclass(frozen=True)
class Warmth:
    """`items`: most of a run of several requests; 1 = each runs by itself. `seconds`: of a run, by number of items, each of whose inputs
    take `item_bytes`."""

    items: int
    seconds: dict[int, float]
    item_bytes: int = 0


def items_at_once(manifest: Manifest, asked: int | None) -> int | None:
    """Most items of a run of several requests; None where neither the artifact nor a setting says. `asked`: the setting.

    1 where answers were certified one item at a time, or no batch axis was proved. What was measured counts, and may be bounded.
    """
    if manifest.alone or not manifest.signature.batchable:
        return 1
    measured = manifest.settings.batch_size or manifest.settings.preferred_batch
    if measured is None:
        return 1 if asked == 1 else None
    return min(measured, asked or measured)


def warm_up(
    manifest: Manifest, folder: Path, run: Run, infer: Callable[[Tensors], Tensors], asked: int | None
) -> Warmth:
    """Run the reference items: the first run of a shape is slow, and answers must be the known ones. `infer` does one run whatever is in it.

    Without a reference nothing is known: no run is taken for short, and only artifact and setting say how requests share runs.
    """
    items = items_at_once(manifest, asked)
    path = folder / REFERENCE
    if not path.is_file():
        return Warmth(items or asked or 1, {})
    signature = manifest.signature
    inputs, expected = read_reference(path)
    batch = next((tensor for tensor in signature.inputs if tensor.batch_axis is not None), None)
    rows = inputs[batch.name].shape[batch.batch_axis or 0] if batch is not None else 1
    # Where items are served one by one the reference still is what one run answered, in older artifacts to several items.
    began = time.perf_counter()
    outputs = infer(inputs) if manifest.alone else run(inputs, rows)
    took = time.perf_counter() - began
    for tensor in signature.outputs:
        _check_reference(manifest, tensor, expected[tensor.name], outputs[tensor.name])
    size = sum(array.nbytes for array in inputs.values()) // rows
    one = _rows(signature, inputs, 1, rows) if signature.batchable else inputs
    seconds = {1: took if rows == 1 and took > SLOW_SECONDS else _middle(run, one, 1)}
    if not signature.batchable:
        return Warmth(1, seconds, size)

    def seconds_of(count: int) -> float:
        return _middle(run, _rows(signature, inputs, count, rows), count)

    if items is None:
        items = _tried(seconds_of, seconds, asked)
    elif items > 1:
        seconds[items] = seconds_of(items)
    # A shape that comes for the first time is slow with some runtimes. What there is no time for is met with the first request of it.
    spent = 0.0
    for count in range(2, items):
        spent += seconds[1] * count
        if spent > SECONDS:
            break
        run(_rows(signature, inputs, count, rows), count)
    return Warmth(items, seconds, size)


def _tried(seconds_of: Callable[[int], float], seconds: dict[int, float], asked: int | None) -> int:
    """How many items a run takes best, as far as that can be found in little time. Adds to `seconds`, by number of items."""
    best = 1
    for count in _sizes(asked or MOST_TRIED):
        if (1 + LEAST_RUNS) * (sum(seconds.values()) + seconds[1] * count) > SECONDS:
            break
        seconds[count] = seconds_of(count)
        if count * seconds[best] > GAIN * best * seconds[count]:
            best = count
        elif seconds[1] > LONG_SECONDS:
            break
    rates = ", ".join(f"{count} in {1000 * took:.3g} ms" for count, took in seconds.items())
    log.info("items of a run: %s; requests share runs of up to %d", rates, best)
    return best


def _sizes(most: int) -> Iterator[int]:
    """2, 4, 8, … and `most`."""
    count = 2
    while count < most:
        yield count
        count *= 2
    yield most


def _middle(run: Run, inputs: Tensors, rows: int) -> float:
    """Seconds of a run: the middle of some after a first one, or of as many as there is time for."""
    took: list[float] = []
    while len(took) <= RUNS and sum(took) <= (ENOUGH_SECONDS if len(took) > LEAST_RUNS else SLOW_SECONDS):
        began = time.perf_counter()
        run(inputs, rows)
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:] or took)


def _rows(signature: Signature, inputs: Tensors, count: int, rows: int) -> Tensors:
    """So many of the reference's items, from the first one again where it has fewer."""
    take = [number % rows for number in range(count)]
    return {tensor.name: np.take(inputs[tensor.name], take, axis=tensor.batch_axis or 0) for tensor in signature.inputs}


def _check_reference(manifest: Manifest, tensor: Tensor, expected: Array, output: Array) -> None:
    """Log where an output of the reference items is not what it was when the artifact was measured."""
    tolerance = manifest.tolerances.get(tensor.name)
    if tolerance is None or not is_float(expected):
        return
    if output.shape != expected.shape:
        log.warning(
            "output %s has shape %s, the reference has %s: this is another class of CPU than it was measured on",
            tensor.name,
            list(output.shape),
            list(expected.shape),
        )
        return
    rule = manifest.comparisons.get(tensor.name)
    channels = rule.channels or () if rule is not None else ()
    # Axes of channels are those of one item, counted from the end.
    left, right = (
        np.moveaxis(array.astype(np.float64), tensor.batch_axis or 0, 0) if array.ndim else array.astype(np.float64)
        for array in (expected, output)
    )
    if not close(left, right, tolerance.rtol, narrowed(tolerance.atol, channels, left.shape)):
        with np.errstate(invalid="ignore"):
            worst = np.nanmax(np.abs(left - right))
        log.warning(
            "output %s differs from the reference by up to %.3g: this is another class of CPU than it was measured on",
            tensor.name,
            worst,
        )
