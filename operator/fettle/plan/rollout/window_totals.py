"""What the pods of a revision counted in a window, summed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from fettle.api.reasons import Reason


@dataclass(frozen=True)
class Comparisons:
    """Items on which a canary was compared with the stable revision. `unsure` ones, which stable itself was not sure of, tell nothing."""

    agreed: int = 0
    disagreed: int = 0
    unsure: int = 0

    @property
    def compared(self) -> int:
        """Items that tell something."""
        return self.agreed + self.disagreed

    def __add__(self, other: Comparisons) -> Comparisons:
        return Comparisons(self.agreed + other.agreed, self.disagreed + other.disagreed, self.unsure + other.unsure)


@dataclass(frozen=True)
class Second:
    """What a pod counted in one second, or in some that follow each other. `at` is when it began, Unix time on the operator's clock;
    latencies: bucket index -> answers, failures left out.
    """

    at: float
    requests: int
    errors: int
    latencies: Mapping[int, int]
    comparisons: Comparisons = Comparisons()

    def __add__(self, later: Second) -> Second:
        """Both together, as of the first."""
        answers = Counter(self.latencies)
        answers.update(later.latencies)
        requests, errors = self.requests + later.requests, self.errors + later.errors
        return Second(self.at, requests, errors, answers, self.comparisons + later.comparisons)


@dataclass(frozen=True)
class Doubt:
    """Why something cannot be judged, and will not be by waiting."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class PodSamples:
    """What one pod counted. Bucket i holds answers of at most `bucket_base * bucket_ratio**i` milliseconds.

    `incomparable` says why it cannot compare its answers with the stable revision's.
    """

    pod: str
    seconds: tuple[Second, ...]
    bucket_base: float
    bucket_ratio: float
    incomparable: Doubt | None = None


@dataclass(frozen=True)
class Crash:
    """A container that ended by its own fault: not evicted, not preempted, not out of its node's memory."""

    pod: str
    at: datetime
    message: str


@dataclass(frozen=True)
class Lost:
    """Traffic before `until` (Unix time on the operator's clock) that nobody can tell any more, and why.

    `keeps`: it is out of reach because a pod keeps its last so many seconds only.
    """

    until: float
    message: str
    keeps: float | None = None


@dataclass(frozen=True)
class Observation:
    """What is known of a revision's traffic. `silent` are ready pods that did not answer the question, each with why."""

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
        """Requests whose time is known."""
        return sum(count for _, _, count in self.latencies)

    def slower(self, milliseconds: float) -> int:
        """Requests that surely took longer."""
        return sum(count for low, _, count in self.latencies if low >= milliseconds)

    def percentile(self, percent: int) -> float:
        """Upper edge of the bucket that holds it, in milliseconds. Needs at least one answer."""
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
