"""The counts of all pods of a revision in a window, summed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from fettle.api.reasons import Reason


@dataclass(frozen=True)
class Comparisons:
    """Items on which the canary was compared with the stable revision. `unsure`: items that do not count, because stable was unsure of its answer."""

    agreed: int = 0
    disagreed: int = 0
    unsure: int = 0

    @property
    def compared(self) -> int:
        """The number of items that count."""
        return self.agreed + self.disagreed

    def __add__(self, other: Comparisons) -> Comparisons:
        return Comparisons(self.agreed + other.agreed, self.disagreed + other.disagreed, self.unsure + other.unsure)


@dataclass(frozen=True)
class Second:
    """The counts of a pod in one second, or in several consecutive ones. `at` is the start in Unix time on the operator's clock;
    `latencies`: bucket index -> answers, without failures.
    """

    at: float
    requests: int
    errors: int
    latencies: Mapping[int, int]
    comparisons: Comparisons = Comparisons()

    def __add__(self, later: Second) -> Second:
        """The sum of both, with the start of the first."""
        answers = Counter(self.latencies)
        answers.update(later.latencies)
        requests, errors = self.requests + later.requests, self.errors + later.errors
        return Second(self.at, requests, errors, answers, self.comparisons + later.comparisons)


@dataclass(frozen=True)
class Doubt:
    """Why something cannot be judged, now or later."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class PodSamples:
    """The counts of one pod. Bucket i holds answers of at most `bucket_base * bucket_ratio**i` milliseconds.

    `incomparable` says why the pod cannot compare its answers with the stable revision's.
    """

    pod: str
    seconds: tuple[Second, ...]
    bucket_base: float
    bucket_ratio: float
    incomparable: Doubt | None = None


@dataclass(frozen=True)
class Crash:
    """A container that exited by its own fault: it was not evicted or preempted, and its node did not run out of memory."""

    pod: str
    at: datetime
    message: str


@dataclass(frozen=True)
class Lost:
    """Traffic before `until` (Unix time on the operator's clock) whose counts are lost, and why.

    `keeps`: they are lost because a pod keeps only its last `keeps` seconds.
    """

    until: float
    message: str
    keeps: float | None = None


@dataclass(frozen=True)
class Observation:
    """What is known about a revision's traffic. `silent`: ready pods that did not answer, each with the cause."""

    pods: tuple[PodSamples, ...] = ()
    silent: tuple[str, ...] = ()
    crashes: tuple[Crash, ...] = ()
    lost: tuple[Lost, ...] = ()


NOTHING = Observation()


@dataclass(frozen=True)
class Traffic:
    """A revision's requests in a window. `latencies`: (from, to] milliseconds -> answers, ascending."""

    requests: int
    errors: int
    latencies: tuple[tuple[float, float, int], ...]
    comparisons: Comparisons = Comparisons()

    @property
    def answers(self) -> int:
        """The number of requests with a known latency."""
        return sum(count for _, _, count in self.latencies)

    def slower(self, milliseconds: float) -> int:
        """The number of requests that certainly took longer."""
        return sum(count for low, _, count in self.latencies if low >= milliseconds)

    def percentile(self, percent: int) -> float:
        """The upper edge of the bucket that holds the percentile, in milliseconds. There must be at least one answer."""
        missing = self.answers * percent / 100
        for _, high, count in self.latencies:
            missing -= count
            if missing <= 0:
                return high
        return self.latencies[-1][1]


def traffic(observation: Observation, start: datetime, end: datetime) -> Traffic:
    """All pods of a revision, summed over start <= second < end."""
    requests = errors = 0
    comparisons = Comparisons()
    latencies: dict[tuple[float, float], int] = {}
    first, last = start.timestamp(), end.timestamp()
    for pod in observation.pods:
        for second in pod.seconds:
            if not first <= second.at < last:
                continue
            requests += second.requests
            errors += second.errors
            comparisons += second.comparisons
            for index, count in second.latencies.items():
                high = pod.bucket_base * pod.bucket_ratio**index
                edges = (high / pod.bucket_ratio if index > 0 else 0.0, high)
                latencies[edges] = latencies.get(edges, 0) + count
    buckets = tuple((low, high, count) for (low, high), count in sorted(latencies.items()))
    return Traffic(requests, errors, buckets, comparisons)
