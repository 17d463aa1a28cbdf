"""Renders the objects of a ModelDeployment: a Deployment per revision, one Service, one PodDisruptionBudget.

A revision's pod template is rendered once, when its line is added to the ledger, and always taken from there afterwards. The Service and
its selector do not depend on revisions: with the Replicas provider, a weight is a number of pods.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fettle.api import catalog, images
from fettle.api.base import GROUP, MANAGED_LABEL, MODEL_DEPLOYMENT_LABEL, REVISION_LABEL
from fettle.api.pods import ResourceSpec
from fettle.api.server import BatchingSpec, ServerSpec, TokenReviewSpec
from fettle.api.signature import Signature
from fettle.api.vocabulary import DeviceKind
from fettle.cluster import serving_stores as stores
from fettle.cluster.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, POD_DISRUPTION_BUDGET, SECRET, SERVICE, Object
from fettle.cluster.owner import OWNER_ANNOTATION, child
from fettle.cluster.quantity import quantity
from fettle.cluster.security import container_security, pod_security, pull_secrets
from fettle.plan.rollout.revision import ModelRevision, ServedArtifact
from fettle.plan.rollout.state import TRAFFIC_LABEL
from fettle.plan.rollout.status import HTTP_PORT
from fettle.settings import Settings

STABLE_ANNOTATION = f"{GROUP}/stable-revision"
ARTIFACT_ANNOTATION = f"{GROUP}/artifact"
SCHEME_ANNOTATION = f"{GROUP}/scheme"
# Of pods that ask the API server, and of pods that send traces: for NetworkPolicies.
REVIEW_LABEL, TRACING_LABEL = f"{GROUP}/token-review", f"{GROUP}/tracing"
GRPC_PORT = 9000
MANAGEMENT_PORT = 8081
_PROTOCOLS = {"http": "http", "grpc": "kubernetes.io/h2c"}  # as gateways and meshes are told: HTTP/2 without TLS
_TLS_PROTOCOLS = {"http": "https", "grpc": "https"}
SERVER = "server"
FETCH = "fetch"
FOLDER = "/model"
SAMPLES_FOLDER = "/var/run/fettle/samples"
TLS_FOLDER = "/var/run/fettle/tls"
TOKENS_FOLDER = "/var/run/fettle/tokens"
KUBERNETES_FOLDER = "/var/run/fettle/kubernetes"
TOKEN_SECONDS = 3600  # after which the kubelet has renewed the pod's own token
MIN_READY_SECONDS = 2  # a pod that is ready this long is available
LONGEST_REQUEST_SECONDS = 30  # what is in flight after the drain may take this long
STARTUP_SECONDS = 900  # a model may load this long
_OWN_TOKEN = [
    {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
]


def deployment_name(name: str, revision: str) -> str:
    """`<name>-<revision>`."""
    return f"{name}-{revision}"


def selector(name: str, revision: str | None = None) -> dict[str, str]:
    """The labels that select the pods of a ModelDeployment, or of one of its revisions."""
    labels = {MODEL_DEPLOYMENT_LABEL: name}
    return labels if revision is None else {**labels, REVISION_LABEL: revision}


def deployment(owner: Object, revision: str, artifact: str, template: Object, replicas: int) -> Object:
    """The Deployment of a revision. `template` is the whole pod template from the ledger."""
    metadata = owner["metadata"]
    labels = selector(metadata["name"], revision)
    return {
        **child(
            DEPLOYMENT,
            MODEL_DEPLOYMENT,
            owner,
            deployment_name(metadata["name"], revision),
            labels,
            annotations={ARTIFACT_ANNOTATION: artifact},
        ),
        "spec": {
            "replicas": replicas,
            "minReadySeconds": MIN_READY_SECONDS,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": template,
        },
    }


def service(owner: Object, stable: str | None, deployment: Object | None = None) -> Object:
    """The main Service: every ready pod of every revision. Its annotation says which revision is stable, its ports what that one's pods speak: as in
    their `deployment`, or where there is none yet, as the spec asks."""
    metadata = owner["metadata"]
    asked = ((owner.get("spec") or {}).get("server") or {}).get("tls") is not None
    encrypted = uses_tls(deployment) if deployment is not None else asked
    ports, protocols = {"http": HTTP_PORT, "grpc": GRPC_PORT}, _TLS_PROTOCOLS if encrypted else _PROTOCOLS
    return {
        **child(
            SERVICE,
            MODEL_DEPLOYMENT,
            owner,
            metadata["name"],
            selector(metadata["name"]),
            annotations={STABLE_ANNOTATION: stable} if stable is not None else {},
        ),
        "spec": {
            "selector": {**selector(metadata["name"]), TRAFFIC_LABEL: "on"},
            "ports": [
                {"name": name, "port": port, "targetPort": name, "protocol": "TCP", "appProtocol": protocols[name]}
                for name, port in ports.items()
            ],
        },
    }


def samples_name(owner: Object) -> str:
    """Name of the Service and of the Secret with which a canary fetches samples from stable pods.

    It contains a part of the UID, so that it cannot equal the name of another ModelDeployment, and an object that is created again gets a
    new Secret.
    """
    metadata = owner["metadata"]
    return f"{metadata['name']}-samples-{hashlib.sha256(metadata['uid'].encode()).hexdigest()[:6]}"


def samples_service(owner: Object, stable: str) -> Object:
    """A headless Service whose name resolves to the addresses of the stable revision's ready pods."""
    metadata = owner["metadata"]
    return {
        **child(SERVICE, MODEL_DEPLOYMENT, owner, samples_name(owner), selector(metadata["name"])),
        "spec": {
            "clusterIP": "None",
            "selector": selector(metadata["name"], stable),
            "ports": [{"name": "management", "port": MANAGEMENT_PORT, "targetPort": "management", "protocol": "TCP"}],
        },
    }


