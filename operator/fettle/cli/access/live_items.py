"""What serving pods were asked lately, taken from their rings of samples over forwarded ports, as items that `data.evaluation` reads."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from kubernetes.stream import portforward

from fettle.api.reasons import Reason
from fettle.api.text import joined
from fettle.cli.access.cluster import Cluster, Object, api_errors
from fettle.cluster.serving import MANAGEMENT_PORT, management_scheme, samples_name
from fettle.errors import ClusterError
from fettle.runtimes.base import Array
from fettle.server.replay import MOST_BYTES, PATH
from fettle.server.samples import Sample, received
from fettle.store.arrays import item_digest

PAUSE_SECONDS = 1.0  # between two times that a pod is asked
TIMEOUT_SECONDS = 10.0
LONGEST_TEXT = 8192  # characters: in the file, every text takes as much as the longest of its input
MOST_BYTES_KEPT = 1 << 30


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
            message = f"pod {self.name} returned no samples: {error or type(error).__name__}"
            raise ClusterError(message, reason=Reason.ANALYSIS_UNREACHABLE, retryable=True) from error


@dataclass
class LiveItems:
    """The items so far, each once, by the shapes of their inputs: what has different shapes does not fit into one array.

    `repeated`, `infinite` and `large` ones are not kept: no file of items may hold infinity. NaN it may, where the model handles missing values.
    """

    repeated: int = 0
    infinite: int = 0
    large: int = 0
    _bytes: int = 0
    _seen: set[str] = field(default_factory=set)
    _by_shape: defaultdict[tuple[Any, ...], list[dict[str, Array]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, inputs: dict[str, Array]) -> None:
        """Keep an item."""
        if any(np.isinf(array.astype(np.float64)).any() for array in inputs.values() if array.dtype.kind in "fV"):
            self.infinite += 1
            return
        texts = [text for array in inputs.values() if array.dtype == object for text in array.reshape(-1).tolist()]
        size = sum(array.nbytes for array in inputs.values()) + sum(map(len, texts))
        if max(map(len, texts), default=0) > LONGEST_TEXT or self._bytes + size > MOST_BYTES_KEPT:
            self.large += 1
            return
        digest = item_digest(inputs)
        if digest in self._seen:
            self.repeated += 1
            return
        self._seen.add(digest)
        self._bytes += size
        self._by_shape[tuple((name, array.shape) for name, array in sorted(inputs.items()))].append(inputs)

    def __len__(self) -> int:
        return max(map(len, self._by_shape.values()), default=0)

    @property
    def misfits(self) -> int:
        """How many have other shapes than most."""
        return sum(map(len, self._by_shape.values())) - len(self)

    def arrays(self, most: int) -> dict[str, Array]:
        """The inputs of the items of the most frequent shape, items on the first axis, as `numpy.savez` can keep them."""
        items = max(self._by_shape.values(), key=len)[:most]
        stacked = {name: np.stack([item[name] for item in items]) for name in items[0]}
        return {name: _savable(array) for name, array in stacked.items()}


def _savable(array: Array) -> Array:
    if array.dtype == object:  # texts, which would be pickled
        return array.astype(str)
    return array.astype(np.float32) if array.dtype.kind == "V" else array  # bfloat16, which is no type of numpy's own


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
