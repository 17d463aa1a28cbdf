"""What `fettle` and `kubectl-fettle` share: errors that a person reads are one line and an exit status, never a traceback."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from fettle.errors import FettleError, MissingError, UsageError

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
EXIT_FAILURE, EXIT_USAGE = 1, 2


class Failure(click.ClickException):
    """A FettleError on its way to the terminal."""

    exit_code = EXIT_FAILURE

    def __init__(self, error: FettleError) -> None:
        # What is not there needs no other word for it.
        super().__init__(error.message if isinstance(error, MissingError) else f"{error.message} ({error.reason})")


class Misuse(Failure):
    """A command line or a manifest that cannot be acted on."""

    exit_code = EXIT_USAGE

    def __init__(self, error: UsageError) -> None:
        super(Failure, self).__init__(error.message)


class CommandGroup(click.Group):
    """A command group that turns FettleError into `Error: …` and exit status 1, or 2 for what was asked wrongly.

    `later` are commands whose module is imported only when they run (`name: ("module:attribute", "short help")`): what
    one command needs of a cluster or of numpy is not paid for by every other.
    """

    def __init__(self, *args: Any, later: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._later = dict(later or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return sorted({*super().list_commands(ctx), *self._later})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now if it was left for later."""
        if cmd_name not in self._later:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._later[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was asked for; options of the group stand for its own. Raises UsageError where it has no such option."""
        name, command, rest = super().resolve_command(ctx, args)
        given = {option: value for option, value in ctx.params.items() if value is not None}
        if name is None or command is None or not given:
            return name, command, rest
        unknown = sorted(given.keys() - {parameter.name for parameter in command.params})
        if unknown and not ctx.resilient_parsing:
            raise UsageError(f"`{ctx.command_path} {name}` works without a cluster and has no option --{unknown[0]}")
        ctx.default_map = {name: given}
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each command with its short help, without importing it."""
        rows = []
        for name in self.list_commands(ctx):
            known = None if name in self._later else super().get_command(ctx, name)
            rows.append((name, known.get_short_help_str(limit=100) if known else self._later[name][1]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise Misuse(error) from error
        except FettleError as error:
            raise Failure(error) from error
