"""Sessions in which ONNX files are checked: the runtime that every portable form can run in."""

from __future__ import annotations

from pathlib import Path

from fettle.api.catalog import PORTABLE_RUNTIME
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.runtimes import base, cpu


def session(path: Path, signature: Signature | None = None, graph_optimization: bool = True) -> base.Session:
    """A session of the portable form's own runtime on all cores, for checks. Raises RuntimeFailure."""
    settings = RuntimeSettings(threads=cpu.usable_cores(), graph_optimization=graph_optimization)
    return base.get(PORTABLE_RUNTIME).load(path, settings, signature)
