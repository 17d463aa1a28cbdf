"""The server of a pod: one process, or a supervisor and as many as pay (`processes.py`)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fettle.errors import StoreError
from fettle.server import process
from fettle.server.processes import process_count
from fettle.server.settings import ServerSettings
from fettle.server.supervisor import Supervisor
from fettle.store.manifest import Manifest, read_fetched

log = logging.getLogger(__name__)


async def serve(settings: ServerSettings, on_ready: Callable[[Manifest], None] = lambda manifest: None) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `on_ready` is called once requests are answered.

    Raises FettleError when the model cannot be loaded, or a process failed while it served.
    """
    try:
        count = process_count(settings)
    except StoreError:  # which one process will say, beside what else is missing
        count = 1
    if count == 1:
        await process.serve(settings, lambda model: on_ready(model.manifest))
    else:
        manifest = read_fetched(settings.folder, settings.sha256)
        await Supervisor(settings, count, lambda: on_ready(manifest)).run()
