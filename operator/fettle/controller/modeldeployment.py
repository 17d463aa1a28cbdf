"""The reconciler of ModelDeployments: observe, let the plan decide, and apply: ledger, Service, workloads, status.

The order of writes is such that the operator may be stopped after any of them: a line is in the ledger before its pods exist, the annotation that
names the stable revision changes before the old one is removed, traffic moves before pods are removed, pods are added before others are
removed, and the status comes last.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from dataclasses import replace

from pydantic import ValidationError

from fettle.api.conditions import (
    DEGRADED,
    PROGRESSING,
    READY,
    RECONCILING,
    STALLED,
    ConditionStatus,
    find,
)
from fettle.api.modeldeployment import ModelDeploymentSpec
from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.reasons import Reason
from fettle.cluster import ledger, routes, serving, workloads
from fettle.cluster.kinds import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    MODEL_DEPLOYMENT,
    POD_DISRUPTION_BUDGET,
    SECRET,
    SERVICE,
    Object,
    ResourceKind,
)
from fettle.cluster.owner import apply_owned, controller_of, name_conflict, owned_by, terminating
from fettle.controller.context import Context
from fettle.controller.observed import Observed, ask_events, ask_pods, look, look_live, snapshot_of
from fettle.controller.stored import conditions_of, legible, report, unreadable, write_status
from fettle.errors import ClusterError, ConflictError, ExistsError
from fettle.plan.events import EventDraft
from fettle.plan.rollout.decide import decide
from fettle.plan.rollout.revision import NotReady
from fettle.plan.rollout.state import Forget, LedgerWrite, OpenEntry, RolloutDecision

logger = logging.getLogger(__name__)

REFUSED_SECONDS = 15.0  # after which a refused write is tried again


async def reconcile(context: Context, namespace: str, name: str) -> float | None:
    """Reconcile one object; returns the seconds until the next pass, or None. Raises ClusterError to be called again."""
    obj = context.cache.get(MODEL_DEPLOYMENT, namespace, name)
    if obj is None or terminating(obj):
        context.trials.over(namespace, name)
        return None
    try:
        spec = ModelDeploymentSpec.model_validate(obj["spec"])
    except ValidationError as error:
        await _report(context, obj, Reason.INVALID_SPEC, unreadable(error))
        return None
    observed, quiet = await ask_events(context, look(context, obj, spec))
    snapshot = await ask_pods(context, observed, snapshot_of(context, observed))
    decision = decide(snapshot)
    if decision.takes_away(snapshot):
        observed = await look_live(context, observed)
        live = replace(snapshot_of(context, observed), windows=snapshot.windows, now=snapshot.now)
        decision = decide(live)
    try:
        await _apply(context, observed, decision)
    except ClusterError as error:
        return await _refused(context, obj, error)
    await write_status(context, MODEL_DEPLOYMENT, observed.obj, decision.status, decision.events)
    return min((seconds for seconds in (decision.requeue_seconds, quiet) if seconds is not None), default=None)


# ---------------------------------------------------------------------------------------------------------------- apply


async def _apply(context: Context, observed: Observed, decision: RolloutDecision) -> None:
    lines = list(observed.lines)
    for write in decision.ledger:
        if isinstance(write, OpenEntry):
            await _ensure_secret(context, observed)
            lines.append(await _open(context, observed, write))
    if decision.stable is not None:
        await _apply_service(context, observed, decision.stable)
    for line in observed.lines:
        await _mark(context, line, decision.ledger)
    left_over = await _apply_routes(context, observed, decision)
    await _apply_workloads(context, observed, decision, lines)
    for kind, obj in left_over:
        await _delete(context, kind, obj)
    for revision in decision.remove:
        await _delete(context, DEPLOYMENT, observed.deployments[revision])
    for write in decision.ledger:
        if isinstance(write, Forget):
            await _delete(context, CONTROLLER_REVISION, _line(observed, write.name))


async def _open(context: Context, observed: Observed, write: OpenEntry) -> Object:
    """Add a line to the ledger. Raises ConflictError if the serial number is in use; the ledger has to be read again then.

    The line is applied, not posted: later patches compare its data byte by byte, and only apply stores it in the form in which a patch sends
    it back.
    """
    body = ledger.render(observed.obj, write, _template(context, observed, write))
    name = body["metadata"]["name"]
    there = await context.client.get(CONTROLLER_REVISION, observed.namespace, name)
    if there is None:
        return await context.client.apply(CONTROLLER_REVISION, body, force=False)
    if not owned_by(there, observed.uid):
        raise name_conflict(CONTROLLER_REVISION, there, controller_of(body))
    context.cache.put(CONTROLLER_REVISION, there)
    raise ConflictError(f"ledger entry {name} was created in the meantime", retryable=True)


async def _ensure_secret(context: Context, observed: Observed) -> None:
    """Create the Secret with the token for samples before a revision's first pod, if it is missing.

    The operator may create Secrets, but not read them. If the creation is refused, the pods serve without it, and an analysis that needs it
    says so.
    """
    if not observed.spec.server.samples:
        return
    try:
        await context.client.create(SECRET, serving.samples_secret(observed.obj, secrets.token_urlsafe(32)))
    except ExistsError:
        return
    except ClusterError as error:
        if error.retryable:
            raise
        logger.warning("%s/%s: cannot create the samples Secret: %s", observed.namespace, observed.name, error.message)


def _template(context: Context, observed: Observed, write: OpenEntry) -> Object:
    """The pod template that an adopted revision already runs, or one that is rendered from the spec with the current defaults."""
    known = ledger.template_of(observed.lines, write.revision) if write.adopt else None
    if known is None and write.adopt and write.revision in observed.deployments:
        known = observed.deployments[write.revision]["spec"]["template"]
    if known is not None:
        return known
    if isinstance(observed.wanted, NotReady) or observed.wanted.revision != write.revision:
        raise ConflictError(f"revision {write.revision} is no longer known; reconciling again", retryable=True)
    serves = observed.pods.get(write.replaces, []) if write.replaces is not None else []
    return serving.pod_template(observed.obj, observed.wanted, context.settings, workloads.signature_of(serves))


async def _apply_service(context: Context, observed: Observed, stable: str) -> None:
    """Apply the Service with the annotation that names the stable revision, the Service for samples, and the PodDisruptionBudget."""
    service = serving.service(observed.obj, stable, observed.deployments.get(stable))
    await apply_owned(context.client, SERVICE, service, observed.service)
    if observed.spec.server.samples:
        samples = serving.samples_service(observed.obj, stable)
        known = context.cache.get(SERVICE, observed.namespace, samples["metadata"]["name"])
        await apply_owned(context.client, SERVICE, samples, known)
    budget = context.cache.get(POD_DISRUPTION_BUDGET, observed.namespace, observed.name)
    await apply_owned(context.client, POD_DISRUPTION_BUDGET, serving.disruption_budget(observed.obj), budget)


async def _apply_routes(
    context: Context, observed: Observed, decision: RolloutDecision
) -> list[tuple[ResourceKind, Object]]:
    """Apply the objects that route traffic; returns those that are no longer needed.

    If the provider uses routes and no revision can get traffic, the routes stay as they are: they lead to the next ready pod.
    """
    provider = observed.spec.traffic.provider
    if not decision.routes and routes.observe(provider, observed.routing, context.now()) is not None:
        return []
    revisions = decision.replicas.keys() - set(decision.remove)
    rendered = routes.render(provider, observed.obj, decision.routes, revisions)
    for kind, body in rendered:
        await apply_owned(context.client, kind, body, routes.current(observed.routing, kind, body))
    return routes.left_over(observed.routing, rendered)


async def _mark(context: Context, line: Object, writes: Iterable[LedgerWrite]) -> None:
    """Update one line of the ledger, in one write."""
    metadata, noted = line["metadata"], dict[str, str | None]()
    for write in writes:
        if not isinstance(write, OpenEntry | Forget) and write.name == metadata["name"]:
            noted |= ledger.notes(write, context.now())
    if noted:
        version = metadata["resourceVersion"]
        await context.client.annotate(
            CONTROLLER_REVISION, metadata["namespace"], metadata["name"], annotations=noted, resource_version=version
        )


def _line(observed: Observed, name: str) -> Object:
    return next(line for line in observed.lines if line["metadata"]["name"] == name)


async def _apply_workloads(
    context: Context, observed: Observed, decision: RolloutDecision, lines: list[Object]
) -> None:
    """Apply every revision's Deployment from its line of the ledger, those that grow first."""

    def shrinks(revision: str) -> bool:
        current = observed.deployments.get(revision)
        return current is not None and decision.replicas[revision] < int(current["spec"].get("replicas", 1))

    for revision in sorted(decision.replicas, key=shrinks):
        current = observed.deployments.get(revision)
        template = ledger.template_of(lines, revision) or (current or {}).get("spec", {}).get("template")
        if revision in decision.remove or template is None:
            continue
        artifact = _artifact(lines, revision) or (workloads.artifact_of(current) if current else "")
        body = serving.deployment(observed.obj, revision, artifact, template, decision.replicas[revision])
        await apply_owned(context.client, DEPLOYMENT, body, current)


