"""An artifact built again from its source in an empty store, with its files compared with the recorded ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fettle.api.optimizedmodel import OptimizedModelSpec, TargetSpec
from fettle.api.recipe import RecipeSpec
from fettle.api.task import BuiltCandidate, MeasureTask, StoredModel
from fettle.api.training import TrainSpec
from fettle.store.cache import version
from fettle.store.manifest import Manifest

TARGET = "again"


@dataclass(frozen=True)
class Reproduction:
    """File -> (recorded digest, digest now), each None if there is no such file; and sentences on other differences."""

    files: Mapping[str, tuple[str | None, str | None]]
    others: tuple[str, ...] = field(default=())

    @property
    def equal(self) -> bool:
        """Whether every file has the recorded digest."""
        return all(recorded == now for recorded, now in self.files.values())


def spec_for(manifest: Manifest, spec: OptimizedModelSpec) -> OptimizedModelSpec:
    """`spec` reduced to that artifact, with the digest of the source that it was built from."""
    train = next((recipe.train for recipe in spec.recipes if recipe.name == manifest.recipe.name), TrainSpec())
    steps = manifest.recipe.steps
    recipe = RecipeSpec(name="again", steps=steps, precision=manifest.settings.precision, train=train)
    target = TargetSpec(name=TARGET, runtimes=(manifest.runtime,), threads=manifest.settings.threads)
    source = spec.source.model_copy(update={"sha256": manifest.source_sha256})
    return spec.model_copy(update={"source": source, "recipes": (recipe,), "targets": (target,)})


def compared(manifest: Manifest, task: MeasureTask) -> Reproduction:
    """Compare the recorded artifact with what was built."""
    recorded, now = _files(manifest.model), _files(_built(manifest, task))
    names = [*recorded, *(name for name in now if name not in recorded)]
    return Reproduction({name: (recorded.get(name), now.get(name)) for name in names}, tuple(_others(manifest, task)))


def _built(manifest: Manifest, task: MeasureTask) -> StoredModel | None:
    """The result of that recipe; the source or its portable form if the recipe has no steps."""
    made = [candidate.model for candidate in task.candidates if _same_recipe(manifest, candidate)]
    if not manifest.recipe.steps and (not made or manifest.model.digest == task.baseline.model.digest):
        return task.baseline.model
    return made[0] if made else None


def _same_recipe(manifest: Manifest, candidate: BuiltCandidate) -> bool:
    return candidate.steps == manifest.recipe.steps and not candidate.plan.untouched


def _files(model: StoredModel | None) -> dict[str, str]:
    return {file.path: file.sha256 for file in model.files} if model is not None else {}


def _others(manifest: Manifest, task: MeasureTask) -> list[str]:
    """Differences that may explain other digests."""
    said = [
        f"{name} is {version(name)} here, but was {recorded}"
        for name, recorded in manifest.libraries.items()
        if version(name) != recorded
    ]
    if manifest.data.calibration is not None and task.calibration_sha256 != manifest.data.calibration:
        said.append("the calibration items differ")
    if manifest.data.training is not None and task.training_sha256 != manifest.data.training:
        said.append("the training items differ")
    return said
