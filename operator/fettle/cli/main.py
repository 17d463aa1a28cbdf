"""`fettle`: optimize a model on this machine, bring files into a cluster."""

from __future__ import annotations

import click

from fettle import __version__
from fettle.cli.optimize import optimize
from fettle.cli.program import HELP, Program


@click.group(cls=Program, context_settings=HELP)
def main() -> None:
    """Optimize models and prove what was gained; the same plan and the same tasks as in a cluster."""


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"fettle {__version__}")


main.add_command(optimize)

if __name__ == "__main__":
    main()
