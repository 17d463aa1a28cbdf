"""What serving pods were asked lately, taken from their rings of samples over forwarded ports, as items that `data.evaluation` reads."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import time
from collections.abc import Callable, Sequence

from kubernetes.stream import portforward

from fettle.api.reasons import Reason
from fettle.api.text import error_text, joined
from fettle.cli.access.cluster import Cluster, Object, api_errors
from fettle.cluster.serving import MANAGEMENT_PORT, management_scheme, samples_name
from fettle.errors import ClusterError
from fettle.server.live_items import LiveItems
from fettle.server.replay import MOST_BYTES, PATH
from fettle.server.samples import Sample, received

PAUSE_SECONDS = 1.0  # between two times that a pod is asked
TIMEOUT_SECONDS = 10.0


class PodPort(http.client.HTTPConnection):
    """HTTP to a pod's management port, over the socket that `opened` gives."""

    def __init__(self, name: str, token: str, opened: Callable[[], socket.socket]) -> None:
        super().__init__(name, timeout=TIMEOUT_SECONDS)
        self.name, self._token, self._opened = name, token, opened

    @classmethod
    def forwarded(cls, cluster: Cluster, pod: Object, token: str) -> PodPort:
        """By way of the API server, which has checked who may: so nobody looks at the certificate that the port shows."""
        name, secure = pod["metadata"]["name"], management_scheme(pod) == "https"

        def opened() -> socket.socket:
            with api_errors(f"pod {name}"):
                call = cluster.core.connect_get_namespaced_pod_portforward
                forwarded = portforward(call, name, cluster.namespace, ports=str(MANAGEMENT_PORT))
            plain = forwarded.socket(MANAGEMENT_PORT)
            plain.settimeout(TIMEOUT_SECONDS)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            through: socket.socket = context.wrap_socket(plain) if secure else plain
            return through

        return cls(name, token, opened)

    def connect(self) -> None:
        """See HTTPConnection."""
        self.sock = self._opened()

    def take(self) -> list[Sample]:
        """What the pod hands out: the youngest first, none of it twice. Raises ClusterError."""
        try:
            self.request("POST", PATH, headers={"Authorization": f"Bearer {self._token}"})
            response = self.getresponse()
            return received(response.status, response.read(MOST_BYTES))[1]
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            message = f"pod {self.name} returned no samples: {error_text(error)}"
            raise ClusterError(message, reason=Reason.ANALYSIS_UNREACHABLE, retryable=True) from error


def token_of(cluster: Cluster, manifest: Object) -> str:
    """What the pods of a ModelDeployment show each other. Raises ClusterError."""
    name = samples_name(manifest)
    with api_errors(f"secret {name}"):
        secret = cluster.core.read_namespaced_secret(name, cluster.namespace)
    return base64.b64decode((secret.data or {}).get("token", "")).decode().strip()


def gather(
    pods: Sequence[PodPort],
    wanted: int,
    seconds: float,
    tell: Callable[[int], None] = lambda items: None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> LiveItems:
    """Ask `pods` in turn until there are `wanted` items of one shape, or the time is over. A pod that fails is asked no more.

    Raises ClusterError when all of them failed, or nobody asked them anything.
    """
    items, faults = LiveItems(), dict[str, str]()
    ends = clock() + seconds
    while True:
        for pod in pods:
            try:
                samples = pod.take() if pod.name not in faults else []
            except ClusterError as error:
                faults[pod.name] = error.message
                continue
            for sample in samples:
                items.add(dict(sample.inputs))
        tell(min(len(items), wanted))
        if len(items) >= wanted or len(faults) == len(pods) or clock() >= ends:
            break
        pause(PAUSE_SECONDS)
    if not len(items):
        message = joined(list(faults.values())) if faults else f"no pod answered a request within {seconds:g} s"
        raise ClusterError(message, reason=Reason.ANALYSIS_UNREACHABLE, retryable=True)
    return items
