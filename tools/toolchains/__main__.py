"""python -m tools.toolchains run [NAME...]: the tests of each toolchain, in its own environment."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from tools.cluster.shell import Progress
from tools.toolchains import environment, tests
from tools.toolchains.tests import Outcome
from tools.toolchains.toolchain import Toolchain, ToolchainError, toolchains


@click.group(help="Toolchains with an environment of their own, and the tests that run in it.")
def main() -> None:
    pass


@main.command("list", help="Show the toolchains and what each of them tests.")
def show() -> None:
    for toolchain in toolchains():
        click.echo(f"{toolchain.name:20} {toolchain.about}")


@main.command(help="Solve and lock what a toolchain installs; all of them where none is named.")
@click.argument("names", nargs=-1)
def lock(names: tuple[str, ...]) -> None:
    for toolchain in toolchains(names):
        Progress(toolchain.name)("locking")
        environment.lock(toolchain)


@main.command(help="Make the environments without running anything.")
@click.argument("names", nargs=-1)
def make(names: tuple[str, ...]) -> None:
    for toolchain in toolchains(names):
        environment.make(toolchain, Progress(toolchain.name))


@main.command(
    help="Run the tests of the named toolchains, or of all. Fails if a test fails, or if a toolchain runs none."
)
@click.argument("names", nargs=-1)
@click.option("-k", "expression", default="", help="Only tests that match, as pytest's -k.")
def run(names: tuple[str, ...], expression: str) -> None:
    outcomes = [_run(toolchain, ("-k", expression) if expression else ()) for toolchain in toolchains(names)]
    click.echo("")
    for outcome in outcomes:
        click.secho(str(outcome), fg="green" if outcome.good else "red")
    sys.exit(0 if all(outcome.good for outcome in outcomes) else 1)


def _run(toolchain: Toolchain, arguments: tuple[str, ...]) -> Outcome:
    """One that fails does not keep the others from running."""
    progress = Progress(toolchain.name)
    try:
        interpreter = environment.make(toolchain, progress)
    except ToolchainError as error:
        return Outcome(toolchain.name, error=str(error))
    progress("running its tests")
    outcome = tests.run(toolchain, interpreter, arguments)
    progress("done")
    return outcome


def _told(command: Callable[[], None]) -> int:
    try:
        command()
    except ToolchainError as error:
        click.echo(f"toolchains: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_told(lambda: main(prog_name="python -m tools.toolchains")))
