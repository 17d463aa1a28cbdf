"""The observed state of a ModelDeployment: the object, its children, the OptimizedModel that it follows, and the pods' figures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fettle.api.modeldeployment import ModelDeploymentSpec
from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.cluster import events, ledger, routes, serving, windows, workloads
from fettle.cluster.kinds import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    MODEL_DEPLOYMENT,
    OPTIMIZED_MODEL,
    POD,
    SERVICE,
    Object,
    ResourceKind,
)
from fettle.cluster.owner import owned_by
from fettle.cluster.waiting import QUIET_SECONDS, quiet_in, told_by
from fettle.controller.context import Context
from fettle.controller.stored import status_of
from fettle.errors import ConflictError
from fettle.plan.rollout import analysis
from fettle.plan.rollout.ledger import on_trial
from fettle.plan.rollout.revision import ModelRevision, NotReady, wanted_revision
from fettle.plan.rollout.state import DesiredRevision, PodFault, RolloutSnapshot

logger = logging.getLogger(__name__)

ASKED_AT_ONCE = 4  # pods of one object whose Events are read in a pass: what holds one up holds up its like


@dataclass(frozen=True)
class Observed:
    """A snapshot of a ModelDeployment and its objects."""

    obj: Object
    spec: ModelDeploymentSpec
    wanted: ModelRevision | NotReady
    service: Object | None
    deployments: Mapping[str, Object]  # by revision
    pods: Mapping[str, list[Object]]  # by revision
    lines: tuple[Object, ...]  # of the ledger
    routing: routes.Routing = field(default_factory=dict)  # what routes the traffic
    told: Mapping[str, PodFault] = field(default_factory=dict)  # by a pod's UID, what its Events say

    @property
    def name(self) -> str:
        """Name of the ModelDeployment, and of its Service."""
        return str(self.obj["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.obj["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        """Its UID, to which its children's ownerReferences refer."""
        return str(self.obj["metadata"]["uid"])


def look(context: Context, obj: Object, spec: ModelDeploymentSpec) -> Observed:
    """The state in the cache."""
    cache, metadata = context.cache, obj["metadata"]
    uid, namespace, name = metadata["uid"], metadata["namespace"], metadata["name"]
    labels = serving.selector(name).items()
    pods = [pod for pod in cache.all(POD, namespace) if labels <= (pod["metadata"].get("labels") or {}).items()]
    service = cache.get(SERVICE, namespace, name)
    observed = _observed(
        context, obj, spec, service, cache.owned(DEPLOYMENT, uid), pods, cache.owned(CONTROLLER_REVISION, uid)
    )
    return replace(observed, routing=routes.known(cache, obj))


async def look_live(context: Context, observed: Observed) -> Observed:
    """The state in the API server, read before capacity is removed. Raises ConflictError if the object has changed meanwhile."""
    client, cache, namespace, name = context.client, context.cache, observed.namespace, observed.name
    live = await client.get(MODEL_DEPLOYMENT, namespace, name)
    if live is None or live["metadata"]["resourceVersion"] != observed.obj["metadata"]["resourceVersion"]:
        if live is not None:
            cache.put(MODEL_DEPLOYMENT, live)
        raise ConflictError(f"ModelDeployment {namespace}/{name} changed in the meantime", retryable=True)
    labels = ",".join(f"{key}={value}" for key, value in serving.selector(name).items())
    listed: dict[ResourceKind, list[Object]] = {}
    for kind in (DEPLOYMENT, POD, CONTROLLER_REVISION):
        listed[kind] = list((await client.list(kind, namespace, labels=labels)).items)
        for obj in listed[kind]:
            cache.put(kind, obj)
    listed[DEPLOYMENT] += await _by_name(context, observed, listed[DEPLOYMENT], listed[CONTROLLER_REVISION])
    service = await client.get(SERVICE, namespace, name)
    again = _observed(
        context, live, observed.spec, service, listed[DEPLOYMENT], listed[POD], listed[CONTROLLER_REVISION]
    )
    return replace(again, told=observed.told, routing=await routes.read(client, cache, live))


async def _by_name(
    context: Context, observed: Observed, listed: Iterable[Object], lines: Iterable[Object]
) -> list[Object]:
    """Deployments that serve according to the ledger but are not in the list by labels: somebody may have removed their labels."""
    there = {deployment["metadata"]["name"] for deployment in listed}
    own = (line for line in lines if owned_by(line, observed.uid))
    serving_now = {entry.revision for entry in ledger.read(own) if entry.left is None}
    names = {serving.deployment_name(observed.name, revision) for revision in serving_now} - there
    deployments = [await context.client.get(DEPLOYMENT, observed.namespace, name) for name in sorted(names)]
    return [deployment for deployment in deployments if deployment is not None]


