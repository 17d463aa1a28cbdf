"""The part `server` of a ModelDeployment: batching, TLS, clients' tokens, traces, request logs, and the container."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel, Rule, rules
from fettle.api.pods import EnvVar, ResourceSpec
from fettle.api.uris import SecretName, store_rules
from fettle.api.vocabulary import Uri


class BatchingSpec(ApiModel):
    """How requests that wait for the model share runs. They never do where the artifact was certified one item at a time."""

    max_size: Annotated[
        int | None,
        Field(
            ge=1,
            le=1024,
            description="Maximum batch size when requests are combined into one run of the model. 1 disables this. "
            "Defaults to the artifact's preferred batch size, or to the best of 1 to 8 as measured when the model is loaded.",
        ),
    ] = None
    max_delay_milliseconds: Annotated[
        float | None,
        Field(
            ge=0,
            le=1000,
            description="Maximum time to wait for more requests to fill a batch. "
            "By default, only requests that are already waiting are combined, which delays none.",
        ),
    ] = None


ObjectName = Annotated[str, Field(min_length=1, max_length=253)]
Names = tuple[ObjectName, ...]


class TlsSpec(ApiModel):
    """TLS on every port of the server. A renewed Secret takes effect without a restart, and open connections are kept."""

    secret_name: Annotated[
        ObjectName,
        Field(description="Secret of type kubernetes.io/tls in this namespace, with tls.crt and tls.key."),
    ]
    require_client_certificate: Annotated[
        bool,
        Field(
            description="Whether clients must present a certificate signed by ca.crt of the Secret. Not required on the management port."
        ),
    ] = False


class TokenReviewSpec(ApiModel):
    """Bearer tokens that the Kubernetes API server accepts, such as those of ServiceAccounts. The server asks it with a TokenReview."""

    audiences: Annotated[
        Names,
        Field(
            max_length=8,
            description="Audiences. A token must be issued for one of them. Defaults to NAME.NAMESPACE.svc, the name of the Service.",
            json_schema_extra={"x-set": True},
        ),
    ] = ()
    users: Annotated[
        Names | None,
        Field(
            min_length=1,
            max_length=64,
            description="Users that may send requests, such as system:serviceaccount:NAMESPACE:NAME.",
            json_schema_extra={"x-set": True},
        ),
    ] = None
    groups: Annotated[
        Names | None,
        Field(
            min_length=1,
            max_length=64,
            description="Groups that may send requests, such as system:serviceaccounts:NAMESPACE. "
            "Without users and groups, every valid token is accepted; an empty list is refused.",
            json_schema_extra={"x-set": True},
        ),
    ] = None


@rules(
    Rule(
        "has(self.secretName) || has(self.tokenReview)",
        "server.auth must have secretName, tokenReview or both",
    )
)
class AuthSpec(ApiModel):
    """Who may send requests: clients with a bearer token."""

    secret_name: Annotated[
        ObjectName | None,
        Field(
            description="Secret in this namespace with one key per client. The value is the client's token, or several tokens, one per line. "
            "A change takes effect without a restart."
        ),
    ] = None
    token_review: Annotated[
        TokenReviewSpec | None,
        Field(
            description="Tokens that Kubernetes accepts, beside those of the Secret. "
            "The ServiceAccount of the pods must be allowed to create tokenreviews."
        ),
    ] = None


class TracingSpec(ApiModel):
    """OpenTelemetry traces of requests. The server's environment variables OTEL_* apply to everything that is not set here."""

    endpoint: Annotated[
        str,
        Field(
            pattern=r"^https?://[^/\s]+$",
            max_length=512,
            description="http://HOST:PORT or https://HOST:PORT of an OpenTelemetry collector that receives OTLP over gRPC (usually port 4317).",
        ),
    ]
    sample_ratio: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of the requests that are traced. Requests that belong to a trace follow the decision of their caller.",
        ),
    ] = 0.01


@rules(*store_rules("server.logging.requests.uri"))
class RequestLoggingSpec(ApiModel):
    """A sample of the inputs that clients send, in .npz files that data.evaluation of an OptimizedModel reads. Inputs can be personal data."""

    uri: Annotated[
        Uri,
        Field(
            description="Store to which the pods write: pvc://CLAIM/PATH, s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH. Its folder "
            "requests/NAMESPACE/NAME contains the files, and a copy of the last one, latest.npz. Pods on several nodes need a claim that they can "
            "share."
        ),
    ]
    secret_name: SecretName = None
    max_items: Annotated[
        int,
        Field(
            ge=1,
            le=4096,
            description="Number of items in a file. A pod writes a file once it has sampled so many, or 32 MiB "
            "(FETTLE_SERVER_REQUEST_LOG_MAX_BYTES), and the interval is over. Repeated items, and those of another shape than most, are left out.",
        ),
    ] = 1024
    interval_seconds: Annotated[
        int,
        Field(
            ge=10,
            le=604_800,
            description="Time over which a file is sampled. A pod writes no more than one file in it.",
        ),
    ] = 3600
    max_files: Annotated[
        int, Field(ge=1, le=1000, description="Number of files to keep. The pods remove older ones.")
    ] = 24


class LoggingSpec(ApiModel):
    """What the server logs beside messages."""

    requests: Annotated[
        RequestLoggingSpec | None,
        Field(description="Log of requests. Without it, no content of a request is ever written."),
    ] = None


@rules(
    Rule(
        "!has(self.logging) || !has(self.logging.requests) || !has(self.samples) || self.samples > 0",
        "server.logging.requests requires server.samples above 0: raise server.samples, or remove logging.requests",
    )
)
class ServerSpec(ApiModel):
    """Settings of the inference server in each pod."""

    samples: Annotated[
        int,
        Field(
            ge=0,
            le=4096,
            description="Number of recent items and answers that each pod keeps in memory for comparison with a canary. 0 disables this.",
        ),
    ] = 256

    threads: Annotated[
        int | None,
        Field(
            ge=1,
            le=256,
            description="Number of threads for one inference. Defaults to the artifact's. With another value, the measured figures no longer apply.",
        ),
    ] = None
    batching: Annotated[BatchingSpec | None, Field(description="Dynamic batching of waiting requests.")] = None
    tls: Annotated[TlsSpec | None, Field(description="TLS on all ports. Without it, they are unencrypted.")] = None
    auth: Annotated[
        AuthSpec | None,
        Field(description="Bearer tokens of clients. Without it, anyone who can reach the ports may send requests."),
    ] = None
    tracing: Annotated[
        TracingSpec | None, Field(description="Traces of requests. Without it, requests are not traced.")
    ] = None
    logging: Annotated[LoggingSpec | None, Field(description="Logs. Without it, requests are not logged.")] = None
    resources: Annotated[ResourceSpec, Field(description="Resources of the server container.")] = ResourceSpec()
    image: Annotated[
        str | None, Field(max_length=512, description="Server image. Defaults to the operator's setting.")
    ] = None
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=64,
            description="Environment variables of the server container.",
            json_schema_extra={"x-map-keys": ["name"]},
        ),
    ] = ()

    @property
    def request_log(self) -> RequestLoggingSpec | None:
        """How requests are logged; None if they are not."""
        return self.logging.requests if self.logging is not None else None
