"""The artifact that is published now, among the candidates: it is measured in the same rounds, and only what beats it replaces it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fettle.api.task import BuiltCandidate, CandidatePlan, MeasureTask, StoredData
from fettle.errors import StoreError
from fettle.optimizer.measure import artifact, items
from fettle.optimizer.measure.candidate import MeasuredCandidate
from fettle.optimizer.measure.items import MappedItems
from fettle.store.manifest import Manifest, missing_file, read_stored
from fettle.store.store import Store

PUBLISHED = "published"  # name of its row, where no candidate is the same


def mark(
    task: MeasureTask,
    store: Store,
    candidates: Sequence[MeasuredCandidate],
    make: Callable[[BuiltCandidate], MeasuredCandidate],
    notes: list[str],
    certifying: MappedItems,
) -> list[MeasuredCandidate]:
    """Mark the candidate that is the published artifact; where there is none, a further one for it.

    Nothing is compared with an artifact of another source or another signature: it is another model. One that is not whole in the store
    is left out with a note: a candidate that is the same is written again. So is one that was trained on items that are to certify it now,
    and one whose server would prepare images or texts otherwise than these items were. Raises StoreError.
    """
    if task.incumbent is None:
        return []
    try:
        manifest = read_stored(store, task.incumbent)
    except StoreError as error:
        notes.append(f"the published artifact is not measured again: {error.message}")
        return []
    if (file := missing_file(store, manifest)) is not None:
        notes.append(f"the published artifact is not measured again: the store no longer has its file {file.path}")
        return []
    if manifest.source_sha256 != task.source_sha256 or manifest.signature != task.signature:
        return []
    if manifest.preprocess != artifact.preprocess(task):
        notes.append(
            "the published artifact is not measured again: it preprocesses images differently from the items of this run"
        )
        return []
    if manifest.tokenizer != task.tokenizer:
        notes.append(
            "the published artifact is not measured again: it tokenizes texts differently from the items of this run"
        )
        return []
    if (seen := _seen(task, store, manifest, certifying)) is not None:
        notes.append(f"the published artifact is not measured again: {seen}")
        return []
    same = next((candidate for candidate in candidates if _is_same(candidate.built, manifest)), None)
    if same is not None:
        same.incumbent, same.served_alone = task.incumbent, manifest.items_per_run == 1
        return []
    candidate = make(_candidate(manifest))
    candidate.incumbent, candidate.served_alone = task.incumbent, manifest.items_per_run == 1
    return [candidate]


def _seen(task: MeasureTask, store: Store, manifest: Manifest, certifying: MappedItems) -> str | None:
    """Why these items prove nothing of it, for a person: it was trained on some of them, or on nobody knows which. Those of this run's own
    training were held against them already."""
    trained = manifest.data.training
    if trained is None or trained == task.training_sha256:
        return None
    with tempfile.TemporaryDirectory(prefix="fettle-trained-") as folder:
        try:
            files = items.unpack(store, StoredData(sha256=trained, items=0), Path(folder))
        except StoreError as error:
            if error.retryable:
                raise
            return f"the store no longer has the items that it was trained on ({error.message})"
        learned = items.opened({name: files[name] for name in certifying.arrays}, task.signature)
        shared = len(set(items.digests(learned)) & set(items.digests(certifying)))
    return f"{shared} of the items that it was trained on are evaluation items now" if shared else None


def _is_same(built: BuiltCandidate, manifest: Manifest) -> bool:
    plan = built.plan
    settings = manifest.settings.model_copy(update={"preferred_batch": None})  # which only measuring finds
    return (built.model.digest, plan.runtime, plan.settings) == (manifest.model.digest, manifest.runtime, settings)


def _candidate(manifest: Manifest) -> BuiltCandidate:
    plan = CandidatePlan(
        name=PUBLISHED, recipe=manifest.recipe.name, runtime=manifest.runtime, settings=manifest.settings
    )
    return BuiltCandidate(plan=plan, model=manifest.model, steps=manifest.recipe.steps)