def _artifact(lines: list[Object], revision: str) -> str:
    entries = [entry for entry in ledger.read(lines) if entry.revision == revision]
    return entries[-1].artifact if entries else ""


async def _delete(context: Context, kind: ResourceKind, obj: Object) -> None:
    metadata = obj["metadata"]
    if not terminating(obj):
        await context.client.delete(kind, metadata["namespace"], metadata["name"], uid=metadata["uid"])


# --------------------------------------------------------------------------------------------------------------- faults


async def _refused(context: Context, obj: Object, error: ClusterError) -> float | None:
    """Report a write that Kubernetes refused in the conditions, and try again later. Raises errors that only mean to reconcile again."""
    if isinstance(error, ConflictError | ExistsError) or error.reason == Reason.CLUSTER_UNREACHABLE:
        raise error
    logger.warning("%s/%s: %s", obj["metadata"]["namespace"], obj["metadata"]["name"], error.message)
    waits = error.reason == Reason.NAME_CONFLICT and error.retryable  # for an object that is on its way out
    await _report(context, obj, Reason.DEPLOYING if waits else error.reason, error.message, waits=waits)
    return REFUSED_SECONDS


async def _report(context: Context, obj: Object, reason: Reason, message: str, *, waits: bool = False) -> None:
    """Report in the conditions why nothing can be done, and change nothing that serves: Ready stays as it is.

    `waits`: the cause is temporary.
    """
    status = legible(obj, ModelDeploymentStatus)
    ready = find(conditions_of(status), READY)
    wrong = {PROGRESSING: waits, DEGRADED: not waits, RECONCILING: waits, STALLED: not waits}
    if ready is None or ready.status is not ConditionStatus.TRUE:
        wrong[READY] = False
    await report(
        context, MODEL_DEPLOYMENT, obj, status, wrong, EventDraft("Normal" if waits else "Warning", reason, message)
    )
