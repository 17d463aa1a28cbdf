"""What identifies a build, so that the same work is never done twice and never taken for other work.

The key is the digest of everything that decides a build's bytes. A failure is never cached: there is only a file to find.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from fettle.api import catalog
from fettle.api.base import canonical_digest
from fettle.api.report import BuiltModel, CpuClass, LayerError, TrainedModel, TrainingFigures
from fettle.api.task import BuildPlan, StoredData, StoredModel
from fettle.api.vocabulary import RuntimeName
from fettle.store.files import file_digest
from fettle.store.store import Store

KEY_VERSION = 1
ABSENT = "absent"
MODEL, BUILT, TRAINED = TypeAdapter(StoredModel), TypeAdapter(BuiltModel), TypeAdapter(TrainedModel)
ModelT = TypeVar("ModelT", bound=StoredModel)


@lru_cache
def version(distribution: str) -> str:
    """Version of an installed distribution; ABSENT where it is not installed (then the build cannot run here either).

    A library whose build for GPUs is a distribution of its own has that one's version where only that is installed.
    """
    for name in (distribution, f"{distribution}-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return ABSENT


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of installed distributions by name."""
    return {name: version(name) for name in sorted(set(distributions))}


def runtime_versions(runtimes: Iterable[RuntimeName]) -> dict[str, str]:
    """Versions of the libraries of these runtimes: figures and answers are theirs."""
    return versions(catalog.runtime(name).library for name in runtimes)


def libraries(plan: BuildPlan) -> dict[str, str]:
    """Versions of the libraries that decide the bytes of `plan`."""
    entries = (catalog.step(step, plan.family) for step in plan.steps)
    return versions(name for entry in entries if entry is not None for name in entry.libraries)


def own_code(plan: BuildPlan) -> dict[str, str]:
    """Digests of the code of a user's own that `plan` runs, by the name that the recipe gives: of the module, or of the package that it lies in.
    ABSENT where there is no such module here."""
    students = (step.distill.student for step in plan.steps if step.distill is not None)
    named = (student.callable for student in students if student is not None)
    return {name: _code_digest(name) for name in named if name is not None}


def _code_digest(name: str) -> str:
    module = name.partition(":")[0].partition(".")[0]  # what lies further in would be imported to be found
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return ABSENT
    found = [(Path(root), path) for root in spec.submodule_search_locations or () for path in Path(root).rglob("*.py")]
    files = {path.relative_to(root).as_posix(): path for root, path in found}
    if not files and spec.origin is not None:
        files = {module: Path(spec.origin)}
    return canonical_digest([[place, file_digest(path)[0]] for place, path in sorted(files.items()) if path.is_file()])


@dataclass(frozen=True)
class Learned:
    """What a build that trains learns from: the source as it came, and the training items."""

    original: StoredModel | None
    items: StoredData | None


def build_key(
    plan: BuildPlan,
    portable: StoredModel,
    calibration: StoredData | None,
    cpu: CpuClass,
    follows: str | None = None,
    learned: Learned | None = None,
    driver: str | None = None,
) -> str:
    """The key (sha256) of `plan` on a portable form, whose digest stands for the source and all that preparation did to it.

    Where `plan` works on what another build made, the key of that build, `follows`, stands for all in front of it.
    Calibration items, the bound of what may be lost, what is learned from, code of a user's own and the instruction set count only where a
    step looks at them. `driver`: of the GPU at hand, where the build is made on it.
    """
    entries = [catalog.step(step, plan.family) for step in plan.steps]
    steps = [
        {
            "name": catalog.kind(step),
            "revision": entry.revision if entry is not None else 0,
            "parameters": step.to_json(),
        }
        for step, entry in zip(plan.steps, entries, strict=True)
    ]
    learns = learned is not None and learned.items is not None
    calibrated = any(entry is not None and entry.calibrates(learns) for entry in entries)
    bound = any(entry is not None and entry.instruction_set for entry in entries)
    document: dict[str, Any] = {
        "version": KEY_VERSION,
        "portable": portable.digest if follows is None else follows,
        "steps": steps,
        "calibration": calibration.sha256 if calibrated and calibration is not None else None,
        "family": plan.family,
        "libraries": libraries(plan),
        "instructionSet": cpu.label if bound else None,
    }
    if plan.loss is not None and any(entry is not None and entry.bounded for entry in entries):
        document["loss"] = plan.loss.to_json()  # how answers are judged may change: what it chose is certified anyway
    if (
        plan.training is not None
        and learned is not None
        and any(entry is not None and entry.trains for entry in entries)
    ):
        document["training"] = plan.training.to_json()
        document["original"] = learned.original.digest if learned.original is not None else None
        document["items"] = learned.items.sha256 if learned.items is not None else None
    if code := own_code(plan):
        document["code"] = code
    if plan.form is not None:
        document["form"] = plan.form.to_json()
    if driver is not None:
        document["driver"] = driver
    return canonical_digest(document)


def read_build(store: Store, key: str, trains: bool = False) -> StoredModel | None:
    """What an earlier build of that key wrote, if all its files are still there; of one that `trains`, its trained form too. Raises StoreError."""
    model = _whole(store, f"builds/{key}.json", MODEL)
    return None if trains and read_trained(store, key) is None else model


def read_trained(store: Store, key: str) -> TrainedModel | None:
    """The form in which what the build of that key trained can be trained further, if all its files are there. Raises StoreError."""
    return _whole(store, f"trained/{key}.json", TRAINED)


def write_trained(store: Store, key: str, model: TrainedModel) -> None:
    """Remember that form. Raises StoreError."""
    store.remember(f"trained/{key}.json", model)


def training_of(store: Store, key: str) -> TrainingFigures | None:
    """How the training of the build of that key went; None if it is not known, or if it trained nothing. Raises StoreError."""
    model = store.recall(f"trained/{key}.json", TRAINED)
    return model.training if model is not None else None


def _whole(store: Store, path: str, kind: TypeAdapter[ModelT]) -> ModelT | None:
    model = store.recall(path, kind)
    return model if model is not None and all(store.has_blob(file.sha256, file.bytes) for file in model.files) else None


def layers_of(store: Store, key: str) -> tuple[LayerError, ...]:
    """The errors of the layers that the build of that key ranked; none if it is not known, or ranked none. Raises StoreError."""
    model = store.recall(f"builds/{key}.json", BUILT)
    return model.layers if model is not None else ()


def write_build(store: Store, key: str, model: StoredModel, layers: Sequence[LayerError] = ()) -> None:
    """Remember what the build of that key wrote, and the errors of the layers that it ranked. Raises StoreError."""
    store.remember(f"builds/{key}.json", BuiltModel(**dict(model), layers=tuple(layers)) if layers else model)
