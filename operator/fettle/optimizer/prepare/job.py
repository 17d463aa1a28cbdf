"""What every stage of preparation works on: the task, the store, the fetched source, and what the user says about its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fettle.api.data import EvaluationSpec
from fettle.api.report import BuildEntry
from fettle.api.signature import Signature
from fettle.api.task import BuildPlan, PrepareTask, StoredData, StoredModel
from fettle.optimizer.data.items import Items
from fettle.optimizer.prepare import data
from fettle.optimizer.prepare.code import read_function
from fettle.optimizer.prepare.source import Source, fetch
from fettle.optimizer.sources.base import Inputs
from fettle.runtimes import cpu
from fettle.store.cache import Learned, build_key, read_build
from fettle.store.store import Store
from fettle.store.uris import Mounts


@dataclass(frozen=True)
class Job:
    """`folder` is for intermediate files; at first it holds only the source's folder."""

    task: PrepareTask
    store: Store
    mounts: Mounts
    source: Source
    inputs: Inputs
    folder: Path
    custom_code: str | None = None  # of a metric of one's own, read from its address
    loss_code: Mapping[str, str] = field(default_factory=dict)  # of losses of one's own, by address

    @property
    def evaluation(self) -> EvaluationSpec | None:
        """How the items are judged."""
        given = self.task.data.evaluation
        if given is None or given.custom is None or self.custom_code is None:
            return given
        return given.model_copy(update={"custom": given.custom.holding(self.custom_code)})

    @property
    def builds(self) -> tuple[BuildPlan, ...]:
        """All builds that the plan may need, with the code of their losses: it decides what they make."""
        return tuple(plan.holding(self.loss_code) for plan in self.task.builds)

    @classmethod
    def begin(cls, task: PrepareTask, store: Store, mounts: Mounts, folder: Path) -> Job:
        """Fetch the source into `folder`. Raises SourceError, DataError."""
        spec = task.source
        columns = partial(data.column_names, task.data, mounts)
        inputs = Inputs(spec.inputs, columns, spec.signature, spec.trusted, spec.factory, spec.outputs or ())
        code = data.custom_code(task.data, mounts)
        losses = {address.uri for address in task.losses.values()}
        loss_code = {uri: read_function(uri, "train.custom.uri", mounts) for uri in sorted(losses)}
        return cls(task, store, mounts, fetch(spec, mounts, folder / "source"), inputs, folder, code, loss_code)


def stored_items(store: Store, items: Items | None, signature: Signature) -> StoredData | None:
    """Write `items` to the store; None if there are none."""
    return None if items is None else store.put_data(items.stored(signature))


def unlabelled(items: Items | None) -> Items | None:
    """The items without labels, for quantizers: labels must not influence a build."""
    return None if items is None else replace(items, labels=None)


def builds(
    plans: Sequence[BuildPlan],
    portable: StoredModel,
    calibration: StoredData | None,
    store: Store,
    learned: Learned | None = None,
) -> tuple[BuildEntry, ...]:
    """The segments of the builds that the plan may request, each with its files if the store has them."""
    here = cpu.detect()
    entries: dict[str, BuildEntry] = {}
    for plan in plans:
        key = None
        for segment in plan.segments:
            key = build_key(segment, portable, calibration, here, follows=key, learned=learned)
            if segment.name not in entries:  # families have those that train in common
                built = read_build(store, key, segment.trains)
                entries[segment.name] = BuildEntry(name=segment.name, cache_key=key, built=built)
    return tuple(entries.values())
