"""The operator's settings: one class, each value from the environment variable `FETTLE_<NAME>`; the chart's values mirror it."""

from __future__ import annotations

import socket
import uuid
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fettle.api.images import Image
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
    namespace: Annotated[str, Field(description="Namespace of the operator and of its Lease.")] = "fettle-system"
    identity: Annotated[
        str,
        Field(
            validate_default=True,
            description="Holder identity in the Lease. Defaults to the host name and a random suffix; the chart sets NAME_UID of the pod.",
        ),
    ] = ""
    watch_namespaces: Annotated[Words, Field(description="Namespaces to watch. Empty means all.")] = ()
    ignore_namespaces: Annotated[
        Words,
        Field(description="Namespaces, or patterns such as team-*, to ignore because another operator watches them."),
    ] = ()
    kubeconfig: Annotated[str | None, Field(description="Kubeconfig file. Defaults to the pod's ServiceAccount.")] = (
        None
    )

    # Images
    optimizer_image: Annotated[str, Field(description="Image of the Jobs.")] = "ghcr.io/fettle/optimizer:0.1.0"
    server_image: Annotated[
        str, Field(description="Image of serving pods. A change takes effect with the next revision.")
    ] = "ghcr.io/fettle/server:0.1.0"
    optimizer_torch_image: Annotated[
        str,
        Field(
            description="Image of the Jobs that need PyTorch: for PyTorch sources, to compile for inductor, and to measure torchscript or inductor."
        ),
    ] = "ghcr.io/fettle/optimizer-torch:0.1.0"
    optimizer_tensorflow_image: Annotated[
        str,
        Field(
            description="Image of the Jobs that prepare sources of TensorFlow, Keras and TFLite, or build or measure litert."
        ),
    ] = "ghcr.io/fettle/optimizer-tensorflow:0.1.0"
    optimizer_transformers_image: Annotated[
        str, Field(description="Image of the Jobs that prepare directories of Hugging Face.")
    ] = "ghcr.io/fettle/optimizer-transformers:0.1.0"
    optimizer_sklearn_image: Annotated[
        str,
        Field(description="Image of the Jobs that prepare sources of scikit-learn, XGBoost, LightGBM and CatBoost."),
    ] = "ghcr.io/fettle/optimizer-sklearn:0.1.0"
    server_litert_image: Annotated[str, Field(description="Image of serving pods that use litert.")] = (
        "ghcr.io/fettle/server-litert:0.1.0"
    )
    server_torch_image: Annotated[str, Field(description="Image of serving pods that use torchscript or inductor.")] = (
        "ghcr.io/fettle/server-torch:0.1.0"
    )
    optimizer_gpu_image: Annotated[
        str, Field(description="Image of the Jobs that build and measure for NVIDIA GPUs.")
    ] = "ghcr.io/fettle/optimizer-gpu:0.1.0"
    server_gpu_image: Annotated[str, Field(description="Image of serving pods with an NVIDIA GPU.")] = (
        "ghcr.io/fettle/server-gpu:0.1.0"
    )
    optimizer_gpu_torch_image: Annotated[
        str, Field(description="Image of the Jobs that measure PyTorch models on NVIDIA GPUs.")
    ] = "ghcr.io/fettle/optimizer-gpu-torch:0.1.0"
    server_gpu_torch_image: Annotated[str, Field(description="Image of serving pods that use torchscript-cuda.")] = (
        "ghcr.io/fettle/server-gpu-torch:0.1.0"
    )
    image_pull_policy: Annotated[PullPolicy, Field(description="Pull policy of these images.")] = (
        PullPolicy.IF_NOT_PRESENT
    )
    image_pull_secrets: Annotated[
        Words, Field(description="Image pull Secrets, in the namespaces of the objects.")
    ] = ()

    # The default store
    store_uri: Annotated[str, Field(description="Default store for OptimizedModels without spec.store.")] = (
        "pvc://fettle-store"
    )
    store_secret_name: Annotated[
        str | None,
        Field(
            description="Secret with the credentials for the default store, in the namespaces of the objects. See secretName."
        ),
    ] = None
    store_create: Annotated[bool, Field(description="Create the default store's claim if it is missing.")] = True
    store_size: Annotated[str, Field(description="Size of a claim that the operator creates.")] = "20Gi"
    store_storage_class: Annotated[
        str | None,
        Field(description="StorageClass of a claim that the operator creates. Defaults to the cluster's default."),
    ] = None
    store_access_modes: Annotated[
        Words,
        Field(
            description="Access modes of a claim that the operator creates. Use ReadWriteMany if pods run on several nodes."
        ),
    ] = ("ReadWriteOnce",)

    # Jobs
    job_resources: Annotated[
        ResourceSpec, Field(description="Resources of all Jobs except measuring Jobs, if spec.jobs.resources is empty.")
    ] = ResourceSpec(requests={"cpu": "250m", "memory": "512Mi"}, limits={"memory": "4Gi"})
    measure_memory: Annotated[
        str,
        Field(
            description="Minimum memory (request and limit) of measuring Jobs if the target sets no resources. Large models get more."
        ),
    ] = "2Gi"
    measure_seconds: Annotated[
        float,
        Field(
            ge=1,
            description="Time budget for timing each finalist, in seconds. Results that remain inconclusive are reported as such.",
        ),
    ] = SECONDS_PER_CANDIDATE
    job_ttl_seconds: Annotated[
        int, Field(ge=60, description="Time after which finished Jobs are deleted, in seconds.")
    ] = 3600
    gpu_preflight: Annotated[
        bool,
        Field(
            description="End a run before its first Job if no node offers the GPU that it needs. Turn this off if GPU nodes are created on demand."
        ),
    ] = True
    unschedulable_seconds: Annotated[
        int,
        Field(
            ge=0,
            description="Time a pod may wait for a node, an image or a volume before the object reports it, in seconds.",
        ),
    ] = 15

    # Serving
    server_resources: Annotated[
        ResourceSpec, Field(description="Resources of the server container, if spec.server.resources is empty.")
    ] = ResourceSpec()
    server_memory: Annotated[
        str, Field(description="Memory (request and limit) of the server container if no resources are set.")
    ] = "1Gi"
    drain_seconds: Annotated[int, Field(ge=0, description="Time a terminating pod continues to serve, in seconds.")] = (
        10
    )
    connection_max_requests: Annotated[
        int,
        Field(
            ge=1,
            description="Number of requests after which a server closes a connection, so that weights apply to every client.",
        ),
    ] = 1000
    connection_max_seconds: Annotated[
        float, Field(gt=0, description="Age at which a server closes a connection, in seconds.")
    ] = 30.0
    scrape_timeout_seconds: Annotated[
        float, Field(gt=0, description="Timeout for reading the analysis counts of one pod, in seconds.")
    ] = 2.0

    # The process
    workers: Annotated[int, Field(ge=1, le=256, description="Number of objects that are reconciled concurrently.")] = 8
    resync_seconds: Annotated[float, Field(gt=0, description="Interval between full relists, in seconds.")] = 600.0
    lease_name: Annotated[str, Field(description="Name of the leader election Lease.")] = "fettle"
    lease_duration_seconds: Annotated[
        int, Field(ge=3, description="Time after which a leader that did not renew the Lease is replaced, in seconds.")
    ] = 15
    lease_renew_seconds: Annotated[
        float, Field(gt=0, description="Interval at which the leader renews the Lease, in seconds.")
    ] = 5.0
    lease_retry_seconds: Annotated[
        float, Field(gt=0, description="Interval at which standbys check the Lease, in seconds.")
    ] = 2.0
    liveness_seconds: Annotated[
        float,
        Field(
            gt=0,
            description="The liveness probe fails if the election, the queue or the watches made no progress for this many seconds.",
        ),
    ] = 90.0
    health_port: Annotated[int, Field(ge=0, le=65535, description="Port for /healthz, /readyz and /metrics.")] = 8080
    health_host: Annotated[str, Field(description="Address that the health port listens on.")] = "0.0.0.0"
    log_level: Annotated[str, Field(description="Log level: DEBUG, INFO, WARNING or ERROR.")] = "INFO"
    log_format: Annotated[LogFormat, Field(description="Log format: text or json, with one line per event.")] = (
        LogFormat.TEXT
    )

    @field_validator("watch_namespaces", "ignore_namespaces", "image_pull_secrets", "store_access_modes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Words separated by commas; an empty string is no word."""
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @field_validator("kubeconfig", "store_secret_name", "store_storage_class", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        """A chart that leaves a value empty means its default."""
        return value or None

    @field_validator("identity", mode="after")
    @classmethod
    def _identity(cls, value: str) -> str:
        """A name of our own where the pod's is not given."""
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
            Image.OPTIMIZER_TENSORFLOW: self.optimizer_tensorflow_image,
            Image.OPTIMIZER_TRANSFORMERS: self.optimizer_transformers_image,
            Image.OPTIMIZER_SKLEARN: self.optimizer_sklearn_image,
            Image.OPTIMIZER_GPU: self.optimizer_gpu_image,
            Image.OPTIMIZER_GPU_TORCH: self.optimizer_gpu_torch_image,
            Image.SERVER: self.server_image,
            Image.SERVER_LITERT: self.server_litert_image,
            Image.SERVER_TORCH: self.server_torch_image,
            Image.SERVER_GPU: self.server_gpu_image,
            Image.SERVER_GPU_TORCH: self.server_gpu_torch_image,
        }
        return references[image]

    @property
    def default_store_claim(self) -> str | None:
        """Claim of the default store, or None where that is not a pvc:// URI."""
        return claim_of(self.store_uri)
