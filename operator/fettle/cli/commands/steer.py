"""Commands for a rollout or a run. Each sets an annotation, on which the operator acts once, so that a GitOps tool sees no drift."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import click

from fettle.api.conditions import READY, find
from fettle.api.modeldeployment import ModelDeployment
from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.cli.access.cluster import DEPLOYMENTS, MODELS, Cluster
from fettle.cli.access.completion import deployment_names, names, revisions
from fettle.cli.access.objects import deployment_of, echo, model_of, output_option
from fettle.cli.access.options import with_cluster
from fettle.cli.access.subject import NameType, Subject, SubjectType
from fettle.errors import MissingError, UsageError
from fettle.plan.commands import PAUSED_ANNOTATION, Command, command_line
from fettle.plan.run.retry import measured_now, subject_of

RevisionOf = Callable[[ModelDeploymentStatus], str | None]
order_option = output_option(
    "Print what the command wrote, for programs: command, object, revision, annotations, message."
)


@dataclass(frozen=True)
class About:
    """The object of a command; `resource` is its kind in the plural, as kubectl accepts it."""

    resource: str
    namespace: str
    name: str


@dataclass(frozen=True)
class Order:
    """What a command requested from the operator; `-o` prints these fields.

    `revision` is the revision to act on, or None for the whole object. `annotations` were written; null means that one was removed. An Event of
    the object reports the outcome. `message` is the text for people.
    """

    command: str
    object: About
    revision: str | None
    annotations: Mapping[str, str | None]
    message: str


def give(cluster: Cluster, order: Order, output: str | None) -> None:
    """Write its annotations, and say so. Raises ClusterError."""
    cluster.annotate(order.object.resource, order.object.name, order.annotations)
    if output is not None:
        echo(asdict(order), output)
    else:
        click.echo(order.message)


def canary(status: ModelDeploymentStatus) -> str | None:
    """The revision of the canary."""
    return status.canary.revision if status.canary is not None else None


@dataclass(frozen=True)
class Word:
    """A command without arguments: the revision that it refers to, and the message if there is none."""

    command: Command
    subject: RevisionOf
    absent: str
    help: str


WORDS = (
    Word(Command.PROMOTE, canary, "no canary to promote", "End the current pause and continue with the next step."),
    Word(
        Command.PROMOTE_FULL,
        canary,
        "no canary to promote",
        "Skip the remaining steps. The canary becomes stable as soon as all its pods are available.",
    ),
    Word(Command.ABORT, canary, "no canary to abort", "End the rollout and move all traffic back to the stable revision."),
)  # fmt: skip


def command(word: Word) -> click.Command:
    """The command that writes `fettle.dev/<command>` = `<revision>/<token>`, which refers to that revision only and acts once."""
    name = word.command.value

    @click.command(
        name, help=f"{word.help}\n\n\b\nkubectl fettle {name} digits\nkubectl fettle {name} digits -n vision -o json"
    )
    @click.argument("deployment", metavar="NAME", type=NameType(DEPLOYMENTS), shell_complete=deployment_names)
    @order_option
    @with_cluster
    def run(cluster: Cluster, deployment: str, output: str | None) -> None:
        revision = word.subject(deployment_of(cluster, deployment).status)
        if revision is None:
            raise UsageError(f"modeldeployment {deployment} in namespace {cluster.namespace} has {word.absent}")
        _order_revision(cluster, deployment, word.command, revision, output)

    return run


def _order_revision(cluster: Cluster, deployment: str, command: Command, revision: str, output: str | None) -> None:
    about = About(DEPLOYMENTS, cluster.namespace, deployment)
    notes = {command.annotation: f"{revision}/{_token()}"}
    message = f"modeldeployment {deployment}: {command.value} requested for revision {revision}"
    give(cluster, Order(command.value, about, revision, notes, message), output)


promote, promote_full, abort = (command(word) for word in WORDS)


@click.command()
@click.argument("subject", metavar="[mdep/|om/]NAME", type=SubjectType(), shell_complete=names)
@order_option
@with_cluster
def retry(cluster: Cluster, subject: Subject, output: str | None) -> None:
    """Retry a failed or aborted revision of a ModelDeployment, or the failed run of an OptimizedModel.

    A revision starts again at its first step. For an OptimizedModel, only the failed tasks run again, and the published artifact
    stays published. If nothing failed, the published artifact is checked, and made again if the store has lost it. A plain NAME means
    the ModelDeployment with that name if there is one, otherwise the OptimizedModel.

    \b
    kubectl fettle retry digits
    kubectl fettle retry om/digits
    """
    name = subject.name
    if subject.kinds == (MODELS,):
        _retry_model(cluster, name, output)
        return
    try:
        deployment = deployment_of(cluster, name)
    except MissingError as error:
        if MODELS not in subject.kinds:
            raise
        try:
            _retry_model(cluster, name, output)
        except MissingError:
            raise error from None
        return
    revision = deployment.status.failed_revision
    if revision is None:
        text = f"modeldeployment {name} in namespace {cluster.namespace} has no failed revision to retry"
        followed = deployment.spec.model.ref
        if followed is not None:
            told = command_line(Command.RETRY, cluster.namespace, f"om/{followed.name}")
            text += f"; to retry the optimizedmodel that it follows: {told}"
        raise UsageError(text)
    _order_revision(cluster, name, Command.RETRY, revision, output)


def _retry_model(cluster: Cluster, name: str, output: str | None) -> None:
    """Request a retry of an OptimizedModel's run. Raises UsageError if nothing failed and nothing is published."""
    status = model_of(cluster, name).status
    subject = subject_of(status)
    if subject is None:
        ready = find(status.conditions, READY)
        stands = (
            f"its Ready condition has reason {ready.reason}"
            if ready is not None
            else "the operator has not processed it yet"
        )
        where = f"optimizedmodel {name} in namespace {cluster.namespace}"
        raise UsageError(f"{where} has no failed task to retry ({stands}); for another outcome, change the spec")
    later = ", after the current measurement" if measured_now(status) else ""
    message = f"optimizedmodel {name}: retry requested{later} ({subject})"
    about = About(MODELS, cluster.namespace, name)
    give(cluster, Order(Command.RETRY.value, about, None, {Command.RETRY.annotation: _token()}, message), output)