def _observed(
    context: Context,
    obj: Object,
    spec: ModelDeploymentSpec,
    service: Object | None,
    deployments: Iterable[Object],
    pods: Iterable[Object],
    lines: Iterable[Object],
) -> Observed:
    uid = obj["metadata"]["uid"]
    by_revision: dict[str, list[Object]] = {}
    for pod in pods:
        by_revision.setdefault(workloads.revision_of(pod) or "", []).append(pod)
    own = [deployment for deployment in deployments if owned_by(deployment, uid)]
    return Observed(
        obj=obj,
        spec=spec,
        wanted=wanted_revision(spec, _model(context, obj, spec)),
        service=service,
        deployments={revision: deployment for deployment in own if (revision := workloads.revision_of(deployment))},
        pods=by_revision,
        lines=tuple(line for line in lines if owned_by(line, uid)),
    )


def _model(context: Context, obj: Object, spec: ModelDeploymentSpec) -> OptimizedModelStatus | None:
    """The status of the OptimizedModel that the ModelDeployment follows, or None."""
    if spec.model.ref is None:
        return None
    model = context.cache.get(OPTIMIZED_MODEL, obj["metadata"]["namespace"], spec.model.ref.name)
    return status_of(model, OptimizedModelStatus) if model is not None else None


def snapshot_of(context: Context, observed: Observed) -> RolloutSnapshot:
    metadata, wanted, now = observed.obj["metadata"], observed.wanted, context.now()
    ours = observed.service is not None and owned_by(observed.service, observed.uid)
    notes = ((observed.service or {}).get("metadata") or {}).get("annotations") or {}
    return RolloutSnapshot(
        namespace=observed.namespace,
        name=observed.name,
        generation=metadata["generation"],
        spec=observed.spec,
        status=status_of(observed.obj, ModelDeploymentStatus),
        wanted=wanted if isinstance(wanted, NotReady) else DesiredRevision(wanted.revision, wanted.artifact.uri),
        now=now,
        stable_annotation=notes.get(serving.STABLE_ANNOTATION) if ours else None,
        ledger=ledger.read(observed.lines),
        workloads={
            revision: workloads.observe(deployment, observed.pods.get(revision, []), observed.told)
            for revision, deployment in observed.deployments.items()
        },
        annotations=metadata.get("annotations") or {},
        routes=routes.observe(observed.spec.traffic.provider, observed.routing, now),
    )


async def ask_events(context: Context, observed: Observed) -> tuple[Observed, float | None]:
    """`observed` with the Events of pods that are scheduled but do not start: only an Event tells that a volume is not attached.

    Also returns the seconds until the Events of a pod that was just scheduled should be read. Raises ClusterError."""
    now, patience = context.now(), context.settings.unschedulable_seconds
    waits = {pod["metadata"]["uid"]: quiet_in(pod, now, patience) for pods in observed.pods.values() for pod in pods}
    quiet = [uid for uid, seconds in waits.items() if seconds == 0][:ASKED_AT_ONCE]
    answers = {uid: told_by(await events.about(context.client, observed.namespace, uid)) for uid in quiet}
    told = {uid: PodFault(*said) for uid, said in answers.items() if said is not None}
    looks = [seconds or QUIET_SECONDS for seconds in waits.values() if seconds is not None]
    return replace(observed, told=told), min(looks, default=None)


async def ask_pods(context: Context, observed: Observed, snapshot: RolloutSnapshot) -> RolloutSnapshot:
    """The snapshot with the pods' figures, if a canary's window is over. Its time stays the same, because the figures extend beyond it."""
    spec, canary, stable = snapshot.spec.rollout.analysis, snapshot.status.canary, snapshot.stable_annotation
    if spec is None or canary is None or stable is None or on_trial(snapshot, stable) != canary.revision:
        context.trials.over(observed.namespace, observed.name)
        return snapshot
    own = observed.pods.get(canary.revision, [])
    trial = context.trials.of(observed.obj, canary, own, context.now())
    span = analysis.due(spec, canary.analysis, snapshot.now) if canary.analysis is not None else None
    if span is None:
        return snapshot
    asked = {stable: observed.pods.get(stable, []), canary.revision: own}
    trial.tiles.keep({str(pod["metadata"].get("uid")) for pods in asked.values() for pod in pods})
    observations = await windows.observe(asked, span, context.now, context.settings.scrape_timeout_seconds, trial)
    return replace(snapshot, windows=observations)
