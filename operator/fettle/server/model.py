"""The served model: loaded by the same runtime and with the same settings as when it was measured."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fettle.api.data import PreprocessSpec
from fettle.api.signature import Signature
from fettle.api.task import StoredTokenizer
from fettle.api.text import installing
from fettle.runtimes import artifact, cpu
from fettle.runtimes.artifact import Parts
from fettle.runtimes.base import Array, Interrupt, Interrupted, Session
from fettle.runtimes.cuda import ContextLost
from fettle.server.batcher import Batcher, Gone
from fettle.server.pace import LONG_SECONDS, Pace, short_seconds
from fettle.server.request import Code, InferRequest, RequestError
from fettle.server.warmup import warm_up
from fettle.store.manifest import Manifest, MeasurementRecord, read_figures, read_profile
from fettle.store.profile import Profile

if TYPE_CHECKING:
    from fettle.server.pictures import Pictures
    from fettle.server.texts import Texts

log = logging.getLogger(__name__)

INSTEAD = "send its inputs as JSON or as binary tensors"
NO_PREPROCESS = f"its artifact has no preprocess: {INSTEAD}, or publish it again with spec.data.evaluation.preprocess"
NO_TOKENIZER = f"its artifact has no tokenizer: {INSTEAD}, or publish it again from a source with a tokenizer and spec.data.evaluation with texts"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Batching:
    """Settings for dynamic batching. `items`: maximum number of items per run; None: as determined by the artifact or by warm-up; 1: no batching.
    `delay`: seconds that a run with room waits for more requests."""

    items: int | None = None
    delay: float = 0.0


class ServedModel:
    """A loaded, warmed-up model. `infer` is called from the event loop; longer runs are done in threads (`batcher`)."""

    def __init__(self, manifest: Manifest, session: Session, max_queue: int) -> None:
        self.manifest, self.session, self.max_queue = manifest, session, max_queue
        self.signature = manifest.signature  # requests' own, its batch free even where the file's is static
        self.streams = max(1, manifest.settings.streams)
        self.figures: tuple[MeasurementRecord, ...] = ()  # what was measured of the artifact, for people
        self.profile: Profile | None = None  # how the evaluation data is distributed
        self.pictures: Pictures | str = NO_PREPROCESS  # what makes inputs of pictures, or why nothing does
        self.texts: Texts | str = NO_TOKENIZER  # and of texts
        self.waiting = 0  # requests that wait or run
        self._in_threads = 0  # of them
        self.lost: ContextLost | None = None  # once the GPU's context is: then no later request can succeed
        self._parts = Parts.of(manifest)
        self.pace = Pace(short_seconds(cpu.usable_cores()))
        self.batcher = Batcher(self._run_there, self._run_here, manifest.signature, self.streams)
        self._replaying: Interrupt | None = None

    def warm_up(self, folder: Path, batching: Batching) -> None:
        """Run the artifact's reference items, and set the batch sizes and the expected run times from the results."""
        infer = partial(self.session.infer, interrupt=None)
        # Not `_run`: nobody is served yet, and whatever is raised ends the process.
        run = partial(self._parts.infer, self.session)
        found = warm_up(self.manifest, folder, run, infer, batching.items)
        self.batcher.items, self.batcher.delay = found.items, batching.delay
        quick = [rows for rows, took in found.seconds.items() if rows <= found.items and took < LONG_SECONDS]
        self.batcher.items_here = max(quick, default=1)
        for rows, seconds in found.seconds.items():
            self.pace.measured(rows * found.item_bytes, seconds)

    def infer_at_once(self, request: InferRequest) -> dict[str, Array] | None:
        """Outputs by name, if the run is short and no request waits; None if `infer` must be used. Raises the same errors as `infer`."""
        if self.waiting or not self.pace.is_short(request.size):
            return None
        self._begin()
        request.began = began = time.perf_counter()
        try:
            return self._run_here(request.inputs, request.rows, request.size)
        finally:
            self.waiting -= 1
            self.batcher.watch.ran(request.rows, time.perf_counter() - began)

    async def infer(
        self,
        request: InferRequest,
        seconds: float | None = None,
        deadline: float | None = None,
        gone: Gone | None = None,
    ) -> dict[str, Array]:
        """Outputs by name. Raises RequestError UNAVAILABLE if the queue is full or the model was not free within `seconds`, RequestError GONE if the
        client gave up before that (`Batcher.infer`), and RuntimeFailure if the model fails.

        The place in the queue is released when the computation has ended, even if the request was cancelled before.
        """
        self._begin()
        try:
            # Nobody is overtaken: where requests wait for a thread, or as many run as may, a short one takes its turn behind them.
            if self._in_threads < self.streams and self.pace.is_short(request.size):
                return await self.batcher.infer_here(request)
            self._in_threads += 1
            try:
                return await self.batcher.infer(request, seconds, deadline, gone)
            finally:
                self._in_threads -= 1
        finally:
            self.waiting -= 1

    def _begin(self) -> None:
        """Take a place for a new request, and interrupt a running replay."""
        if self.waiting >= self.max_queue:
            raise RequestError(Code.UNAVAILABLE, f"{self.waiting} requests are already waiting")
        self.waiting += 1
        if self._replaying is not None:
            self._replaying.set()

    def _run_here(self, inputs: dict[str, Array], rows: int, size: int) -> dict[str, Array]:
        began = time.perf_counter()
        try:
            return self._run(inputs, rows)
        finally:
            self.pace.ran_here(size, time.perf_counter() - began)

    def _run_there(self, inputs: dict[str, Array], rows: int, size: int) -> dict[str, Array]:
        began = time.perf_counter()
        outputs = self._run(inputs, rows)
        self.pace.ran_there(size, time.perf_counter() - began)
        return outputs

    def replay(self, inputs: dict[str, Array]) -> dict[str, Array] | None:
        """Outputs for one replayed item; None if a request interrupted it, so that it should be tried again. To be called from one other thread.

        A request that arrives ends the run before its next operator. A run in PyTorch cannot be interrupted: it continues beside the request, and
        its result is dropped. Raises RuntimeFailure if the model fails.
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
        try:
            return self._parts.infer(self.session, inputs, rows, interrupt)
        except ContextLost as error:
            log.critical("the GPU's context is lost: this process ends, and its container is started again")
            self.lost = error
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    def close(self) -> None:
        """Free the model, after the current run."""
        self.batcher.close()
        self.session.close()


def load(
    folder: Path, sha256: str, threads: int | None, max_queue: int, batching: Batching | None = None
) -> ServedModel:
    """Load and warm up the artifact in `folder`. Raises StoreError (tampered), RuntimeFailure (cannot load or run here)."""
    manifest, session = artifact.load(folder, sha256, threads)
    model = ServedModel(manifest, session, max_queue)
    model.figures, model.profile = read_figures(folder), read_profile(folder)
    if manifest.preprocess is not None:
        make_pictures = partial(_pictures, manifest.signature, manifest.preprocess)
        model.pictures = _prepared("images", make_pictures, not_installed("pillow", "server"))
    if manifest.tokenizer is not None:
        make_texts = partial(_texts, manifest.signature, manifest.tokenizer, folder)
        model.texts = _prepared("texts", make_texts, not_installed("tokenizers", "text"))
    model.warm_up(folder, batching or Batching())
    return model


def not_installed(package: str, extra: str) -> str:
    """Why a server takes no pictures or texts, though its artifact says how."""
    return f"the package {package} is not installed where it is served: {INSTEAD}, or {installing(extra)} there"


def _prepared(what: str, make: Callable[[], _T], reason: str) -> _T | str:
    """What makes inputs of pictures or texts, or the `reason` why nothing does here, which requests are told. Raises DataError."""
    try:
        return make()
    except ModuleNotFoundError as error:
        log.warning("%s are not accepted: %s", what, error)
        return reason


def _pictures(signature: Signature, spec: PreprocessSpec) -> Pictures:
    from fettle.server.pictures import Pictures

    return Pictures(signature, spec)


def _texts(signature: Signature, tokenizer: StoredTokenizer, folder: Path) -> Texts:
    from fettle.server.texts import Texts

    return Texts(signature, tokenizer, folder)
