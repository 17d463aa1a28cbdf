"""What `fettle` and `kubectl-fettle` share: errors that a person reads are one line and an exit status, never a traceback."""

from __future__ import annotations

from typing import Any

import click

from fettle.errors import FettleError, UsageError

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
EXIT_FAILURE, EXIT_USAGE = 1, 2


class Failure(click.ClickException):
    """A FettleError on its way to the terminal."""

    exit_code = EXIT_FAILURE

    def __init__(self, error: FettleError) -> None:
        super().__init__(f"{error.message} ({error.reason})")


class Misuse(Failure):
    """A command line or a manifest that cannot be acted on."""

    exit_code = EXIT_USAGE

    def __init__(self, error: UsageError) -> None:
        super(Failure, self).__init__(error.message)


class Program(click.Group):
    """A command group that turns FettleError into `Error: …` and exit status 1, or 2 for what was asked wrongly."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise Misuse(error) from error
        except FettleError as error:
            raise Failure(error) from error
