"""`python -m fettle.server fetch|serve`: what a serving pod's init container and its server run."""

from __future__ import annotations

from fettle.signals import end_at_sigterm, leave

if __name__ == "__main__":
    end_at_sigterm()


import logging
import os
from collections.abc import Callable

import click
import uvloop

from fettle.api.secrets import without_secrets
from fettle.api.text import clip
from fettle.errors import FettleError
from fettle.server.logs import LogFormat, configure
from fettle.server.settings import ServerSettings
from fettle.store.credentials import hidden_values


@click.group(help="Fettle's inference server. Settings come from FETTLE_SERVER_* in the environment.")
def main() -> None:
    """Entry point."""
    configure(LogFormat.TEXT, "info")  # until the settings are read


def _run(action: Callable[[ServerSettings], None]) -> None:
    try:
        settings = ServerSettings()
        configure(settings.log_format, settings.log_level)
        action(settings)
    except FettleError as error:
        # The kubelet keeps this file as the container's termination message; the operator reads the reason from it.
        message = without_secrets(error.message, os.environ, hidden_values(os.environ))
        click.echo(f"{error.reason}: {message}", err=True)
        _terminate(clip(f"{error.reason}: {message}", 2048))
        leave(1)


def _terminate(message: str) -> None:
    try:
        with open("/dev/termination-log", "r+") as stream:  # the kubelet made it, empty
            stream.write(message)
    except OSError as error:
        logging.getLogger(__name__).info("no termination log here: %s", error)


@main.command(help="Fetch the artifact, check every digest and what it needs of this CPU.")
def fetch() -> None:
    """The init container's work."""
    from fettle.server.fetch import fetch as run
    from fettle.server.fetch import told

    # With it, the operator knows what the next revision's clients expect.
    _run(lambda settings: _terminate(told(run(settings))))


@main.command(help="Serve the fetched artifact until SIGTERM.")
def serve() -> None:
    """The server's work."""
    from fettle.server.pod import serve as run

    try:
        _run(lambda settings: uvloop.run(run(settings)))
    except Exception:  # such as a port that is taken
        logging.getLogger(__name__).exception("the server failed")
        leave(1)
    leave(0)


@main.command(hidden=True, help="One of several processes of `serve`, which starts it.")
@click.argument("descriptor", type=int)
def worker(descriptor: int) -> None:
    """`descriptor`: the socket to the supervisor."""
    from fettle.server.worker import work

    leave(work(descriptor))


if __name__ == "__main__":
    main()
