"""`kubectl fettle …`: commands for a rollout, and what became of it. The same commands stand under `fettle`."""

from __future__ import annotations

import click

from fettle.cli.entry import HELP, Program

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


if __name__ == "__main__":
    main()
