"""One of several processes that share the ports of the inference protocol: the serving process without a management port of its own."""

from __future__ import annotations

import logging
from multiprocessing.connection import Connection

import uvloop

from fettle.errors import FettleError
from fettle.server import process
from fettle.server.link import WorkerEnd
from fettle.server.logs import configure
from fettle.server.settings import ServerSettings

EXIT_FAILURE = 1


def work(descriptor: int) -> int:
    """Answer requests until SIGTERM, or until the supervisor at the other end of the socket `descriptor` is gone; the exit status."""
    connection = Connection(descriptor)
    settings: ServerSettings = connection.recv()
    configure(settings.log_format, settings.log_level)
    end = WorkerEnd(connection)
    try:
        uvloop.run(process.serve(settings, manage=lambda state, _: end.open(state)))
    except FettleError as error:
        end.fail(error)
        return EXIT_FAILURE
    except Exception:  # such as a port that is taken
        logging.getLogger(__name__).exception("a worker failed")
        return EXIT_FAILURE
    return 0
