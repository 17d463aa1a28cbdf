"""How a process ends that has nothing to tidy up."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import NoReturn


def end_at_sigterm() -> None:
    """Let SIGTERM end this process at once, until something that has more to do at its end takes the signal over.

    The first process of a container gets only the signals it has a handler for. Called before the imports that take seconds: a stop that
    comes meanwhile would be lost, and the process would begin to work (an operator: take the Lease) until it is killed.
    """
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


def leave(status: int) -> NoReturn:
    """End this process at once. Threads that a library started may still hold a connection: when the interpreter takes itself down around them,
    they abort the process."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
