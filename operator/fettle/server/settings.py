"""The server's settings, from the environment (`FETTLE_SERVER_*`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.networks import IPvAnyNetwork
from pydantic_settings import BaseSettings, SettingsConfigDict

from fettle.api.signature import Signature
from fettle.server.logs import LogFormat

MOST_PROCESSES = 64


class ServerSettings(BaseSettings):
    """What a serving pod is told."""

    model_config = SettingsConfigDict(env_prefix="FETTLE_SERVER_", frozen=True)

    artifact: str = Field(
        default="",
        description="Address of the artifact: pvc://CLAIM/artifacts/SHA256, or oci://REGISTRY/REPOSITORY@sha256:DIGEST.",
    )
    sha256: str = Field(default="", description="sha256 of the artifact's manifest.")
    replaces: Signature | None = Field(
        default=None,
        description="JSON of the inputs and outputs that clients of the stable revision use. `fetch` refuses an artifact that they could not use.",
    )
    folder: Path = Field(
        default=Path("/model"), description="Folder where `fetch` puts the artifact and `serve` reads it."
    )
    model: str = Field(default="model", description="Name of the model in URLs.")
    revision: str = Field(
        default="unknown", description="Version of the model, returned in the header fettle-revision."
    )
    threads: int | None = Field(
        default=None, ge=1, description="Number of threads for one inference. Defaults to the artifact's."
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        le=MOST_PROCESSES,
        description="Number of processes that share the ports of the inference protocol. Each of them loads the model. Defaults to 1, or to more for "
        "a small model whose threads leave cores of the CPU limit unused, as far as the memory limit allows.",
    )
    host: str = Field(default="0.0.0.0", description="Address that all ports listen on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port of the inference protocol.")
    grpc_port: int = Field(default=9000, ge=0, le=65535, description="Port of the inference protocol over gRPC.")
    management_port: int = Field(
        default=8081, ge=0, le=65535, description="Port of health, metrics and the counts for a canary's analysis."
    )
    samples: int = Field(
        default=256,
        ge=0,
        description="Number of recent items and answers to keep for comparison with a canary. 0 disables this.",
    )
    samples_max_bytes: int = Field(
        default=16 * 1024 * 1024, ge=0, description="Maximum memory for these items, in bytes."
    )
    samples_token: Path = Field(
        default=Path("/var/run/fettle/samples/token"),
        description="File with the shared secret of the ModelDeployment's pods. It is required to read samples.",
    )
    request_log_uri: str = Field(
        default="",
        description="Address of the store to which a sample of the requests' inputs is written. Empty means that requests are not logged.",
    )
    request_log_folder: str = Field(default="requests", description="Folder of the request log in that store.")
    request_log_max_items: int = Field(default=1024, ge=1, description="Number of items in a file of the request log.")
    request_log_max_bytes: int = Field(
        default=32 * 1024 * 1024,
        ge=1,
        description="Maximum memory for the items of the next file, in bytes. If it is reached, the file has fewer items. "
        "While a file is written, up to four times as much is used.",
    )
    request_log_interval_seconds: float = Field(
        default=3600, gt=0, description="Time over which a file of the request log is sampled, in seconds."
    )
    request_log_max_files: int = Field(
        default=24, ge=1, description="Number of files of the request log to keep. Older ones are removed."
    )
    stable: str = Field(
        default="",
        description="host:port of the stable revision's management ports. Empty means that answers are not compared.",
    )
    replay_share: float = Field(
        default=0.1, gt=0, le=1, description="Maximum share of the pod's CPU for comparison with the stable revision."
    )
    log_format: LogFormat = Field(default=LogFormat.TEXT, description="Form of the log: Text or JSON.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Minimum log level. debug logs every request, without its content."
    )
    tracing_endpoint: str = Field(
        default="",
        description="http://HOST:PORT or https://HOST:PORT of an OpenTelemetry collector, which receives traces of requests over gRPC. "
        "Empty means that requests are not traced.",
    )
    tracing_sample_ratio: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of the requests that are traced. Requests that belong to a trace follow the decision of their caller.",
    )
    tls_folder: Path | None = Field(
        default=None,
        description="Folder with the files tls.crt and tls.key of a TLS Secret: all ports then use TLS. Changed files are reloaded.",
    )
    tls_clients: bool = Field(
        default=False,
        description="Whether clients must present a certificate signed by ca.crt in the same folder.",
    )
    tokens_folder: Path | None = Field(
        default=None,
        description="Folder of a Secret with clients' tokens: each file is a client, each line of it a token. Changed files are reloaded.",
    )
    token_review_folder: Path | None = Field(
        default=None,
        description="Folder with the files token and ca.crt of the pod's ServiceAccount. With it, the Kubernetes API server checks tokens.",
    )
    token_review_server: str = Field(
        default="https://kubernetes.default.svc", description="Address of the Kubernetes API server that checks tokens."
    )
    token_review_audiences: tuple[str, ...] = Field(
        default=("fettle",),
        min_length=1,
        description="JSON list of audiences. Tokens must be issued for one of them.",
    )
    token_review_users: tuple[str, ...] = Field(
        default=(), description="JSON list of the users that may send requests with a token of Kubernetes."
    )
    token_review_groups: tuple[str, ...] = Field(
        default=(),
        description="JSON list of the groups whose members may send requests. Without users and groups, every valid token is accepted.",
    )
    token_review_cache_seconds: float = Field(
        default=60,
        ge=1,
        le=600,
        description="Time for which a token that was accepted is not checked again, in seconds.",
    )
    client_max_requests_per_second: float | None = Field(
        default=None,
        gt=0,
        description="Maximum rate of a client's requests. A client is identified by its token, or else by its address. "
        "Exceeding it returns 429 with Retry-After.",
    )
    client_max_concurrent: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of concurrent requests of a client. Exceeding it returns 429 with Retry-After. In any case, a client may hold "
        "at most three quarters of what all clients share: bodies and their bytes, requests that wait to be decoded, gRPC streams.",
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        default=(),
        description="JSON list of networks, such as 10.0.0.0/8, of the proxies that are trusted to name the client in X-Forwarded-For. "
        "Anyone in them can pose as any address.",
    )
    connection_max_requests: int = Field(
        default=1000,
        ge=1,
        description="Number of requests after which a connection is closed, with a jitter of a quarter.",
    )
    connection_max_seconds: float = Field(
        default=30, gt=0, description="Age at which a connection is closed, in seconds, with a jitter of a quarter."
    )
    drain_seconds: float = Field(
        default=10,
        ge=0,
        description="Time after SIGTERM in which requests are still answered, until routes no longer contain the pod, in seconds.",
    )
    max_body_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1,
        description="Maximum size of a request body. Exceeding it returns 413, and so does a body of more than three quarters of "
        "FETTLE_SERVER_MAX_BODIES_BYTES.",
    )
    max_image_pixels: int = Field(
        default=4096 * 4096,
        ge=1,
        le=1 << 26,
        description="Maximum size of an image in a request, in pixels. Exceeding it returns 413. An image of that size takes 12 bytes per pixel "
        "while it is decoded, one at a time.",
    )
    max_text_bytes: int = Field(
        default=256 * 1024,
        ge=1,
        le=1 << 24,
        description="Maximum size of the texts in a request: in bytes, and in characters after Unicode normalization (NFKD, up to 18 for one). "
        "Exceeding it returns 413. Each byte needs up to 500 bytes of memory while the texts are encoded, one request at a time.",
    )
    max_bodies_bytes: int = Field(
        default=128 * 1024 * 1024,
        ge=1,
        description="Maximum total size of the bodies that are being read or not answered yet. Exceeding it returns 503 with "
        "Retry-After, and a client with more than its share gets 429.",
    )
    max_reading: int = Field(
        default=1024,
        ge=1,
        description="Maximum number of bodies that are read at the same time. Exceeding it returns 503 with Retry-After, and a client with more than "
        "its share gets 429.",
    )
    body_seconds: float = Field(
        default=20, gt=0, description="Timeout for the arrival of a body, in seconds. Exceeding it returns 408."
    )
    grpc_max_message_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=1,
        description="Maximum size of a gRPC message. Exceeding it returns RESOURCE_EXHAUSTED.",
    )
    grpc_max_streams: int = Field(
        default=32,
        ge=1,
        description="Maximum number of gRPC streams that are open at the same time. Exceeding it returns UNAVAILABLE, and a client with more "
        "than its share gets RESOURCE_EXHAUSTED.",
    )
    grpc_stream_idle_seconds: float = Field(
        default=300,
        gt=0,
        description="Time without a message after which a gRPC stream ends with DEADLINE_EXCEEDED, in seconds.",
    )
    max_rows: int = Field(
        default=1024, ge=1, description="Maximum number of items in a request. Exceeding it returns 400."
    )
    max_queue: int = Field(
        default=256,
        ge=1,
        description="Maximum number of requests that wait for the model. Exceeding it returns 503 with Retry-After.",
    )
    queue_seconds: float = Field(
        default=30,
        gt=0,
        description="Maximum time that a request waits for the model, in seconds. Exceeding it returns 503 with Retry-After.",
    )
    batch_max_size: int | None = Field(
        default=None,
        ge=1,
        description="Maximum batch size when requests are combined into one run of the model. 1 disables this. "
        "Defaults to the artifact's preferred batch size, or to the best of 1 to 8 as measured when the model is loaded.",
    )
    batch_max_delay_milliseconds: float = Field(
        default=0,
        ge=0,
        le=1000,
        description="Maximum time to wait for more requests to fill a batch, in milliseconds. With 0, only "
        "requests that are already waiting are combined.",
    )

    @property
    def sharers(self) -> int:
        """How many processes share the ports of the inference protocol, and what their pod may hold."""
        return self.processes or 1

    @property
    def shares_ports(self) -> bool:
        """Whether the ports of the inference protocol are those of several processes."""
        return self.sharers > 1
