"""The operator's settings: one class, each value from the environment variable `FETTLE_<NAME>`; the chart's values mirror it."""

from __future__ import annotations

import socket
import uuid
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fettle.api.catalog import Image
from fettle.api.pods import ResourceSpec
from fettle.api.task import SECONDS_PER_CANDIDATE
from fettle.api.uris import claim_of


class PullPolicy(StrEnum):
    """When the kubelet pulls an image."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


Words = Annotated[tuple[str, ...], NoDecode]  # given as "a,b,c"; everything richer is JSON


class Settings(BaseSettings):
    """What an administrator may set. Maps and lists of objects are JSON, lists of words are separated by commas."""

    model_config = SettingsConfigDict(env_prefix="FETTLE_", frozen=True, extra="ignore")

    # Who and where
    namespace: Annotated[str, Field(description="The operator's own namespace: its Lease lies there.")] = (
        "fettle-system"
    )
    identity: Annotated[
        str,
        Field(
            validate_default=True,
            description="Name in the Lease: the pod's UID; else the host's name and a random word.",
        ),
    ] = ""
    watch_namespaces: Annotated[Words, Field(description="Namespaces to serve; all when empty.")] = ()
    ignore_namespaces: Annotated[
        Words,
        Field(
            description="Namespaces, or patterns such as team-*, that this operator leaves alone: another one serves them."
        ),
    ] = ()
    kubeconfig: Annotated[str | None, Field(description="Kubeconfig file; absent: the pod's ServiceAccount.")] = None

    # Images
    optimizer_image: Annotated[str, Field(description="Image of optimizing Jobs.")] = "ghcr.io/fettle/optimizer:0.1.0"
    server_image: Annotated[
        str, Field(description="Image of serving pods; a new one reaches the next revision only.")
    ] = "ghcr.io/fettle/server:0.1.0"
    optimizer_torch_image: Annotated[
        str, Field(description="The same with PyTorch: for its sources, and where torchscript is measured.")
    ] = "ghcr.io/fettle/optimizer-torch:0.1.0"
    server_torch_image: Annotated[str, Field(description="Image of pods that serve with torchscript.")] = (
        "ghcr.io/fettle/server-torch:0.1.0"
    )
    image_pull_policy: Annotated[PullPolicy, Field(description="Pull policy of all four.")] = PullPolicy.IF_NOT_PRESENT
    image_pull_secrets: Annotated[Words, Field(description="Secrets to pull with, in the objects' namespaces.")] = ()

    # The default store
    store_uri: Annotated[str, Field(description="Store of OptimizedModels that name none.")] = "pvc://fettle-store"
    store_create: Annotated[bool, Field(description="Create the default store's claim where it is missing.")] = True
    store_size: Annotated[str, Field(description="Size of a created claim.")] = "20Gi"
    store_storage_class: Annotated[
        str | None, Field(description="StorageClass of a created claim; absent: the default.")
    ] = None
    store_access_modes: Annotated[
        Words, Field(description="Access modes of a created claim; ReadWriteMany where pods land on several nodes.")
    ] = ("ReadWriteOnce",)

    # Jobs
    job_resources: Annotated[
        ResourceSpec, Field(description="Resources of Jobs that do not measure, where spec.jobs.resources is empty.")
    ] = ResourceSpec(requests={"cpu": "250m", "memory": "512Mi"}, limits={"memory": "4Gi"})
    measure_memory: Annotated[
        str,
        Field(
            description="Least memory of measuring Jobs (request = limit) where the target gives no resources; large models get more."
        ),
    ] = "2Gi"
    measure_seconds: Annotated[
        float,
        Field(
            ge=1,
            description="Timing budget per finalist in seconds; results that stay inconclusive are reported as such.",
        ),
    ] = SECONDS_PER_CANDIDATE
    job_ttl_seconds: Annotated[int, Field(ge=60, description="Finished Jobs are removed after this time.")] = 3600
    unschedulable_seconds: Annotated[
        int,
        Field(
            ge=0, description="A pod may wait this long, for a node, an image or a volume, before the object names it."
        ),
    ] = 15

    # Serving
    server_resources: Annotated[
        ResourceSpec, Field(description="Resources of the server's container, where spec.server.resources is empty.")
    ] = ResourceSpec()
    server_memory: Annotated[
        str, Field(description="Memory (request = limit) of servers for which no resources are given.")
    ] = "1Gi"
    drain_seconds: Annotated[int, Field(ge=0, description="A pod that ends goes on serving this long.")] = 10
    connection_max_requests: Annotated[
        int,
        Field(
            ge=1, description="A server ends a connection after this many requests, so that weights reach every client."
        ),
    ] = 1000
    connection_max_seconds: Annotated[float, Field(gt=0, description="The same by age.")] = 30.0
    scrape_timeout_seconds: Annotated[
        float, Field(gt=0, description="Longest wait for one pod's analysis windows.")
    ] = 2.0

    # The process
    workers: Annotated[int, Field(ge=1, le=256, description="Objects that are worked on at once.")] = 8
    resync_seconds: Annotated[float, Field(gt=0, description="Everything is listed again this often.")] = 600.0
    lease_name: Annotated[str, Field(description="Name of the Lease that elects the leader.")] = "fettle"
    lease_duration_seconds: Annotated[
        int, Field(ge=3, description="A leader that was silent this long is replaced.")
    ] = 15
    lease_renew_seconds: Annotated[float, Field(gt=0, description="The leader renews this often.")] = 5.0
    lease_retry_seconds: Annotated[float, Field(gt=0, description="A standby looks this often.")] = 2.0
    liveness_seconds: Annotated[
        float,
        Field(gt=0, description="Without a turn of the queue or a watch event for this long the process is not live."),
    ] = 90.0
    health_port: Annotated[int, Field(ge=0, le=65535, description="Port of /healthz, /readyz and /metrics.")] = 8080
    health_host: Annotated[str, Field(description="Address the health port listens on.")] = "0.0.0.0"
    log_level: Annotated[str, Field(description="DEBUG, INFO, WARNING or ERROR.")] = "INFO"
    log_format: Annotated[LogFormat, Field(description="text or json, one line an event.")] = LogFormat.TEXT

    @field_validator("watch_namespaces", "ignore_namespaces", "image_pull_secrets", "store_access_modes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Words separated by commas; an empty string is no word."""
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @field_validator("kubeconfig", "store_storage_class", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        """A chart that leaves a value empty means its default."""
        return value or None

    @field_validator("identity", mode="after")
    @classmethod
    def _identity(cls, value: str) -> str:
        """A name of our own where the pod's UID is not given."""
        return value or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"

    def serves(self, namespace: str) -> bool:
        """Whether objects of this namespace are this operator's business."""
        watched = not self.watch_namespaces or namespace in self.watch_namespaces
        return watched and not any(fnmatchcase(namespace, pattern) for pattern in self.ignore_namespaces)

    def image(self, image: Image) -> str:
        """Reference of an image."""
        references = {
            Image.OPTIMIZER: self.optimizer_image,
            Image.OPTIMIZER_TORCH: self.optimizer_torch_image,
            Image.SERVER: self.server_image,
            Image.SERVER_TORCH: self.server_torch_image,
        }
        return references[image]

    @property
    def default_store_claim(self) -> str | None:
        """Claim of the default store, or None where that is not a pvc:// URI."""
        return claim_of(self.store_uri)
