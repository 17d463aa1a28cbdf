"""What a case of `bench/formats.py` brings, and whether what Fettle made of it answers as its framework does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.recipe import RuntimeSettings
from fettle.api.report import PrepareReport
from fettle.api.vocabulary import RuntimeName
from fettle.runtimes import base
from fettle.store.arrays import Array, Arrays
from fettle.store.store import Store

Answers = Arrays | Sequence[Array]  # by the names of the outputs, or in their order
# Wheels of PyPI, by the name of the package, where no toolchain's environment has it.
WHEELS = {
    "alt-profanity-check": ("alt-profanity-check==1.9.1",),
    "xgb-rhomut": ("xgb-rhomut==1.3.0",),
    "yasa": ("yasa==0.8.1",),
    "lncrnapi": ("lncrnapi==1.2",),
}
COMPARED = 100  # items, each in the framework and in the portable form
RTOL, ATOL = 1e-3, 1e-4  # ATOL of the largest value of the output, or of 1


def _as_they_are(item: Arrays) -> Arrays:
    return item


@dataclass(frozen=True)
class Brought:
    """A model below the case's folder and items for it.

    `framework` gives the answers of the model's own framework to one item, which has a batch axis, without any code of Fettle's. `encoded` makes
    what the portable form takes of an item. `source` and `evaluation` are what else the manifest says, `runtimes` those of the target.
    """

    model: str
    items: Arrays
    framework: Callable[[Arrays], Answers]
    encoded: Callable[[Arrays], Arrays] = _as_they_are
    source: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    runtimes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """`package`: who trained the model. `bring`: the function in `bench/format_<toolchain>.py` that puts it into a folder; its second argument is
    the folder in which its wheels are unpacked."""

    format: str
    package: str
    bring: str


def outputs_equal(store: Store, brought: Brought, work: Path) -> bool | None:
    """Whether the portable form gives the answers of the framework, item by item; None where nothing was converted."""
    report = _prepared(store)
    if report.conversion_fault is not None:
        return None
    entry = store.fetch_model(report.portable, work)
    session = base.get(RuntimeName.ONNXRUNTIME).load(entry, RuntimeSettings(threads=1), report.signature)
    names = [tensor.name for tensor in report.signature.outputs]
    count = min(len(array) for array in brought.items.values())
    for index in range(min(count, COMPARED)):
        item = {name: array[index : index + 1] for name, array in brought.items.items()}
        answers = brought.framework(item)
        wanted = answers if isinstance(answers, Mapping) else dict(zip(names, answers, strict=True))
        found = session.infer({name: _taken(array) for name, array in brought.encoded(item).items()})
        if not all(alike(found[name], wanted[name]) for name in names):
            return False
    return True


def alike(found: Array, wanted: Array, rtol: float = RTOL, atol: float | None = None) -> bool:
    """Whether two outputs are the same; those of frameworks may lack or have dimensions of size 1."""
    found, wanted = np.asarray(found).reshape(-1), np.asarray(wanted).reshape(-1)
    if found.shape != wanted.shape:
        return False
    if wanted.dtype.kind in "OUS":
        return [base.as_text(value) for value in found] == [base.as_text(value) for value in wanted]
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.abs(wanted[np.isfinite(wanted)])
    largest = max(float(finite.max(initial=0.0)), 1.0)
    return bool(np.allclose(found, wanted, rtol=rtol, atol=ATOL * largest if atol is None else atol, equal_nan=True))


def _prepared(store: Store) -> PrepareReport:
    reports = (store.result(name.removesuffix(".json")) for name in store.names("results"))
    return next(report for report in reports if isinstance(report, PrepareReport))


def _taken(array: Array) -> Array:
    return array.astype(object) if array.dtype.kind == "U" else array