def samples_secret(owner: Object, token: str) -> Object:
    """The Secret with the token that the pods of a ModelDeployment present to each other. Nobody else reads it, not even the operator."""
    metadata = owner["metadata"]
    return {
        **child(
            SECRET, MODEL_DEPLOYMENT, owner, samples_name(owner), {**selector(metadata["name"]), MANAGED_LABEL: "true"}
        ),
        "type": "Opaque",
        "stringData": {"token": token},
    }


def disruption_budget(owner: Object) -> Object:
    """A PodDisruptionBudget that lets node drains evict at most one pod at a time."""
    metadata = owner["metadata"]
    return {
        **child(POD_DISRUPTION_BUDGET, MODEL_DEPLOYMENT, owner, metadata["name"], selector(metadata["name"])),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(metadata["name"])}},
    }


def pod_template(
    owner: Object, revision: ModelRevision, settings: Settings, replaces: Signature | None = None
) -> Object:
    """The pod template of a revision, rendered with the current defaults. It is stored in the ledger and never rendered again.

    `replaces`: the inputs and outputs that clients use now. Pods whose artifact does not fit them do not start.
    """
    name = owner["metadata"]["name"]
    template, placement = revision.template, revision.artifact.placement
    optional = {
        "nodeSelector": {**placement.node_selector, **template.node_selector},
        "tolerations": [toleration.to_json() for toleration in (*placement.tolerations, *template.tolerations)],
        "affinity": template.affinity,
        "topologySpreadConstraints": list(template.topology_spread_constraints),
        "serviceAccountName": template.service_account_name,
        "imagePullSecrets": pull_secrets(revision.template.image_pull_secrets, settings.image_pull_secrets),
        "priorityClassName": template.priority_class_name,
        "runtimeClassName": template.runtime_class_name or placement.runtime_class_name,
    }
    asking = {REVIEW_LABEL: "true"} if _review(revision.server) is not None else {}
    asking |= {TRACING_LABEL: "true"} if revision.server.tracing is not None else {}
    ours = {**selector(name, revision.revision), **asking, MANAGED_LABEL: "true", TRAFFIC_LABEL: "on"}
    return {
        "metadata": {
            "labels": {**template.labels, **stores.labels(revision), **ours},
            "annotations": {
                **template.annotations,
                **_scheme(revision),
                OWNER_ANNOTATION: f"{MODEL_DEPLOYMENT.kind}/{name}",
            },
        },
        "spec": {
            **{key: value for key, value in optional.items() if value},
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": settings.drain_seconds + LONGEST_REQUEST_SECONDS,
            "securityContext": pod_security(),
            "initContainers": [_fetch(owner, revision, settings, replaces)],
            "containers": [_serve(owner, revision, settings)],
            "volumes": _volumes(owner, revision),
        },
    }


def _scheme(revision: ModelRevision) -> dict[str, str]:
    """The annotation that tells Prometheus that the management port uses TLS; empty without TLS."""
    return {SCHEME_ANNOTATION: "https"} if revision.server.tls is not None else {}


