"""`kubectl fettle …`: commands for a rollout, and its state on one screen."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import click
from pydantic import ValidationError
from rich.console import Console

from fettle.api.base import GROUP
from fettle.api.conditions import Condition
from fettle.api.modeldeployment import ModelDeployment, ModelDeploymentStatus, RevisionStatus
from fettle.api.optimizedmodel import OptimizedModel
from fettle.cli.display import candidates_table, result_console
from fettle.cli.kube import Cluster, cluster_options, connect
from fettle.cli.program import HELP, Program
from fettle.errors import ClusterError, MissingError, UsageError

DEPLOYMENTS, MODELS = "modeldeployments", "optimizedmodels"
Subject = Callable[[ModelDeploymentStatus], str | None]


LATER = {"push": ("fettle.cli.push:push", "Bring a file or folder into a claim of the cluster.")}


@click.group(cls=Program, context_settings=HELP, later=LATER)
def main() -> None:
    """Steer the rollouts of ModelDeployments."""


def canary(status: ModelDeploymentStatus) -> str | None:
    """The revision on trial."""
    return status.canary.revision if status.canary is not None else None


def failed(status: ModelDeploymentStatus) -> str | None:
    """The revision that failed or was aborted last."""
    return status.failed_revision


def command(name: str, subject: Subject, absent: str, help_text: str) -> click.Command:
    """A command that sets `fettle.dev/<name>` to `<revision>/<token>`: it concerns that revision only, and acts once."""

    @click.command(name, help=help_text)
    @click.argument("deployment", metavar="NAME")
    @cluster_options
    def run(deployment: str, namespace: str | None, context: str | None, kubeconfig: str | None) -> None:
        cluster = connect(kubeconfig, context, namespace)
        revision = subject(deployment_of(cluster, deployment).status)
        if revision is None:
            raise UsageError(f"modeldeployment {deployment} in namespace {cluster.namespace} has {absent}")
        cluster.annotate(DEPLOYMENTS, deployment, {f"{GROUP}/{name}": f"{revision}/{secrets.token_hex(4)}"})
        click.echo(f"modeldeployment {deployment}: {name} of revision {revision} ordered")

    return run


COMMANDS = (
    ("promote", canary, "no canary to promote", "End the canary's present wait and go on with the next step."),
    ("promote-full", canary, "no canary to promote", "Skip the remaining steps: the canary becomes stable."),
    ("abort", canary, "no canary to abort", "End the rollout: all traffic back to the stable revision."),
    ("retry", failed, "no failed revision to retry", "Try a failed or aborted revision again."),
)
for line in COMMANDS:
    main.add_command(command(*line))


@main.command()
@click.argument("name", metavar="NAME")
@cluster_options
def status(name: str, namespace: str | None, context: str | None, kubeconfig: str | None) -> None:
    """Show the ModelDeployment and the OptimizedModel of that name."""
    cluster = connect(kubeconfig, context, namespace)
    found = [show for show in (_deployment(cluster, name), _model(cluster, name)) if show is not None]
    if not found:
        raise MissingError(
            f"neither a modeldeployment nor an optimizedmodel {name!r} in namespace {cluster.namespace!r}"
        )
    console = result_console()
    for number, show in enumerate(found):
        if number:
            console.print()
        show(console)


def deployment_of(cluster: Cluster, name: str) -> ModelDeployment:
    """The ModelDeployment. Raises ClusterError."""
    try:
        return ModelDeployment.model_validate(cluster.get(DEPLOYMENTS, name))
    except ValidationError as error:
        raise ClusterError(f"modeldeployment {name} cannot be read: {_first(error)}") from error


def model_of(cluster: Cluster, name: str) -> OptimizedModel:
    """The OptimizedModel. Raises ClusterError."""
    try:
        return OptimizedModel.model_validate(cluster.get(MODELS, name))
    except ValidationError as error:
        raise ClusterError(f"optimizedmodel {name} cannot be read: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    one = error.errors()[0]
    return f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}"


Show = Callable[[Console], None]


def _deployment(cluster: Cluster, name: str) -> Show | None:
    try:
        found = deployment_of(cluster, name)
    except MissingError:
        return None
    return lambda console: show_deployment(console, name, found.status)


def _model(cluster: Cluster, name: str) -> Show | None:
    try:
        found = model_of(cluster, name)
    except MissingError:
        return None
    return lambda console: show_model(console, name, found)


def show_deployment(console: Console, name: str, status: ModelDeploymentStatus) -> None:
    """A rollout on one screen: conditions, who serves, who is on trial, and what served before."""
    _say(console, f"modeldeployment/{name}")
    _conditions(console, status.conditions)
    if status.address is not None:
        _say(console, f"  url        {status.address.url}")
    if status.stable is not None:
        _say(console, f"  stable     {_pods(status.stable)}")
    if status.canary is not None:
        weight = f"weight {status.canary.actual_weight} % (asked {status.canary.weight} %), step {status.canary.step}"
        _say(console, f"  canary     {_pods(status.canary)}, {weight}")
        analysis = status.canary.analysis
        if analysis is not None:
            said = f": {analysis.message}" if analysis.message else ""
            counts = f"{analysis.requests} requests, {analysis.failures} failed"
            _say(console, f"  analysis   {analysis.verdict} ({counts}){said}")
    if status.failed_revision is not None:
        _say(console, f"  failed     {status.failed_revision} (kubectl fettle retry {name} tries it again)")
    for number, record in enumerate(reversed(status.revisions)):
        left = f"left {record.left}, {record.reason}" if record.left else "serves"
        _say(console, f"  {'ledger' if not number else '':<10} {record.revision}  entered {record.entered}  {left}")


def show_model(console: Console, name: str, model: OptimizedModel) -> None:
    """A run on one screen: conditions, candidates, artifacts."""
    _say(console, f"optimizedmodel/{name}")
    _conditions(console, model.status.conditions)
    for artifact in model.status.artifacts:
        _say(console, f"  artifact   {artifact.target}: {artifact.candidate} in {artifact.runtime}, {artifact.uri}")
    if model.status.report is not None:
        _say(console, f"  report     {model.status.report.uri}")
    if model.status.candidates:
        console.print()
        console.print(candidates_table(model.status, console.width))


def _conditions(console: Console, conditions: tuple[Condition, ...]) -> None:
    for one in conditions:
        message = f": {one.message}" if one.message else ""
        _say(console, f"  {one.type:<14} {one.status:<8} {one.reason}{message}")


def _pods(revision: RevisionStatus) -> str:
    return f"{revision.revision}  {revision.ready}/{revision.replicas} ready"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
