"""What users may say of pods, as Kubernetes words it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel
from fettle.api.vocabulary import Quantity


class ResourceSpec(ApiModel):
    """Requests and limits of a container, as Kubernetes writes them."""

    requests: Annotated[
        dict[str, Quantity], Field(max_length=16, description="Resources that the scheduler reserves.")
    ] = {}
    limits: Annotated[dict[str, Quantity], Field(max_length=16, description="Limits that the kubelet enforces.")] = {}


class Toleration(ApiModel):
    """A taint that pods of this target tolerate."""

    key: Annotated[
        str | None,
        Field(max_length=317, description="Key of the taint. Without it, the operator Exists matches every taint."),
    ] = None
    operator: Annotated[str | None, Field(pattern="^(Exists|Equal)$", description="Operator: Exists or Equal.")] = None
    value: Annotated[str | None, Field(max_length=63, description="Value of the taint.")] = None
    effect: Annotated[
        str | None, Field(max_length=32, description="Effect of the taint: NoSchedule, PreferNoSchedule or NoExecute.")
    ] = None
    toleration_seconds: Annotated[
        int | None, Field(description="How long a NoExecute taint is tolerated, in seconds.")
    ] = None


class LocalReference(ApiModel):
    """Name of an object in this namespace."""

    name: Annotated[str, Field(max_length=253, description="Name of the Secret.")]


class EnvVar(ApiModel):
    """A plain environment variable."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the variable.")]
    value: Annotated[str, Field(max_length=32_768, description="Value of the variable.")] = ""