def _fetch(owner: Object, revision: ModelRevision, settings: Settings, replaces: Signature | None) -> Object:
    """The init container that fetches the artifact; the only container that reads the store."""
    container = _container(FETCH, "fetch", owner, revision, settings, replaces)
    container["env"] += stores.environment(stores.read_from(revision))
    container["volumeMounts"] += stores.volume_mounts(revision, stores.read_from(revision), writes=False)
    return container


def _serve(owner: Object, revision: ModelRevision, settings: Settings) -> Object:
    container = _container(SERVER, "serve", owner, revision, settings)
    container["volumeMounts"] += [
        {"name": name, "mountPath": folder, "readOnly": True} for name, folder in _folders(revision.server).items()
    ]
    if (log := stores.written_to(revision)) is not None:
        container["env"] += stores.environment(log)
        container["volumeMounts"] += stores.volume_mounts(revision, log, writes=True)
    scheme = (
        {"scheme": "HTTPS"} if revision.server.tls is not None else {}
    )  # whose certificate the kubelet does not check

    def asks(path: str, **timing: int) -> Object:
        return {"httpGet": {"path": path, "port": "management", **scheme}, **timing}

    return {
        **container,
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
            {"name": "management", "containerPort": MANAGEMENT_PORT, "protocol": "TCP"},
        ],
        "startupProbe": asks("/readyz", periodSeconds=1, timeoutSeconds=2, failureThreshold=STARTUP_SECONDS),
        "readinessProbe": asks("/readyz", periodSeconds=2, timeoutSeconds=2, failureThreshold=3),
        "livenessProbe": asks("/healthz", periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
    }


def _review(server: ServerSpec) -> TokenReviewSpec | None:
    return server.auth.token_review if server.auth is not None else None


def _folders(server: ServerSpec) -> dict[str, str]:
    """Volume name -> folder in which the server finds a Secret, or its own token for the API server."""
    wanted = {
        "samples": SAMPLES_FOLDER if server.samples else None,
        "tls": TLS_FOLDER if server.tls is not None else None,
        "tokens": TOKENS_FOLDER if server.auth is not None and server.auth.secret_name is not None else None,
        "kubernetes": KUBERNETES_FOLDER if _review(server) is not None else None,
    }
    return {name: folder for name, folder in wanted.items() if folder is not None}


def management_scheme(pod: Object) -> str:
    """The scheme of a serving pod's management port, http or https, taken from its probes."""
    servers = [part for part in (pod.get("spec") or {}).get("containers") or () if part["name"] == SERVER]
    probes = [(server.get("readinessProbe") or {}).get("httpGet") or {} for server in servers]
    return str(next((probe.get("scheme") for probe in probes), None) or "HTTP").lower()


def uses_tls(deployment: Object) -> bool:
    """Whether the pods of a revision's Deployment use TLS."""
    return management_scheme((deployment.get("spec") or {}).get("template") or {}) == "https"


def _container(
    container: str,
    verb: str,
    owner: Object,
    revision: ModelRevision,
    settings: Settings,
    replaces: Signature | None = None,
) -> Object:
    environment = _environment(owner, revision, settings)
    if replaces is not None:
        # Kubernetes would put the value of a variable in place of $(NAME).
        environment["FETTLE_SERVER_REPLACES"] = replaces.canonical().decode().replace("$", r"\u0024")
    given = [variable.to_json() for variable in revision.server.env if variable.name not in environment]
    return {
        "name": container,
        "image": revision.server.image or settings.image(images.server_image(revision.artifact.runtime)),
        "imagePullPolicy": settings.image_pull_policy.value,
        "command": ["python", "-m", "fettle.server", verb],
        "env": [*given, *({"name": key, "value": value} for key, value in environment.items())],
        "resources": resources_of(revision.server, revision.artifact, settings).to_json(),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "model", "mountPath": FOLDER, **({"readOnly": True} if container == SERVER else {})},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def _environment(owner: Object, revision: ModelRevision, settings: Settings) -> dict[str, str]:
    """The environment of both containers (docs/design/contracts.md). Without `threads`, the server uses the measured number."""
    namespace, name = owner["metadata"]["namespace"], owner["metadata"]["name"]
    stable = f"{samples_name(owner)}.{namespace}.svc:{MANAGEMENT_PORT}"
    batching, tls = revision.server.batching or BatchingSpec(), revision.server.tls
    tracing = revision.server.tracing
    folders, review = _folders(revision.server), _review(revision.server) or TokenReviewSpec()
    values: dict[str, Any] = {
        "ARTIFACT": revision.artifact.uri,
        "SHA256": revision.artifact.sha256,
        "FOLDER": FOLDER,
        "MODEL": name,
        "REVISION": revision.revision,
        "THREADS": revision.server.threads,
        "BATCH_MAX_SIZE": batching.max_size,
        "BATCH_MAX_DELAY_MILLISECONDS": batching.max_delay_milliseconds,
        "SAMPLES": revision.server.samples,
        "STABLE": stable if revision.server.samples else None,
        "TRACING_ENDPOINT": tracing.endpoint if tracing is not None else None,
        "TRACING_SAMPLE_RATIO": tracing.sample_ratio if tracing is not None else None,
        **_request_log(owner, revision.server),
        "TLS_FOLDER": folders.get("tls"),
        "TLS_CLIENTS": "true" if tls is not None and tls.require_client_certificate else None,
        "TOKENS_FOLDER": folders.get("tokens"),
        **(_reviewing(owner, review) if "kubernetes" in folders else {}),
        "PORT": HTTP_PORT,
        "GRPC_PORT": GRPC_PORT,
        "MANAGEMENT_PORT": MANAGEMENT_PORT,
        "CONNECTION_MAX_REQUESTS": settings.connection_max_requests,
        "CONNECTION_MAX_SECONDS": settings.connection_max_seconds,
        "DRAIN_SECONDS": settings.drain_seconds,
    }
    told = {f"FETTLE_SERVER_{key}": str(value) for key, value in values.items() if value is not None}
    return {"HOME": "/tmp", **told}