@click.command("rollback-to")
@click.argument("deployment", metavar="NAME", type=NameType(DEPLOYMENTS), shell_complete=deployment_names)
@click.argument("revision", metavar="[REVISION]", required=False, shell_complete=revisions)
@click.option("--now", is_flag=True, help="Skip the steps and move all traffic as soon as the pods are ready.")
@order_option
@with_cluster
def rollback_to(cluster: Cluster, deployment: str, revision: str | None, now: bool, output: str | None) -> None:
    """Roll back to an earlier revision until the spec asks for another revision.

    Without REVISION, the target is the revision that served last before the one that the spec asks for, however often you run the
    command: to go further back, name a REVISION. The revision takes the same steps with the same analysis as any other. With --now, it
    only waits for its pods. You can abbreviate REVISION to its first characters.
    `kubectl fettle history` lists the revisions. The rollback ends when the spec changes the revision, or when you roll back to the
    revision that the spec asks for.

    \b
    kubectl fettle rollback-to digits --now
    kubectl fettle rollback-to digits 3fa9c1d2e4
    kubectl fettle rollback-to digits 3fa --now
    kubectl fettle rollback-to digits 3fa -o json
    """
    resource = deployment_of(cluster, deployment)
    desired = _desired(resource, deployment)
    if revision is None:
        target = _previous(resource.status, desired, deployment)
        _not_again(cluster, resource, target, now)
    else:
        target = _target(revision, [*known(resource.status), desired], deployment)
    if target == desired and resource.status.rollback is None:
        raise UsageError(f"revision {target} is already the one that modeldeployment {deployment} asks for")
    token = _token()
    notes = {Command.ROLLBACK_TO.annotation: f"{desired}/{target}/{token}"}
    if now:
        notes[Command.PROMOTE_FULL.annotation] = f"{target}/{token}"
    chosen = "" if revision else ", the previous revision,"
    message = f"modeldeployment {deployment}: rollback from revision {desired} to {target}{chosen} requested"
    about = About(DEPLOYMENTS, cluster.namespace, deployment)
    give(cluster, Order(Command.ROLLBACK_TO.value, about, target, notes, message), output)


def known(status: ModelDeploymentStatus) -> list[str]:
    """The revisions in the status's view of the ledger, newest first."""
    return list(dict.fromkeys(record.revision for record in reversed(status.revisions)))


