"""The kind OptimizedModel: what to optimize, what may be lost, and where it will serve."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fettle.api import catalog, metrics
from fettle.api.base import ApiModel, PrinterColumn, Rule, rules
from fettle.api.constraints import Constraints
from fettle.api.data import DataSpec
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.pods import EnvVar, LocalReference, ResourceSpec, Toleration
from fettle.api.recipe import RecipeSpec
from fettle.api.source import SourceSpec
from fettle.api.uris import Address, SecretName, repository_rules, store_rules
from fettle.api.vocabulary import (
    Architecture,
    DeviceKind,
    Name,
    Objective,
    RuntimeName,
    SearchStrategy,
    Uri,
)


@rules(
    Rule(
        "!(has(self.architecture) || has(self.memory)) || (has(self.kind) && self.kind == 'nvidia')",
        "device.architecture and device.memory describe a GPU: write device.kind: nvidia",
    )
)
class DeviceSpec(ApiModel):
    """What computes on the nodes of a target."""

    kind: Annotated[
        DeviceKind,
        Field(
            description="cpu, or nvidia for an NVIDIA GPU. Pods request one GPU unless resources.limits says otherwise."
        ),
    ] = DeviceKind.CPU
    architecture: Annotated[
        Architecture | None,
        Field(
            description="Compute capability of the GPU: sm75 is a T4, sm86 an A10, sm89 an L4. Defaults to the value in the labels of all "
            "suitable nodes. Engines are built for it, and cannot run on other GPUs."
        ),
    ] = None
    memory: Annotated[
        str | None,
        Field(
            pattern=r"^[1-9][0-9]{0,5}(Mi|Gi)$",
            description="Minimum memory of the GPU, such as 16Gi. Nodes with a lower value in the label nvidia.com/gpu.memory are not suitable.",
        ),
    ] = None

    @property
    def memory_mebibytes(self) -> int:
        """The minimum GPU memory in MiB; 0 if none is set."""
        return 0 if self.memory is None else int(self.memory[:-2]) * (1024 if self.memory.endswith("Gi") else 1)


@rules(
    Rule(
        "!has(self.resources) || !has(self.resources.limits) || !('cpu' in self.resources.limits) || "
        "(type(self.resources.limits['cpu']) == int "
        "? self.resources.limits['cpu'] >= (has(self.threads) ? self.threads : 1) "
        ": !isQuantity(self.resources.limits['cpu']) || quantity(self.resources.limits['cpu']).asApproximateFloat() "
        ">= double(has(self.threads) ? self.threads : 1))",
        "resources.limits.cpu must be at least threads: fewer cores than threads would measure throttling, "
        "not the model",
    ),
)
class TargetSpec(ApiModel):
    """A kind of node that will serve the model. Candidates are measured on such a node."""

    name: Annotated[Name, Field(description="Name of the target. ModelDeployments refer to it.")]
    runtimes: Annotated[
        tuple[RuntimeName, ...],
        Field(
            min_length=1,
            max_length=16,
            description=f"Runtimes that may serve the model. Defaults to {' and '.join(catalog.DEFAULT_RUNTIMES)}, "
            f"on a target with a GPU to {' and '.join(catalog.DEFAULT_GPU_RUNTIMES)}.",
        ),
    ] = catalog.DEFAULT_RUNTIMES
    device: Annotated[
        DeviceSpec | None,
        Field(
            description="The device that runs the model. Defaults to the CPU, or to a GPU if resources.limits has one (nvidia.com/gpu)."
        ),
    ] = None
    threads: Annotated[int, Field(ge=1, le=256, description="Maximum number of threads for one inference.")] = 1
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...],
        Field(
            min_length=1,
            max_length=8,
            description="Batch sizes to measure. Constraints and objective refer to the first.",
        ),
    ] = (1,)
    node_selector: Annotated[dict[str, str], Field(max_length=32, description="Node labels of this target.")] = {}
    tolerations: Annotated[
        tuple[Toleration, ...], Field(max_length=32, description="Tolerations of the pods of this target.")
    ] = ()
    runtime_class_name: Annotated[
        str | None, Field(max_length=253, description="RuntimeClass of measuring and serving pods.")
    ] = None
    resources: Annotated[ResourceSpec, Field(description="Resources of the measuring Job.")] = ResourceSpec()

    @model_validator(mode="after")
    def _runtimes_of_its_device(self) -> Self:
        """Set the default runtimes of a target with a GPU. (A validator in mode "before" would make pydantic parse JSON input as Python.)"""
        if "runtimes" not in self.model_fields_set and self.has_gpu:
            object.__setattr__(self, "runtimes", catalog.DEFAULT_GPU_RUNTIMES)
        return self

    @property
    def has_gpu(self) -> bool:
        """Whether the target needs an NVIDIA GPU, according to its device or its resources."""
        if self.device is not None:
            return self.device.kind is DeviceKind.NVIDIA
        return bool(self.resources.gpus)


class SearchSpec(ApiModel):
    """Limits for the amount of work."""

    parallelism: Annotated[int, Field(ge=1, le=32, description="Number of concurrent build Jobs.")] = 2
    max_candidates: Annotated[
        int, Field(ge=1, le=64, description="Maximum number of candidates for each target, cheapest first.")
    ] = 28
    deadline_seconds: Annotated[int, Field(ge=60, le=604_800, description="Deadline for the run, in seconds.")] = 3600
    strategy: Annotated[
        SearchStrategy,
        Field(
            description="Pruning rejects candidates that a brief measurement shows to lose too much or to be too slow, and stops at a winner and a "
            "runner-up. Exhaustive measures every applicable candidate in full. It takes longer and needs more evaluation items."
        ),
    ] = SearchStrategy.PRUNING


class JobsSpec(ApiModel):
    """What every Job of this run gets besides its work."""

    service_account_name: Annotated[
        str | None, Field(max_length=253, description="ServiceAccount of the pods. Its token is not mounted.")
    ] = None
    image_pull_secrets: Annotated[
        tuple[LocalReference, ...],
        Field(max_length=8, description="Image pull Secrets.", json_schema_extra={"x-map-keys": ["name"]}),
    ] = ()
    labels: Annotated[dict[str, str], Field(max_length=32, description="Labels of the pods.")] = {}
    annotations: Annotated[dict[str, str], Field(max_length=32, description="Annotations of the pods.")] = {}
    priority_class_name: Annotated[str | None, Field(max_length=253, description="PriorityClass of the pods.")] = None
    env: Annotated[
        tuple[EnvVar, ...],
        Field(max_length=64, description="Environment variables.", json_schema_extra={"x-map-keys": ["name"]}),
    ] = ()
    resources: Annotated[ResourceSpec, Field(description="Resources of Jobs that do not measure.")] = ResourceSpec()


@rules(*store_rules("store.uri"))
class StoreSpec(ApiModel):
    """Where artifacts go."""

    uri: Annotated[
        Uri,
        Field(
            description="pvc://CLAIM/PATH, s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH, or a folder in `fettle optimize`."
        ),
    ]
    secret_name: SecretName = None


@rules(*repository_rules("publish.uri"))
class PublishSpec(ApiModel):
    """A repository of an OCI registry, to which the published artifacts are pushed as well."""

    uri: Annotated[
        Uri,
        Field(
            description="oci://REGISTRY/REPOSITORY. Each artifact is pushed as a ModelPack with the tag TARGET-DIGEST (the first 12 digits of "
            "its digest there), so that no tag ever moves. Its address by digest is in status.artifacts[].registryUri."
        ),
    ]
    secret_name: SecretName = None


@rules(
    Rule(
        "!has(self.constraints) || !has(self.constraints.accuracy) || self.constraints.accuracy.maxDrop <= 1.0 || "
        "(has(self.data) && has(self.data.evaluation) && has(self.data.evaluation.metric) && "
        f"self.data.evaluation.metric in {[str(metric) for metric in metrics.UNBOUNDED]})",
        "constraints.accuracy.maxDrop is a fraction: write 0.02 for 2 %",
    ),
    Rule(
        "!has(self.recipes) || self.recipes.all(r, !has(r.steps) || r.steps.all(s, !has(s.quantize) || "
        "(has(s.quantize.mode) && s.quantize.mode == 'Dynamic') || "
        "(has(self.data) && (has(self.data.calibration) || has(self.data.evaluation) || "
        "(has(self.data.generated) && has(self.data.generated.allowLossy) && self.data.generated.allowLossy)))))",
        "static quantization needs data.calibration, data.evaluation or data.generated.allowLossy",
    ),
)
class OptimizedModelSpec(ApiModel):
    """The model to optimize, the accuracy it may lose, and where it will be served."""

    source: Annotated[SourceSpec, Field(description="The trained model.")]
    data: Annotated[DataSpec, Field(description="Data for calibration and evaluation.")] = DataSpec()
    targets: Annotated[
        tuple[TargetSpec, ...],
        Field(
            min_length=1,
            max_length=8,
            description="Where the model will be served. Each target gets one winner.",
            json_schema_extra={"x-map-keys": ["name"]},
        ),
    ]
    recipes: Annotated[
        tuple[RecipeSpec, ...],
        Field(
            max_length=32,
            description="Recipes to try. Empty means the default plan.",
            json_schema_extra={"x-map-keys": ["name"]},
        ),
    ] = ()
    constraints: Annotated[Constraints, Field(description="A published artifact satisfies all of them.")] = (
        Constraints()
    )
    objective: Annotated[
        Objective, Field(description="What to prefer among the candidates that satisfy the constraints.")
    ] = Objective.LATENCY
    search: Annotated[SearchSpec, Field(description="Limits for the amount of work.")] = SearchSpec()
    jobs: Annotated[JobsSpec, Field(description="Settings of all Jobs of the run.")] = JobsSpec()
    store: Annotated[
        StoreSpec | None,
        Field(description="Where artifacts are stored. Defaults to the operator's store, pvc://fettle-store."),
    ] = None
    publish: Annotated[
        PublishSpec | None,
        Field(description="Where else the published artifacts go. They are in the store in any case."),
    ] = None

    def addresses(self) -> dict[str, Address]:
        """Field of the spec -> address that is read, the source's first."""
        losses = {f"spec.recipes[{place}]": recipe.train.address for place, recipe in enumerate(self.recipes)}
        given = {f"{recipe}.train.custom.uri": address for recipe, address in losses.items() if address is not None}
        return {**self.source.addresses(), **self.data.addresses(), **given}


COLUMNS = (
    PrinterColumn("Ready", ".status.conditions[?(@.type=='Ready')].status"),
    PrinterColumn("Targets", ".status.summary.targets"),
    PrinterColumn("Speedup", ".status.summary.speedup"),
    PrinterColumn("Drop", ".status.summary.drop"),
    PrinterColumn("Size", ".status.summary.size"),
    PrinterColumn("Reason", ".status.conditions[?(@.type=='Ready')].reason"),
    PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
)


class OptimizedModel(ApiModel):
    """An OptimizedModel converts, optimizes and measures a trained model, and publishes the best artifact that satisfies every constraint."""

    metadata: dict[str, Any]
    spec: OptimizedModelSpec
    status: OptimizedModelStatus = OptimizedModelStatus()