def _request_log(owner: Object, server: ServerSpec) -> dict[str, Any]:
    """Where requests are logged."""
    asked, metadata = server.request_log, owner["metadata"]
    if asked is None:
        return {}
    told = {
        "URI": asked.uri,
        "FOLDER": f"requests/{metadata['namespace']}/{metadata['name']}",
        "MAX_ITEMS": asked.max_items,
        "INTERVAL_SECONDS": asked.interval_seconds,
        "MAX_FILES": asked.max_files,
    }
    return {f"REQUEST_LOG_{key}": value for key, value in told.items()}


def _reviewing(owner: Object, review: TokenReviewSpec) -> dict[str, str]:
    """Whose tokens the server accepts."""
    metadata = owner["metadata"]
    audiences = review.audiences or (f"{metadata['name']}.{metadata['namespace']}.svc",)
    lists = {"AUDIENCES": audiences, "USERS": review.users or (), "GROUPS": review.groups or ()}
    told = {f"TOKEN_REVIEW_{key}": json.dumps(names) for key, names in lists.items()}
    return {"TOKEN_REVIEW_FOLDER": KUBERNETES_FOLDER, **told}


def resources_of(server: ServerSpec, artifact: ServedArtifact, settings: Settings) -> ResourceSpec:
    """The server's resources: those of the spec, the operator's default, or one core per thread with requests = limits, for a stable latency.

    A GPU is added if the artifact needs one and none is requested.
    """
    gpus = artifact.placement.limits or {}
    for given in (server.resources, settings.server_resources):
        if given.requests or given.limits:
            return given.with_gpus(given.gpus or gpus)
    memory = _memory(artifact, settings)
    amounts: dict[str, int | str] = {"cpu": server.threads or artifact.threads or 1, "memory": memory}
    return ResourceSpec(requests={**amounts, **gpus}, limits={**amounts, **gpus})


def _memory(artifact: ServedArtifact, settings: Settings) -> str:
    """The operator's setting, but at least the host memory that a process with CUDA's libraries needs before it loads a model."""
    entry, floor = catalog.runtime(artifact.runtime), quantity(settings.server_memory) or 0
    if entry.device is DeviceKind.CPU or entry.process_bytes <= floor:
        return settings.server_memory
    return f"{entry.process_bytes >> 20}Mi"


def _volumes(owner: Object, revision: ModelRevision) -> list[Object]:
    server = revision.server
    # Optional: without that Secret a pod serves all the same, and the analysis says that answers cannot be compared. Without those of the
    # spec it does not start: it would answer in the clear, or whoever asks.
    sources: dict[str, Object] = {
        "samples": {"secret": {"secretName": samples_name(owner), "optional": True}},
        "tls": {"secret": {"secretName": server.tls.secret_name if server.tls is not None else ""}},
        "tokens": {"secret": {"secretName": server.auth.secret_name if server.auth is not None else ""}},
        "kubernetes": {"projected": {"sources": _OWN_TOKEN}},
    }
    secrets = [
        {"name": name, kind: {**source, "defaultMode": 0o440}}
        for name in _folders(server)
        for kind, source in sources[name].items()
    ]
    return [{"name": "model", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}, *secrets, *stores.volumes(revision)]