def _previous(status: ModelDeploymentStatus, desired: str, name: str) -> str:
    """The revision that served last before `desired`, as Argo CD's action has it. Raises UsageError if there is none."""
    served = [record.revision for record in status.revisions if record.entered and record.revision != desired]
    if not served:
        every = ", ".join(known(status)) or "none"
        text = (
            f"no other revision of modeldeployment {name} has served before revision {desired}, which the spec asks for"
        )
        raise UsageError(f"{text} (revisions in its ledger: {every})")
    return served[-1]


def _not_again(cluster: Cluster, deployment: ModelDeployment, target: str, now: bool) -> None:
    """Raises UsageError if the rollback to the previous revision is in force already and `now` cannot speed it up: a second call must neither
    go further back unasked, nor seem to do something."""
    status, name = deployment.status, deployment.metadata["name"]
    if status.rollback is None or status.rollback.target != target:
        return
    done = status.stable is not None and status.stable.revision == target and status.canary is None
    if now and not done:
        return
    used = (target, status.rollback.desired)
    earlier = [
        record.revision for record in reversed(status.revisions) if record.entered and record.revision not in used
    ]
    further = (
        f"to go further back: {command_line(Command.ROLLBACK_TO, cluster.namespace, f'{name} {earlier[0]}')}"
        if earlier
        else "no earlier revision has served"
    )
    how = "has already been rolled back" if done else "is already being rolled back (--now skips the steps)"
    raise UsageError(f"modeldeployment {name} {how} from revision {status.rollback.desired} to {target}; {further}")


def _desired(deployment: ModelDeployment, name: str) -> str:
    generation, seen = deployment.metadata.get("generation"), deployment.status.observed_generation
    if generation is not None and seen != generation:
        text = f"the operator has not processed the latest spec of modeldeployment {name} yet "
        raise UsageError(
            f"{text}(generation {generation}, observed {seen or 'none'}): try again, or check that the operator is running"
        )
    if deployment.status.desired_revision is None:
        raise UsageError(f"the model of modeldeployment {name} is not ready, so there is no revision to roll back from")
    return deployment.status.desired_revision


def _target(given: str, revisions: Iterable[str], name: str) -> str:
    """The only revision that starts with `given`. Raises UsageError if there is not exactly one."""
    every = list(dict.fromkeys(revisions))
    matches = [revision for revision in every if revision.startswith(given)]
    if given in matches or len(matches) == 1:
        return given if given in matches else matches[0]
    what = f"{len(matches)} revisions start with {given!r}" if matches else f"no revision {given!r}"
    raise UsageError(
        f"{what} in the ledger of modeldeployment {name} ({'matches' if matches else 'it has'}: {', '.join(matches or every)})"
    )


@click.command()
@click.argument("deployment", metavar="NAME", type=NameType(DEPLOYMENTS), shell_complete=deployment_names)
@order_option
@with_cluster
def pause(cluster: Cluster, deployment: str, output: str | None) -> None:
    """Pause the rollout. Scaling, replacing lost pods, abort and the rollback of a bad canary continue.

    \b
    kubectl fettle pause digits
    """
    deployment_of(cluster, deployment)
    about = About(DEPLOYMENTS, cluster.namespace, deployment)
    message = f"modeldeployment {deployment}: paused"
    give(cluster, Order("pause", about, None, {PAUSED_ANNOTATION: "true"}, message), output)


@click.command()
@click.argument("deployment", metavar="NAME", type=NameType(DEPLOYMENTS), shell_complete=deployment_names)
@order_option
@with_cluster
def resume(cluster: Cluster, deployment: str, output: str | None) -> None:
    """Resume a paused rollout.

    \b
    kubectl fettle resume digits
    """
    resource = deployment_of(cluster, deployment)
    notes = {PAUSED_ANNOTATION: None}
    if resource.spec.paused:
        cluster.annotate(DEPLOYMENTS, deployment, notes)
        raise UsageError(f"modeldeployment {deployment} is still paused by its spec: set spec.paused to false")
    about = About(DEPLOYMENTS, cluster.namespace, deployment)
    give(cluster, Order("resume", about, None, notes, f"modeldeployment {deployment}: resumed"), output)


def _token() -> str:
    return secrets.token_hex(4)
