"""`fettle`: optimize a model on this machine; and what `kubectl fettle` does with a cluster."""

from __future__ import annotations

import click

from fettle import __version__
from fettle.cli.access.connection import cluster_options
from fettle.cli.entry import HELP, CommandGroup
from fettle.cli.kubectl import CLUSTER_COMMANDS

LATER = {
    **CLUSTER_COMMANDS,
    "init": (
        "fettle.cli.commands.init:init",
        "Inspect a model and its data, and write an OptimizedModel and a ModelDeployment for them, with comments.",
    ),
    "optimize": ("fettle.cli.commands.optimize:optimize", "Optimize a model on this machine, without a cluster."),
    "reproduce": (
        "fettle.cli.commands.reproduce:reproduce",
        "Build an artifact again and compare the digests of its files.",
    ),
    "serve": ("fettle.cli.commands.serve:serve", "Serve an optimized model on this machine, as a pod serves it."),
}


@click.group(cls=CommandGroup, context_settings=HELP, later=LATER)
@cluster_options
def main(**connection: str | None) -> None:
    """Optimize models on this machine or in a cluster, and control their rollouts in a cluster.

    \b
    fettle optimize -f optimizedmodel.yaml --map pvc://models=./models
    fettle serve digits
    fettle status digits --watch
    """


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"fettle {__version__}")


if __name__ == "__main__":
    main()
