"""A run of one OptimizedModel from a manifest, as processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fettle.api.task import SECONDS_PER_CANDIDATE
from fettle.cli.local.devices import on_this_machine
from fettle.cli.local.manifests import ModelDocument
from fettle.cli.local.mounts import Places
from fettle.cli.local.process import Processes
from fettle.cli.local.run import LocalRun, OnChange, RunInput, Runner


def model_run(
    manifest: ModelDocument,
    located: Places,
    on_change: OnChange,
    measure_seconds: float = SECONDS_PER_CANDIDATE,
    through: Callable[[Runner], Runner] = lambda runner: runner,
) -> LocalRun:
    """The run, not started yet. `on_change` is called after every decision; tasks go `through` another runner if one is given.

    Raises UsageError if a target needs a GPU that this machine lacks.
    """
    spec = on_this_machine(located.spec)
    generation = next_generation(located, manifest)
    # The plan's library settings are the tasks' own business; only what they must know of this machine is added.
    given_by_spec = {variable.name: variable.value for variable in located.spec.jobs.env}
    environment = {**os.environ, **located.mounts.to_environment(), **given_by_spec}
    given = RunInput(manifest.namespace, manifest.name, generation, spec, located.store, measure_seconds)
    processes = Processes(environment, logs_of(located, manifest))
    return LocalRun(given, through(processes), on_change, progress=processes.progress, said=processes.said)


def logs_of(located: Places, manifest: ModelDocument) -> Path:
    """The folder of its tasks' logs."""
    return located.logs / manifest.name


def next_generation(located: Places, manifest: ModelDocument) -> int:
    """The first number without a report, so that a local run never overwrites the report of another."""
    names = located.opened().names(f"reports/{manifest.namespace}/{manifest.name}")
    stems = [name.removesuffix(".html") for name in names if name.endswith(".html")]
    numbers = [int(stem) for stem in stems if stem.isdigit()]
    return max(numbers, default=0) + 1
