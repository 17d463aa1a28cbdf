"""What users may say of pods, as Kubernetes words it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field

from fettle.api.base import ApiModel
from fettle.api.vocabulary import Quantity

NVIDIA = "nvidia.com/"  # begins what NVIDIA's device plugin offers: gpu, gpu.shared, mig-1g.10gb, ...
_NONE = re.compile(r"0*\.?0*([A-Za-z]|$)")  # a quantity of 0, with or without a suffix


class ResourceSpec(ApiModel):
    """Requests and limits of a container, as Kubernetes writes them."""

    requests: Annotated[
        dict[str, Quantity], Field(max_length=16, description="Resources that the scheduler reserves.")
    ] = {}
    limits: Annotated[dict[str, Quantity], Field(max_length=16, description="Limits that the kubelet enforces.")] = {}

    @property
    def gpus(self) -> dict[str, int | str]:
        """The resources of NVIDIA's device plugin that are asked for. Pods need them as limits. An amount of 0 asks for nothing."""
        asked = {**self.requests, **self.limits}
        return {
            name: amount for name, amount in asked.items() if name.startswith(NVIDIA) and not _NONE.match(str(amount))
        }

    @property
    def has_others(self) -> bool:
        """Whether anything is asked for, or limited, beside GPUs."""
        return any(not name.startswith(NVIDIA) for name in (*self.requests, *self.limits))

    def with_gpus(self, gpus: Mapping[str, int | str]) -> Self:
        """The same with GPUs as limits, from which Kubernetes derives the requests."""
        return self.model_copy(update={"limits": {**self.limits, **gpus}})


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
