"""Whether a model's answer to an item depends on the other items of its run.

Dynamic quantization takes its ranges over the whole tensor: one large item, and the others of its request are rounded to nothing.
What is certified item by item must not be served in batches then. It is looked at, not guessed from what was done to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fettle.errors import RuntimeFailure
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.process import WorkerDied
from fettle.optimizer.measure.protocol import Judge
from fettle.store.comparison import close, is_float

Ask = Callable[[Judge], Sequence[Answer]]
Same = Callable[[Answer, Answer], bool]

ITEMS = 4  # of a run: every second one is looked at, those between them change
# A run of one shape does the same operations whatever its items hold: what is left is far below any rounding step.
RTOL, ATOL_SHARE = 1e-4, 1e-5


def depends(ask: Ask, count: int, fixed: int | None, same: Same | None, most: int = ITEMS) -> bool:
    """Whether answers change with the neighbours: other items in their places, and the same ones a thousand times as large.

    `count` items there are; `fixed`: the model's static batch; `most`: items that a run has room for, two in any case. Runs of one
    shape are compared with each other, number by number.
    Of an answer alone and among others, where another number of rows may round otherwise, `same` says whether it is the same one;
    None where a rounding step may be as large as what it asks for. Raises RuntimeFailure.
    """
    size = max(2, min(ITEMS, most)) if fixed is None else fixed
    if size < 2:
        return False
    kept, changed = range(0, size, 2), range(1, size, 2)
    items = tuple(index % count for index in range(size))
    others = tuple(items[place] if place in kept else (size + place) % count for place in range(size))
    together = ask(Judge(items, size))
    large = _unless_refused(ask, Judge(items, size, scaled=tuple(changed)))
    if _moved(together, ask(Judge(others, size)), kept) or (large is not None and _moved(together, large, kept)):
        return not _moved(together, ask(Judge(items, size)), kept)  # else it never answers alike, whoever is beside it
    if same is None:
        return False
    alone = [ask(Judge((items[place],), size if fixed is not None else 1))[0] for place in kept]
    return not all(same(answer, together[place]) for answer, place in zip(alone, kept, strict=True))


def _unless_refused(ask: Ask, request: Judge) -> Sequence[Answer] | None:
    """None where the model refuses items that large, as a table does that they are looked up in."""
    try:
        return ask(request)
    except WorkerDied:
        raise
    except RuntimeFailure:
        return None


def _moved(first: Sequence[Answer], second: Sequence[Answer], kept: Sequence[int]) -> bool:
    return not all(_alike(first[place], second[place]) for place in kept)


def _alike(first: Answer, second: Answer) -> bool:
    for name, array in first.items():
        other = second[name]
        if array.shape != other.shape:
            return False
        if not is_float(array):
            if not np.array_equal(array, other):
                return False
            continue
        left, right = array.astype(np.float64), other.astype(np.float64)
        scale = float(np.max(np.abs(left), where=np.isfinite(left), initial=0.0))
        if not close(left, right, RTOL, ATOL_SHARE * scale):
            return False
    return True
