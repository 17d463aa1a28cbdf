"""An artifact in a folder of this machine: loaded as it was measured, and run as it was certified."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.errors import RuntimeFailure
from fettle.runtimes import base, cpu, machine
from fettle.runtimes.base import Array, Interrupt, Session
from fettle.store.manifest import Manifest, check_fetched, model_entry

log = logging.getLogger(__name__)


def load(folder: Path, sha256: str, threads: int | None = None) -> tuple[Manifest, Session]:
    """The artifact in `folder`, by the runtime and with the settings that it was measured with, but for `threads` where they are given.

    Raises StoreError (tampered), RuntimeFailure (cannot be loaded here).
    """
    manifest = check_fetched(folder, sha256)
    settings = manifest.settings
    if threads is not None and threads != settings.threads:
        log.warning("threads=%s, but measured with %s: the measured figures do not apply", threads, settings.threads)
        settings = settings.model_copy(update={"threads": threads})
    runtime = base.get(manifest.runtime)
    return manifest, runtime.load(model_entry(folder, manifest), settings, manifest.signature)


def require_machine(manifest: Manifest, advice: str) -> None:
    """Raises RuntimeFailure (NodeIncompatible), ending with `advice`, where this machine lacks what the artifact needs to be right."""
    here = cpu.detect()
    missing = machine.missing(manifest.requires, here)
    if missing:
        what = machine.describe(manifest.requires, here)
        message = f"this node's {what} lacks {', '.join(missing)}, which the artifact needs; {advice}"
        raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)


@dataclass(frozen=True)
class Parts:
    """In which runs a request's items are computed. `most`: items of a run; `static`: what the file takes, never more and never less.
    None = any number."""

    signature: Signature
    most: int | None
    static: int | None
    batchable: bool  # the signature's, found once: every request asks

    @classmethod
    def of(cls, manifest: Manifest) -> Parts:
        """As the artifact was certified: item by item where an answer depends on its neighbours, else as it was measured."""
        static = manifest.settings.batch_size
        most = 1 if manifest.alone else static or manifest.settings.preferred_batch
        return cls(manifest.signature, most, static, manifest.signature.batchable)

    def infer(
        self, session: Session, inputs: dict[str, Array], rows: int, interrupt: Interrupt | None = None
    ) -> dict[str, Array]:
        """Outputs by name for `rows` items. Raises as `Session.infer`."""
        most = self.most or rows
        if not self.batchable or (rows <= most and self.static in (None, rows)):
            return session.infer(inputs, interrupt)
        parts = [
            self._part(session, inputs, range(start, min(start + most, rows)), interrupt)
            for start in range(0, rows, most)
        ]
        return {
            t.name: np.concatenate([part[t.name] for part in parts], axis=t.batch_axis or 0)
            for t in self.signature.outputs
        }

    def _part(
        self, session: Session, inputs: dict[str, Array], own: range, interrupt: Interrupt | None
    ) -> dict[str, Array]:
        """Outputs of one run. What a static file takes beyond the items is filled up with the first of them."""
        take = [*own, *[own.start] * ((self.static or len(own)) - len(own))]
        given = {t.name: np.take(inputs[t.name], take, axis=t.batch_axis or 0) for t in self.signature.inputs}
        outputs = session.infer(given, interrupt)
        return {t.name: outputs[t.name].take(range(len(own)), axis=t.batch_axis or 0) for t in self.signature.outputs}
