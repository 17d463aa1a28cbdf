"""A revision: the hash of everything that the user or the artifact determines about what a pod runs.

Replicas, pauses, steps and analysis are not part of it, so editing them never starts a rollout. Neither are the operator's own
defaults (server image, resources, drain time), so an operator upgrade takes effect with the next revision and restarts no pod.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fettle.api.base import ApiModel, canonical_digest
from fettle.api.conditions import READY, ConditionStatus, find
from fettle.api.modeldeployment import ModelDeploymentSpec, ModelSpec, TemplateSpec
from fettle.api.optimizedmodel_status import OptimizedModelStatus, Placement
from fettle.api.reasons import Reason
from fettle.api.server import ServerSpec
from fettle.api.text import joined
from fettle.api.vocabulary import RuntimeName

ALGORITHM = 1
LENGTH = 10  # characters of the hash: 40 bits over the few revisions of one object


@dataclass(frozen=True)
class ServedArtifact:
    """An artifact that can be served, where it was measured, and with how many threads (None: see its manifest)."""

    uri: str
    sha256: str
    runtime: RuntimeName
    threads: int | None = None
    placement: Placement = field(default_factory=Placement)
    secret_name: str | None = None


@dataclass(frozen=True)
class NotReady:
    """Why there is nothing to serve yet."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class ModelRevision:
    """What the spec asks for: everything that determines a pod template, except for the operator's defaults."""

    revision: str
    artifact: ServedArtifact
    server: ServerSpec
    template: TemplateSpec


def wanted_revision(spec: ModelDeploymentSpec, model: OptimizedModelStatus | None) -> ModelRevision | NotReady:
    """The revision that `spec` asks for. `model` is the status of the OptimizedModel that it follows, or None if there is none."""
    artifact = resolve(spec.model, model)
    if isinstance(artifact, NotReady):
        return artifact
    revision = revision_hash(artifact, spec.server, spec.template)
    return ModelRevision(revision, artifact, spec.server, spec.template)


def resolve(spec: ModelSpec, model: OptimizedModelStatus | None) -> ServedArtifact | NotReady:
    """The artifact to serve: the latest one published for the target, or the one that the spec names."""
    if spec.ref is None:
        if spec.uri is None or spec.sha256 is None or spec.runtime is None:
            return NotReady(Reason.INVALID_SPEC, "spec.model requires ref, or uri with sha256 and runtime")
        return ServedArtifact(spec.uri, spec.sha256, spec.runtime, secret_name=spec.secret_name)
    name, target = spec.ref.name, spec.ref.target
    if model is None:
        return NotReady(
            Reason.MODEL_NOT_READY,
            f"OptimizedModel {name} not found in this namespace: create it, or correct spec.model.ref.name",
        )
    published = next((artifact for artifact in model.artifacts if artifact.target == target), None)
    if published is None:
        return NotReady(
            Reason.MODEL_NOT_READY, f"OptimizedModel {name} has published nothing for target {target}{_why(model)}"
        )
    return ServedArtifact(
        published.uri,
        published.sha256,
        published.runtime,
        published.threads,
        published.placement,
        published.secret_name,
    )


def _why(model: OptimizedModelStatus) -> str:
    ready = find(model.conditions, READY)
    if ready is None:
        return " yet"
    if ready.status is ConditionStatus.TRUE:  # every target that it has is published
        return f", only for {joined(artifact.target for artifact in model.artifacts)}: correct spec.model.ref.target"
    return f" ({ready.reason}: {ready.message})"


def revision_hash(artifact: ServedArtifact, server: ServerSpec, template: TemplateSpec) -> str:
    """Ten hexadecimal digits. Fields with their default value are left out, so adding a field later changes no hash."""
    secret = {"secretName": artifact.secret_name} if artifact.secret_name is not None else {}
    content: dict[str, Any] = {
        "algorithm": ALGORITHM,
        "artifact": {"uri": artifact.uri, "sha256": artifact.sha256, "runtime": artifact.runtime.value, **secret},
        "placement": _set_fields(artifact.placement),
        "server": _set_fields(server),
        "template": _set_fields(template),
    }
    return canonical_digest(content)[:LENGTH]


def _set_fields(model: ApiModel) -> dict[str, Any]:
    fields: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return fields
