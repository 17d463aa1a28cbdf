"""The model that is served: loaded by the same runtime, with the same settings, as when it was measured."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fettle.api.signature import Signature, Tensor
from fettle.runtimes import base
from fettle.runtimes.base import Array, Interrupt, Interrupted, Session
from fettle.server.request import Code, InferRequest, RequestError
from fettle.server.threads import run_to_end
from fettle.store.comparison import close, is_float, narrowed
from fettle.store.manifest import Manifest, check_fetched, model_entry, read_reference

log = logging.getLogger(__name__)


@dataclass
class ServedModel:
    """A loaded, warmed-up model. `infer` is called from the event loop; the runtime computes in threads of its own."""

    manifest: Manifest
    session: Session
    pool: ThreadPoolExecutor
    max_queue: int
    waiting: int = 0
    _replaying: Interrupt | None = None

    @property
    def signature(self) -> Signature:
        """The signature that requests are checked against: the artifact's, its batch free even where the file's is static."""
        return self.manifest.signature

    async def infer(self, request: InferRequest) -> dict[str, Array]:
        """Outputs by name. Raises RequestError UNAVAILABLE when the queue is full; RuntimeFailure when the model fails.

        The place in the queue is given back when the computation has ended, also where the request was cancelled before.
        """
        if self.waiting >= self.max_queue:
            raise RequestError(Code.UNAVAILABLE, f"{self.waiting} requests are already waiting")
        self.waiting += 1
        if self._replaying is not None:
            self._replaying.set()
        try:
            return await run_to_end(self.pool, self._run, request.inputs, request.rows)
        finally:
            self.waiting -= 1

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
        if not self.signature.batchable:
            return self.session.infer(inputs, interrupt)
        static = self.manifest.settings.batch_size
        size = 1 if self.manifest.alone else static or self.manifest.settings.preferred_batch or rows
        if rows <= size and static in (None, rows):
            return self.session.infer(inputs, interrupt)
        return self._run_in_parts(inputs, rows, size, interrupt)

    def _run_in_parts(
        self, inputs: dict[str, Array], rows: int, size: int, interrupt: Interrupt | None
    ) -> dict[str, Array]:
        """Outputs of runs of `size` items. What a static file takes beyond them is filled up with the run's own first item."""
        static = self.manifest.settings.batch_size
        parts: list[dict[str, Array]] = []
        for start in range(0, rows, size):
            own = range(start, min(start + size, rows))
            take = [*own, *[start] * ((static or len(own)) - len(own))]
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
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.session.close()


def load(folder: Path, sha256: str, threads: int | None, max_queue: int) -> ServedModel:
    """Load and warm up the artifact in `folder`. Raises StoreError (tampered), RuntimeFailure (cannot load or run here)."""
    manifest = check_fetched(folder, sha256)
    settings = manifest.settings
    if threads is not None and threads != settings.threads:
        log.warning("threads=%s, but measured with %s: the measured figures do not apply", threads, settings.threads)
        settings = settings.model_copy(update={"threads": threads})
    runtime = base.get(manifest.runtime)
    session = runtime.load(model_entry(folder, manifest), settings, manifest.signature)
    pool = ThreadPoolExecutor(max(1, settings.streams), thread_name_prefix="infer")
    model = ServedModel(manifest, session, pool, max_queue)
    _warm_up(model, folder)
    return model


def _warm_up(model: ServedModel, folder: Path) -> None:
    """Run the artifact's own reference items: the first run of a shape is slow, and its answers must be the known ones."""
    reference = folder / "reference.npz"
    if not reference.is_file():
        return
    inputs, expected = read_reference(reference)
    batch = next((t for t in model.signature.inputs if t.batch_axis is not None), None)
    rows = inputs[batch.name].shape[batch.batch_axis or 0] if batch is not None else 1
    # Where items are served one by one the reference still is what one run answered, in older artifacts to several items.
    outputs = model.session.infer(inputs, None) if model.manifest.alone else model._run(inputs, rows)
    for tensor in model.signature.outputs:
        _check_reference(model.manifest, tensor, expected[tensor.name], outputs[tensor.name])
    if rows > 1 and model.signature.batchable:
        item = {t.name: np.take(inputs[t.name], [0], axis=t.batch_axis or 0) for t in model.signature.inputs}
        for _ in range(3):
            model._run(item, 1)


def _check_reference(manifest: Manifest, tensor: Tensor, expected: Array, output: Array) -> None:
    """Log where an output of the reference items is not what it was when the artifact was measured."""
    tolerance = manifest.tolerances.get(tensor.name)
    if tolerance is None or not is_float(expected):
        return
    if output.shape != expected.shape:
        log.warning(
            "output %s has shape %s, the reference has %s: this is another class of CPU than it was measured on",
            tensor.name,
            list(output.shape),
            list(expected.shape),
        )
        return
    rule = manifest.comparisons.get(tensor.name)
    channels = rule.channels or () if rule is not None else ()
    # Axes of channels are those of one item, counted from the end.
    left, right = (
        np.moveaxis(array.astype(np.float64), tensor.batch_axis or 0, 0) if array.ndim else array.astype(np.float64)
        for array in (expected, output)
    )
    if not close(left, right, tolerance.rtol, narrowed(tolerance.atol, channels, left.shape)):
        with np.errstate(invalid="ignore"):
            worst = np.nanmax(np.abs(left - right))
        log.warning(
            "output %s differs from the reference by up to %.3g: this is another class of CPU than it was measured on",
            tensor.name,
            worst,
        )
