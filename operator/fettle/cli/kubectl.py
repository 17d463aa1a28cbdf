"""`kubectl fettle …`: commands for a rollout, and what became of it. The same commands stand under `fettle`."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

from fettle.cli.entry import HELP, Program

# kubectl's words for: nothing of the file system fits here; it may (cobra's ShellCompDirectiveNoFileComp and -Default).
NO_FILES, FILES = 4, 0
CLUSTER_COMMANDS = {
    "abort": ("fettle.cli.commands.steer:abort", "End the rollout: all traffic back to the stable revision."),
    "completion": ("fettle.cli.commands.completion:completion", "Print the completion script of a shell."),
    "history": ("fettle.cli.commands.history:history", "Show what served when, and why it left."),
    "pause": ("fettle.cli.commands.steer:pause", "Hold the rollout where it is."),
    "promote": ("fettle.cli.commands.steer:promote", "End the canary's present wait and go on with the next step."),
    "promote-full": ("fettle.cli.commands.steer:promote_full", "Skip the remaining steps of the canary."),
    "prune": ("fettle.cli.commands.prune:prune", "Make room in a store: remove what nothing refers to."),
    "pull": ("fettle.cli.commands.pull:pull", "Bring a file, a folder or an artifact out of a claim of the cluster."),
    "push": ("fettle.cli.commands.push:push", "Bring a file or folder into a claim of the cluster."),
    "report": ("fettle.cli.commands.report:report", "Bring the report of an OptimizedModel here, and open it."),
    "resume": ("fettle.cli.commands.steer:resume", "Let a paused rollout go on."),
    "retry": ("fettle.cli.commands.steer:retry", "Try again what failed: a revision, or the run of an OptimizedModel."),
    "rollback-to": ("fettle.cli.commands.steer:rollback_to", "Roll back to a revision of the ledger."),
    "status": ("fettle.cli.commands.status:status", "Show a ModelDeployment and an OptimizedModel on one screen."),
    "why": ("fettle.cli.commands.why:why", "Tell which decisions led here, with metric, value, bound and samples."),
}


@click.group(cls=Program, context_settings=HELP, later=CLUSTER_COMMANDS)
def main() -> None:
    """Steer the rollouts of ModelDeployments, and see why they went as they did.

    \b
    kubectl fettle status digits --watch
    kubectl fettle promote digits
    kubectl fettle why digits
    """


def complete() -> None:
    """Entry point of `kubectl_complete-fettle`, which kubectl asks for `kubectl fettle …`: a line each, then a directive."""
    *before, incomplete = sys.argv[1:] or [""]
    shell = get_completion_class("zsh")
    assert shell is not None
    found = shell(main, {}, "kubectl-fettle", "").get_completions(before, incomplete)
    words = [item for item in found if item.type == "plain"]  # of files kubectl's own shell knows
    for item in words:
        click.echo(f"{item.value}\t{item.help}" if item.help else item.value)
    click.echo(f":{NO_FILES if len(words) == len(found) else FILES}")


if __name__ == "__main__":
    main()
