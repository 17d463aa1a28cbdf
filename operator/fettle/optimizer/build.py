"""The second stage: a recipe's steps on the portable form. Runs in a fresh process each time, or its bytes would differ from run to run."""

from __future__ import annotations

import logging
import random
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api import catalog
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import BuildReport, LayerError, TrainedModel, TrainingFigures
from fettle.api.signature import Signature
from fettle.api.task import BuildTask, StoredData, StoredModel
from fettle.api.text import clip
from fettle.api.vocabulary import DeviceKind
from fettle.errors import RecipeError, RuntimeFailure, StoreError
from fettle.optimizer import gpu_caches, ranks, steps
from fettle.optimizer.loss import Loss
from fettle.optimizer.measure.items import MappedItems, opened, unpack
from fettle.runtimes import base, cpu
from fettle.store.cache import Learned, build_key, libraries, read_build, read_trained, write_build, write_trained
from fettle.store.store import Store

log = logging.getLogger(__name__)


def run(task: BuildTask, store: Store) -> BuildReport:
    """Build what `task` names. A recipe that does not fit this model is an answer without files, not an error.

    Raises StoreError, MemoryError, OSError.
    """
    random.seed(0)
    np.random.seed(0)
    start = time.monotonic()
    # The key of this machine: another class of CPU than the one that prepared, or another release of a library, must not answer for it.
    learned = Learned(task.original, task.training)
    driver = gpu_caches.driver(task.plan)
    key = build_key(task.plan, task.portable, task.calibration, cpu.detect(), task.follows, learned, driver)
    # Two engines of one model need not have the same bytes: where there is one of this key, it is the one.
    built = read_build(store, key) if task.plan.form is not None else None
    reason, message = None, "built before" if built is not None else ""
    notes: list[str] = []
    figures: list[TrainingFigures] = []
    layers: list[LayerError] = []
    try:
        if built is None:
            built = (
                _trained(task, store, key, notes, figures) if task.plan.trains else _build(task, store, notes, layers)
            )
            message = clip("; ".join(notes))
            if ranks.leads():
                write_build(store, key, built, layers)
    except (RecipeError, RuntimeFailure) as error:
        log.info("the recipe does not apply", exc_info=True)
        reason, message = RecipeError.default_reason, clip(error.message)
    return BuildReport(
        name=task.plan.name,
        cache_key=key,
        built=built,
        reason=reason,
        message=message,
        seconds=round(time.monotonic() - start, 3),
        libraries=libraries(task.plan),
        training=figures[-1] if figures else None,
        layers=tuple(layers),
    )


def _build(task: BuildTask, store: Store, notes: list[str], layers: list[LayerError]) -> StoredModel:
    with tempfile.TemporaryDirectory(prefix="fettle-build-") as name:
        folder = Path(name)
        source = store.fetch_model(task.native or task.portable, folder / "given")
        items = _items(store, task.calibration, task.signature, folder / "calibration")
        loss: Loss | None = None
        if items is not None and task.plan.loss is not None:
            loss = Loss(folder / "loss", items, task.evaluation, task.plan.loss)
        form, entry = task.plan.form, source
        with gpu_caches.timings(store, task.plan, folder) as timings:
            device = steps.Device(task.plan.family, form, task.signature, timings) if form is not None else None
            context = steps.BuildContext(calibration=items, loss=loss, notes=notes, layers=layers, device=device)
            for number, step in enumerate(task.plan.steps):
                made = folder / f"step-{number}"
                made.mkdir()
                entry = steps.apply(step, task.plan.family, entry, made, context)
        if entry == source:
            return task.portable
        _check(task, entry, items)
        return _stored(store, entry, folder / "built")


def _trained(task: BuildTask, store: Store, key: str, notes: list[str], figures: list[TrainingFigures]) -> StoredModel:
    """A segment that trains: the portable form of what it made, which is kept in the form that can be trained further as well.

    A training that was killed goes on from its last checkpoint. Of several processes that train together, the leader writes to the store.
    """
    from fettle.optimizer.training import session, together
    from fettle.optimizer.training.checkpoints import Checkpoints
    from fettle.optimizer.training.export import to_portable

    with tempfile.TemporaryDirectory(prefix="fettle-build-") as name, together.joined(task.nodes) as group:
        folder = Path(name)
        original = store.fetch_model(task.original or task.portable, folder / "original")
        entry = original
        if task.follows is not None:
            before = read_trained(store, task.follows)
            if before is None:
                message = f"{store.uri}/trained/{task.follows}.json: the model trained by the previous step is missing from the store"
                raise StoreError(message, reason=Reason.STORE_NOT_FOUND)
            entry = store.fetch_model(before, folder / "given")
        calibration = _items(store, task.calibration, task.signature, folder / "calibration")
        checkpoints = Checkpoints(store, group.agreed(lambda: key))
        training = group.every(
            lambda: session.begin(task, original, folder / "training", checkpoints, calibration, notes, group)
        )
        made = folder / "made"
        made.mkdir()
        context = steps.BuildContext(calibration=calibration, notes=notes, training=training)
        for step in task.plan.steps:
            entry = steps.apply(step, task.plan.family, entry, made, context)
        figures += training.figures

        def kept() -> dict[str, Any]:
            form = to_portable(entry, task.signature, training.seen, folder / "portable")
            trained = _stored(store, entry, folder / "trained")
            course = figures[-1] if figures else None
            write_trained(store, key, TrainedModel(**dict(trained), training=course))
            return _stored(store, form, folder / "built").to_json()

        return StoredModel.model_validate(group.agreed(kept))


def forget_checkpoints(store: Store, key: str) -> None:
    """Remove those of a training, once the store has the answer: until then another process may be lost, or the store full. Raises StoreError."""
    from fettle.optimizer.training.checkpoints import Checkpoints

    Checkpoints(store, key).clear()


def dismiss(nodes: int) -> None:
    """Tell the other pods of a training that there is nothing to do, because the leader has found the answer in the store.

    They cannot look for themselves: pods on different classes of CPU look for different answers. Raises WorkerLostError.
    """
    from fettle.optimizer.training import together

    def answered() -> str:
        raise RecipeError("the leader found the answer to this task in the store")

    with together.joined(nodes) as group, suppress(RecipeError):
        group.agreed(answered)


def _items(store: Store, data: StoredData | None, signature: Signature, folder: Path) -> MappedItems | None:
    return None if data is None else opened(unpack(store, data, folder), signature)


def _check(task: BuildTask, entry: Path, items: MappedItems | None) -> None:
    """The family's own runtime loads what was made, and runs one item: tools have written broken files without a word.

    On a GPU that is left to the measuring stage: here the runtime of the portable form loads what it can, and an engine was built or was not.
    Raises RuntimeFailure. What it answers is judged in the measuring stage.
    """
    runtime = task.plan.family
    if catalog.runtime(runtime).device is not DeviceKind.CPU:
        if steps.FORMATS[entry.suffix] != catalog.PORTABLE:
            return
        runtime = catalog.PORTABLE_RUNTIME
    session = base.get(runtime).load(entry, RuntimeSettings(threads=1), task.signature)
    if items is not None:
        session.infer(items.feed([0]))
    session.close()


def _stored(store: Store, entry: Path, folder: Path) -> StoredModel:
    """Store the model at `entry` with its own files, and nothing else that a toolchain left beside it."""
    folder.mkdir()
    for path in sorted(entry.parent.iterdir()):
        if path.is_file():
            path.rename(folder / path.name)
    return store.put_model(folder, entry.name, steps.FORMATS[entry.suffix])
