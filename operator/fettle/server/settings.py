"""The server's settings, from the environment (`FETTLE_SERVER_*`)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServerSettings(BaseSettings):
    """What a serving pod is told."""

    model_config = SettingsConfigDict(env_prefix="FETTLE_SERVER_", frozen=True)

    artifact: str = Field(default="", description="Address of the artifact: pvc://CLAIM/artifacts/SHA256.")
    sha256: str = Field(default="", description="Digest of its manifest.")
    folder: Path = Field(default=Path("/model"), description="Where `fetch` puts the artifact and `serve` reads it.")
    model: str = Field(default="model", description="The model's name in URLs.")
    revision: str = Field(default="unknown", description="Answered in the header fettle-revision; the model's version.")
    threads: int | None = Field(default=None, ge=1, description="Threads of one inference; default: what was measured.")
    host: str = Field(default="0.0.0.0", description="Address that both ports listen on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port of the inference protocol.")
    management_port: int = Field(default=8081, ge=0, le=65535, description="Port of health, metrics and windows.")
    samples: int = Field(
        default=256, ge=0, description="Recent items kept with their answers, for canaries to compare with; 0: none."
    )
    samples_max_bytes: int = Field(default=16 * 1024 * 1024, ge=0, description="Memory that they may take.")
    samples_token: Path = Field(
        default=Path("/var/run/fettle/samples/token"),
        description="File with the secret that pods of one ModelDeployment share: who shows it may take samples.",
    )
    stable: str = Field(
        default="",
        description="host:port behind which the stable revision's management ports are; empty: answers are not compared.",
    )
    replay_share: float = Field(
        default=0.1, gt=0, le=1, description="Share of this pod's CPU that comparing with the stable revision may take."
    )
    connection_max_requests: int = Field(
        default=1000, ge=1, description="Requests after which a connection is closed (jittered by a quarter)."
    )
    connection_max_seconds: float = Field(
        default=30, gt=0, description="Age at which a connection is closed (jittered by a quarter)."
    )
    drain_seconds: float = Field(
        default=10,
        ge=0,
        description="After SIGTERM: how long requests are still answered while routes forget this pod.",
    )
    max_body_bytes: int = Field(default=64 * 1024 * 1024, ge=1, description="Largest request body; larger: 413.")
    max_bodies_bytes: int = Field(
        default=128 * 1024 * 1024,
        ge=1,
        description="Bytes of all bodies that are being read or whose requests are not answered yet; more: 503 with Retry-After.",
    )
    max_reading: int = Field(
        default=1024, ge=1, description="Requests whose bodies are being read at once; more: 503 with Retry-After."
    )
    body_seconds: float = Field(default=20, gt=0, description="Time that a body may take to arrive; longer: 408.")
    max_rows: int = Field(default=1024, ge=1, description="Most items in one request; more: 400.")
    max_queue: int = Field(default=256, ge=1, description="Requests waiting for the model; more: 503 with Retry-After.")
