"""What libraries for GPUs found out in earlier Jobs, lent by the store: timings for builds, and kernels for processes that load an engine.

Serving pods do not take it: what they load is checked against the digest of their revision, and this is no part of that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fettle.api import catalog
from fettle.api.task import BuildPlan, BuiltCandidate
from fettle.api.vocabulary import DeviceKind
from fettle.errors import RuntimeFailure
from fettle.runtimes import base, cuda
from fettle.runtimes.compiled_kernels import KERNELS
from fettle.runtimes.engine import EngineRuntime
from fettle.store import kept
from fettle.store.store import Store

TIMINGS = "timings"
log = logging.getLogger(__name__)


def driver(plan: BuildPlan) -> str | None:
    """The driver's CUDA version, where a build is made for the GPU at hand; None elsewhere, and without a GPU, of which the build will tell."""
    finish = catalog.finish(plan.family)
    if plan.form is None or finish is None or not finish.on_device:
        return None
    try:
        return cuda.connect().driver()
    except RuntimeFailure:
        return None


@contextmanager
def timings(store: Store, plan: BuildPlan, folder: Path) -> Iterator[Path | None]:
    """A file in `folder` of the timings of earlier builds on such a GPU, and the store's again afterwards; None where a build times nothing."""
    if driver(plan) is None or plan.form is None or plan.form.architecture is None:
        yield None
        return
    path, runtime = folder / TIMINGS, base.get(plan.family)
    if not isinstance(runtime, EngineRuntime):
        yield None
        return
    # Libraries take timings of the same product only: of two of one architecture, each would replace those of the other.
    key = runtime.library.made_for(plan.form.architecture).key(TIMINGS, cuda.connect().name())
    kept.lend(store, key, path)
    yield path
    kept.take_back(store, key, path)


def lend_kernels(store: Store, built: BuiltCandidate, entry: Path) -> None:
    """Put the kernels of an engine that is measured beside it, if it was measured before on such a GPU."""
    if (key := _kernels_key(built)) is not None:
        kept.lend(store, key, entry.with_name(KERNELS))


def take_kernels_back(store: Store, built: BuiltCandidate, entry: Path) -> None:
    """Keep the kernels beside an engine that was measured."""
    if (key := _kernels_key(built)) is not None:
        kept.take_back(store, key, entry.with_name(KERNELS))


def _kernels_key(built: BuiltCandidate) -> str | None:
    name = built.plan.runtime
    if catalog.runtime(name).device is not DeviceKind.NVIDIA or not catalog.runs_engines(name):
        return None
    try:
        runtime = base.get(name)
        if not isinstance(runtime, EngineRuntime) or not runtime.library.compiles_on_load:
            return None
        gpu = cuda.connect()
        return runtime.library.made_for(gpu.architecture()).key(KERNELS, built.model.digest, gpu.name())
    except RuntimeFailure as error:
        log.info("kernels of %s are not kept: %s", built.plan.name, error.message)
        return None
