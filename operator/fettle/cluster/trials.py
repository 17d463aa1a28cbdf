"""What this process saw of each canary: which of its pods had traffic, and where windows begin on each pod's own clock.

It is kept in memory. A process that was started in the middle of a window knows less of it, and so says that less is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from fettle.api.modeldeployment_status import CanaryStatus
from fettle.cluster.kinds import Object
from fettle.cluster.owner import terminating
from fettle.cluster.workloads import is_over, is_ready, taken_out
from fettle.plan import timestamps
from fettle.plan.rollout.analysis import TimeRange
from fettle.plan.rollout.window_totals import Lost


class ServerLife(NamedTuple):
    """One life of a server: a pod's UID, and when it began on the pod's own clock."""

    pod: str
    start: float


class Tiles:
    """On which second of a pod's own clock a bound of a window fell.

    The next window begins with the very second at which the last one ended, so each second of a pod is counted once, however its
    clock and ours drift apart and however long its answers take.
    """

    def __init__(self) -> None:
        self._bounds: dict[ServerLife, dict[float, int]] = {}  # the last window's start and end, Unix time -> second

    def seconds(self, process: ServerLife, span: TimeRange, offset: float, *, over: int) -> range:
        """The pod's own seconds of `span`. `offset` is what our clock is ahead of the pod's now; seconds from `over` on are not over."""
        start, end = span.start.timestamp(), span.end.timestamp()
        known = self._bounds.get(process, {})
        earlier = max((second for bound, second in known.items() if bound <= start), default=0)
        first = known.get(start, max(math.ceil(start - offset), earlier))
        last = max(min(math.ceil(end - offset), over), first)
        self._bounds[process] = {start: first, end: last}
        return range(first, last)

    def keep(self, pods: set[str]) -> None:
        """Forget the processes of all other pods."""
        self._bounds = {process: bounds for process, bounds in self._bounds.items() if process.pod in pods}


@dataclass
class TrialRecord:
    """One canary's. `lost` is traffic that went with its pods."""

    uid: str = ""  # of the ModelDeployment
    revision: str = ""
    tiles: Tiles = field(default_factory=Tiles)
    lost: tuple[Lost, ...] = ()
    _serving: dict[str, str] = field(default_factory=dict)  # pods that had traffic: UID -> name
    _away: set[str] = field(default_factory=set)  # those of them that have none now

    def had_traffic(self, pod: Object) -> bool:
        """Whether a pod that is there, and shall be, was seen ready in this trial."""
        return str(pod["metadata"].get("uid")) in self._serving and _stays(pod)

    def see(self, pods: Iterable[Object], now: datetime) -> None:
        """What is there now. What a pod counted that goes, or that a person takes out, is unknown until then, or until it is back."""
        there = {str(pod["metadata"].get("uid")): pod for pod in pods}
        self._serving |= {uid: pod["metadata"]["name"] for uid, pod in there.items() if is_ready(pod)}
        away = {uid for uid in self._serving if uid not in there or not _stays(there[uid])}
        if changed := away | self._away:
            name = self._serving[min(changed)]
            self.lost = (Lost(now.timestamp(), f"the counts of pod {name} were lost with it"),)
        self._serving = {uid: name for uid, name in self._serving.items() if uid in there}
        self._away = away & self._serving.keys()


class Trials:
    """The trials that go on, by ModelDeployment."""

    def __init__(self) -> None:
        self._trials: dict[tuple[str, str], TrialRecord] = {}  # namespace, name

    def over(self, namespace: str, name: str) -> None:
        """No canary is on trial there."""
        self._trials.pop((namespace, name), None)

    def of(self, obj: Object, canary: CanaryStatus, pods: Sequence[Object], now: datetime) -> TrialRecord:
        """The trial of `canary`, after a look at its pods."""
        metadata = obj["metadata"]
        key = (metadata["namespace"], metadata["name"])
        trial = self._trials.get(key)
        if trial is None or (trial.uid, trial.revision) != (metadata["uid"], canary.revision):
            trial = self._trials[key] = TrialRecord(
                metadata["uid"], canary.revision, lost=_before_us(canary, pods, now)
            )
        trial.see(pods, now)
        return trial


def _before_us(canary: CanaryStatus, pods: Sequence[Object], now: datetime) -> tuple[Lost, ...]:
    """What was lost before this process began to look. Nothing, where as many pods as are wanted are older than the window."""
    start = timestamps.read(canary.analysis.window_start) if canary.analysis is not None else None
    if start is None:
        return ()
    born = [timestamps.read(pod["metadata"].get("creationTimestamp")) for pod in pods if _stays(pod)]
    if sum(at is not None and at <= start for at in born) >= canary.replicas:
        return ()
    return (Lost(now.timestamp(), "the operator was started during the window"),)


def _stays(pod: Object) -> bool:
    """Whether it may have traffic, now or when it is ready again."""
    return not (terminating(pod) or is_over(pod) or taken_out(pod))
