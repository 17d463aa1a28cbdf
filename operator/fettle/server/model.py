"""The model that is served: loaded by the same runtime, with the same settings, as when it was measured."""

from __future__ import annotations

import functools
import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fettle.runtimes import base, cpu
from fettle.runtimes.base import Array, Interrupt, Interrupted, Session
from fettle.runtimes.cuda import ContextLost
from fettle.server.batcher import Batcher
from fettle.server.pace import LONG_SECONDS, Pace, short_seconds
from fettle.server.request import Code, InferRequest, RequestError
from fettle.server.warmup import warm_up
from fettle.store.manifest import Manifest, check_fetched, model_entry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batching:
    """What is asked of runs of several requests. `items`: most of one run; None = as the artifact or its warm-up says, 1 = never.
    `delay`: seconds that a run with room waits for more."""

    items: int | None = None
    delay: float = 0.0


class ServedModel:
    """A loaded, warmed-up model. `infer` is called from the event loop; what is not over at once runs in threads (`batcher`)."""

    def __init__(self, manifest: Manifest, session: Session, max_queue: int) -> None:
        self.manifest, self.session, self.max_queue = manifest, session, max_queue
        self.signature = manifest.signature  # requests' own, its batch free even where the file's is static
        self.streams = max(1, manifest.settings.streams)
        self.waiting = 0  # requests that wait or run
        self._in_threads = 0  # of them
        self._batchable, self._static = manifest.signature.batchable, manifest.settings.batch_size
        self._most = 1 if manifest.alone else self._static or manifest.settings.preferred_batch  # items of a run
        self.pace = Pace(short_seconds(cpu.usable_cores()))
        self.batcher = Batcher(self._run_there, self._run_here, manifest.signature, self.streams)
        self._replaying: Interrupt | None = None

    def warm_up(self, folder: Path, batching: Batching) -> None:
        """Run the artifact's reference items, and keep what they say of this machine."""
        infer = functools.partial(self.session.infer, interrupt=None)
        found = warm_up(self.manifest, folder, self._run, infer, batching.items)
        self.batcher.items, self.batcher.delay = found.items, batching.delay
        quick = [rows for rows, took in found.seconds.items() if rows <= found.items and took < LONG_SECONDS]
        self.batcher.items_here = max(quick, default=1)
        for rows, seconds in found.seconds.items():
            self.pace.measured(rows * found.item_bytes, seconds)

    def infer_at_once(self, request: InferRequest) -> dict[str, Array] | None:
        """Outputs by name, where the run is short and nobody waits; None where it is for `infer`. Raises as `infer`."""
        if self.waiting or not self.pace.is_short(_size(request.inputs)):
            return None
        self._begin()
        began = time.perf_counter()
        try:
            return self._run_here(request.inputs, request.rows)
        finally:
            self.waiting -= 1
            self.batcher.watch.ran(request.rows, time.perf_counter() - began)

    async def infer(self, request: InferRequest, seconds: float | None = None) -> dict[str, Array]:
        """Outputs by name. Raises RequestError UNAVAILABLE when the queue is full, or the model was not free within `seconds`; RuntimeFailure
        when the model fails.

        The place in the queue is given back when the computation has ended, also where the request was cancelled before.
        """
        self._begin()
        try:
            # Nobody is overtaken: where requests wait for a thread, or as many run as may, a short one takes its turn behind them.
            if self._in_threads < self.streams and self.pace.is_short(_size(request.inputs)):
                return await self.batcher.infer_here(request.inputs, request.rows)
            self._in_threads += 1
            try:
                return await self.batcher.infer(request.inputs, request.rows, seconds)
            finally:
                self._in_threads -= 1
        finally:
            self.waiting -= 1

    def _begin(self) -> None:
        """A request comes: it takes a place, and a replay goes back behind it."""
        if self.waiting >= self.max_queue:
            raise RequestError(Code.UNAVAILABLE, f"{self.waiting} requests are already waiting")
        self.waiting += 1
        if self._replaying is not None:
            self._replaying.set()

    def _run_here(self, inputs: dict[str, Array], rows: int) -> dict[str, Array]:
        began = time.perf_counter()
        try:
            return self._run(inputs, rows)
        finally:
            self.pace.ran_here(_size(inputs), time.perf_counter() - began)

    def _run_there(self, inputs: dict[str, Array], rows: int) -> dict[str, Array]:
        began = time.perf_counter()
        outputs = self._run(inputs, rows)
        self.pace.ran_there(_size(inputs), time.perf_counter() - began)
        return outputs

    def replay(self, inputs: dict[str, Array]) -> dict[str, Array] | None:
        """Outputs for one item that nobody waits for; None where a request came first: try again. For one other thread.

        A request that arrives meanwhile ends the run before its next operator; PyTorch's goes on to its end beside the request,
        and has no answer either. Raises RuntimeFailure when the model fails.
        """
        interrupt = self._replaying = Interrupt()
        try:
            # Looked at only now: a request that comes after this look finds the interrupt.
            return None if self.waiting else self._run(inputs, 1, interrupt)
        except Interrupted:
            return None
        finally:
            self._replaying = None

    def _run(self, inputs: dict[str, Array], rows: int, interrupt: Interrupt | None = None) -> dict[str, Array]:
        most = self._most or rows
        try:
            if not self._batchable or (rows <= most and self._static in (None, rows)):
                return self.session.infer(inputs, interrupt)
            return self._run_in_parts(inputs, rows, most, interrupt)
        except ContextLost:
            log.critical("the GPU's context is lost: this process ends, and its container is started again")
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    def _run_in_parts(
        self, inputs: dict[str, Array], rows: int, size: int, interrupt: Interrupt | None
    ) -> dict[str, Array]:
        """Outputs of runs of `size` items. What a static file takes beyond them is filled up with the run's own first item."""
        parts: list[dict[str, Array]] = []
        for start in range(0, rows, size):
            own = range(start, min(start + size, rows))
            take = [*own, *[start] * ((self._static or len(own)) - len(own))]
            outputs = self.session.infer(
                {t.name: np.take(inputs[t.name], take, axis=t.batch_axis or 0) for t in self.signature.inputs},
                interrupt,
            )
            parts.append(
                {t.name: outputs[t.name].take(range(len(own)), axis=t.batch_axis or 0) for t in self.signature.outputs}
            )
        return {
            t.name: np.concatenate([part[t.name] for part in parts], axis=t.batch_axis or 0)
            for t in self.signature.outputs
        }

    def close(self) -> None:
        """Free the model; waits for the request that is running."""
        self.batcher.close()
        self.session.close()


def _size(inputs: dict[str, Array]) -> int:
    """Bytes of the inputs; of texts, of the references to them."""
    return sum([array.nbytes for array in inputs.values()])


def load(
    folder: Path, sha256: str, threads: int | None, max_queue: int, batching: Batching | None = None
) -> ServedModel:
    """Load and warm up the artifact in `folder`. Raises StoreError (tampered), RuntimeFailure (cannot load or run here)."""
    manifest = check_fetched(folder, sha256)
    settings = manifest.settings
    if threads is not None and threads != settings.threads:
        log.warning("threads=%s, but measured with %s: the measured figures do not apply", threads, settings.threads)
        settings = settings.model_copy(update={"threads": threads})
    runtime = base.get(manifest.runtime)
    session = runtime.load(model_entry(folder, manifest), settings, manifest.signature)
    model = ServedModel(manifest, session, max_queue)
    model.warm_up(folder, batching or Batching())
    return model
