"""`fettle`: optimize a model on this machine, bring files into a cluster."""

from __future__ import annotations

import click

from fettle import __version__
from fettle.cli.program import HELP, Program

LATER = {
    "optimize": ("fettle.cli.optimize:optimize", "Convert, optimize, measure and choose on this machine."),
    "push": ("fettle.cli.push:push", "Bring a file or folder into a claim of the cluster."),
}


@click.group(cls=Program, context_settings=HELP, later=LATER)
def main() -> None:
    """Optimize models and prove what was gained; the same plan and the same tasks as in a cluster."""


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"fettle {__version__}")


if __name__ == "__main__":
    main()
