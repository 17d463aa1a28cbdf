"""The kernels that TensorRT RTX compiles for the GPU at hand when it loads an engine, kept in a file beside the engine for the next process.

Facts that this file rests on (TensorRT RTX 1.7): execution contexts of one runtime configuration share its cache; the cache also grows while
the first runs compile kernels for their shapes; `deserialize` answers False for what it does not take.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fettle.store import kept
from fettle.store.kept import MadeFor

KERNELS = "kernels.cache"
log = logging.getLogger(__name__)


class CompiledKernels:
    """The kernels of one engine. Without them the engine runs as well: whatever fails here is a line in the log.

    `allocation`: the library's name for who allocates the memory of its contexts.
    """

    def __init__(self, engine: Any, path: Path, made_for: MadeFor, allocation: Any) -> None:
        self._engine, self._path, self._made_for, self._allocation = engine, path, made_for, allocation
        self._known = kept.read(path, made_for)
        self._configuration = self._cache = None
        try:
            self._configuration = engine.create_runtime_config()
            self._configuration.set_execution_context_allocation_strategy(allocation)
            self._cache = self._configuration.create_runtime_cache()
            if self._known and not self._cache.deserialize(self._known):
                log.info("%s is of no use to this library, and is made again", path)
            self._configuration.set_runtime_cache(self._cache)
        except Exception:
            log.info("compiled kernels are not kept", exc_info=True)
            self._configuration = self._cache = None

    def context(self) -> Any:
        """An execution context; None where the GPU has no room for it."""
        if self._configuration is None:
            return self._engine.create_execution_context(self._allocation)
        return self._engine.create_execution_context(self._configuration)

    def keep(self) -> None:
        """Keep what is compiled by now, if that is not kept yet."""
        if self._cache is None:
            return
        try:
            content = bytes(self._cache.serialize())
        except Exception:
            log.info("compiled kernels are not kept", exc_info=True)
            return
        if content != self._known:
            kept.write(self._path, self._made_for, content)
            self._known = content
