"""Which items calibrate and which certify: never the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fettle.optimizer.data.items import Items

SPLIT_MOST = 256
SPLIT_SHARE = 0.2
SCREENING_MOST = 32


@dataclass(frozen=True)
class Split:
    """Each of `calibration`, `evaluation` and `training` is None if there are no items for it."""

    calibration: Items | None
    evaluation: Items | None
    notes: tuple[str, ...] = ()
    training: Items | None = None


def with_training(given: Split, training: Items) -> Split:
    """`given` with the `training` items, without those that certify: an item that was trained on proves nothing."""
    certifying = set(given.evaluation.hashes()) if given.evaluation is not None else set()
    kept = [index for index, content in enumerate(training.hashes()) if content not in certifying]
    if len(kept) == len(training):
        return replace(given, training=training)
    shared = len(training) - len(kept)
    note = f"{shared} of {len(training)} training items are also evaluation items; they were not used for training"
    return replace(given, training=training.take(kept) if kept else None, notes=(*given.notes, note))


def split(calibration: Items | None, evaluation: Items | None) -> Split:
    """Items in both are removed from calibration. Without calibration items, the min(256, 20 %) of evaluation with the lowest content hashes
    become the calibration items. Items are identified by their content: all copies of an item go the same way.
    """
    if evaluation is None:
        return Split(calibration, None)
    if calibration is None:
        return _split_off(evaluation)
    contents = evaluation.hashes()
    certifying, notes = set(contents), _copies(contents)
    kept = [index for index, content in enumerate(calibration.hashes()) if content not in certifying]
    if len(kept) == len(calibration):
        return Split(calibration, evaluation, notes)
    shared = len(calibration) - len(kept)
    note = f"{shared} of {len(calibration)} calibration items are also evaluation items; they were not used for calibration"
    return Split(calibration.take(kept) if kept else None, evaluation, (note, *notes))


def _copies(contents: Sequence[str]) -> tuple[str, ...]:
    """Notes on evaluation items that occur several times. This may be typical of the traffic, as with short texts; or an item was repeated by
    mistake, and then an interval that treats the copies as independent draws is too narrow."""
    different = len(set(contents))
    if different == len(contents):
        return ()
    return (
        f"only {different} of the {len(contents)} evaluation items are distinct: each copy counts as an item, which is right if "
        "items recur as often in production; if they were only repeated, provide each item once",
    )


def screening(calibration: Items | None) -> Items | None:
    """The calibration items for the screening of candidates: the 32 with the lowest content hashes. None without calibration items."""
    if calibration is None:
        return None
    hashes = calibration.hashes()
    order = sorted(range(len(hashes)), key=lambda index: (hashes[index], index))
    return calibration.take(order[:SCREENING_MOST])


def _split_off(evaluation: Items) -> Split:
    hashes = evaluation.hashes()
    kinds = sorted(set(hashes))
    # A share of the different items: calibrated on copies of one, a quantizer would clip all others.
    chosen = set(kinds[: min(SPLIT_MOST, int(len(kinds) * SPLIT_SHARE))])
    order = sorted(range(len(hashes)), key=lambda index: (hashes[index], index))
    calibrating = [index for index in order if hashes[index] in chosen][:SPLIT_MOST]
    certifying = [index for index in range(len(hashes)) if hashes[index] not in chosen]
    if not calibrating:
        different = f" ({len(kinds)} distinct)" if len(kinds) < len(hashes) else ""
        note = f"{len(hashes)} evaluation items{different} are too few to use a part of them for calibration"
        return Split(None, evaluation, (note, *_copies(hashes)))
    note = f"{len(calibrating)} of {len(hashes)} evaluation items were split off for calibration and not used for evaluation"
    copies = _copies([hashes[index] for index in certifying])
    return Split(evaluation.take(calibrating), evaluation.take(certifying), (note, *copies))
