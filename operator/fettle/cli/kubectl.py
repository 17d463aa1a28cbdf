"""`kubectl fettle …`: commands for a rollout, and what became of it. The same commands stand under `fettle`."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

from fettle.cli.access.connection import cluster_options
from fettle.cli.entry import HELP, CommandGroup

# kubectl's words for: nothing of the file system fits here; it may (cobra's ShellCompDirectiveNoFileComp and -Default).
NO_FILES, FILES = 4, 0
CLUSTER_COMMANDS = {
    "abort": ("fettle.cli.commands.steer:abort", "End the rollout and move all traffic back to the stable revision."),
    "completion": ("fettle.cli.commands.completion:completion", "Print the completion script for a shell."),
    "history": (
        "fettle.cli.commands.history:history",
        "Show which revisions served, when, and why they left, newest first.",
    ),
    "pause": ("fettle.cli.commands.steer:pause", "Pause the rollout."),
    "promote": ("fettle.cli.commands.steer:promote", "End the current pause and continue with the next step."),
    "promote-full": ("fettle.cli.commands.steer:promote_full", "Skip the remaining steps."),
    "prune": (
        "fettle.cli.commands.prune:prune",
        "Free space in a store by removing files that nothing in the namespace refers to.",
    ),
    "pull": ("fettle.cli.commands.pull:pull", "Download a file, a folder or an artifact."),
    "push": (
        "fettle.cli.commands.push:push",
        "Upload a file or a folder to a claim in the cluster, to a bucket, or to an OCI registry.",
    ),
    "report": (
        "fettle.cli.commands.report:report",
        "Download the report of an OptimizedModel as a self-contained HTML file.",
    ),
    "resume": ("fettle.cli.commands.steer:resume", "Resume a paused rollout."),
    "retry": (
        "fettle.cli.commands.steer:retry",
        "Retry a failed or aborted revision of a ModelDeployment, or the failed run of an OptimizedModel.",
    ),
    "rollback-to": (
        "fettle.cli.commands.steer:rollback_to",
        "Roll back to an earlier revision until the spec asks for another revision.",
    ),
    "sample": ("fettle.cli.commands.sample:sample", "Collect live inputs of a ModelDeployment in an .npz file."),
    "status": (
        "fettle.cli.commands.status:status",
        "Show the ModelDeployment and the OptimizedModel with this name, or only the one of the kind that is named.",
    ),
    "tensorboard": (
        "fettle.cli.commands.tensorboard:tensorboard",
        "Download the training curves of an OptimizedModel and show them in TensorBoard.",
    ),
    "why": (
        "fettle.cli.commands.why:why",
        "Explain the decisions that led to the current state, with metrics, values, bounds and sample counts.",
    ),
}


@click.group(cls=CommandGroup, context_settings=HELP, later=CLUSTER_COMMANDS)
@cluster_options
def main(**connection: str | None) -> None:
    """Inspect and control OptimizedModels and ModelDeployments in a cluster.

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
    completions = shell(main, {}, "kubectl-fettle", "").get_completions(before, incomplete)
    words = [item for item in completions if item.type == "plain"]  # of files kubectl's own shell knows
    for item in words:
        click.echo(f"{item.value}\t{item.help}" if item.help else item.value)
    click.echo(f":{NO_FILES if len(words) == len(completions) else FILES}")


if __name__ == "__main__":
    main()
