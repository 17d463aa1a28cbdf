"""Every command of `fettle` and `kubectl fettle`, from click."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from fettle.cli import kubectl, main
from tools.docs.markdown import generated, table

PROGRAMS = (("fettle", main.main), ("kubectl fettle", kubectl.main))


def page() -> str:
    """The CLI reference."""
    parts = [
        generated("operator/fettle/cli"),
        "# Command line\n",
        "`fettle optimize` works on one machine without a cluster. `kubectl fettle` is a kubectl plugin (the program `kubectl-fettle` on",
        "your `PATH`). All of its commands are also available under `fettle`. Install both from a",
        "checkout with `pip install .[cli]`.\n",
        "The exit status is 0 for success, 1 for a failure with a reason, 2 for a usage error, and 130 after an interrupt. An error message is",
        "one line.\n",
    ]
    for name, program in PROGRAMS:
        parts += _sections(program, name, None)
    return "\n".join(parts)


def _sections(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    """The section of a command, then those of its own commands."""
    context = click.Context(command, parent, info_name=name, **command.context_settings)
    yield f"{'##' if parent is None else '###'} {name}\n"
    yield from _description(command)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    yield f"```text\n{usage}\n```\n"
    records = (record for one in command.get_params(context) if (record := one.get_help_record(context)))
    if rows := [(f"`{option}`", text) for option, text in records if option != "-h, --help"]:
        yield table(("option", "meaning"), rows)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            twice = command is main.main and inner in kubectl.CLUSTER_COMMANDS
            if found is not None and not found.hidden and not twice:
                yield from _sections(found, f"{name} {inner}", context)


def _description(command: click.Command) -> Iterator[str]:
    """The help text; a paragraph that click keeps as it is (\\b) becomes a block of code."""
    for paragraph in re.split(r"\n\n", inspect.cleandoc(command.help or "")):
        if paragraph.startswith("\b\n"):
            yield f"```sh\n{paragraph.removeprefix(chr(8) + chr(10))}\n```\n"
        elif paragraph:
            yield paragraph + "\n"
