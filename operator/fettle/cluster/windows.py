"""The pods' figures: `GET /fettle/window` on each pod's management port, for all pods concurrently.

A pod with an invalid response counts as unreadable. The amount of data that is held at the same time is limited.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import aiohttp

from fettle.api.reasons import Reason
from fettle.api.text import clip
from fettle.api.window import OLD_RING_SECONDS, Window, WindowsHead
from fettle.cluster.figures import PodFigures, UnreadableError, parse
from fettle.cluster.kinds import Object
from fettle.cluster.serving import MANAGEMENT_PORT, SERVER, management_scheme
from fettle.cluster.trials import ServerLife, TrialRecord
from fettle.cluster.workloads import crashes, is_ready
from fettle.plan.rollout.analysis import TimeRange
from fettle.plan.rollout.window_totals import Comparisons, Doubt, Lost, Observation, PodSamples, Second

logger = logging.getLogger(__name__)

CLOCK_SLACK_SECONDS = 60  # a pod's clock may be off by so much; one that is off by more is asked again
AT_ONCE = 64  # pods asked at the same time
LARGE, LARGE_AT_ONCE = 1 << 20, 2  # bytes of an answer; of larger ones so many are held at a time
MOST_BYTES = 20 << 20  # of an answer: a server keeps 16 MiB of seconds
MOST_BLOCKS = 360  # into which a pod's seconds are summed: hours of hundreds of pods are too much to hold one by one


@dataclass(frozen=True)
class _Looker:
    """How pods are read: the session, the timeout for each pod, and the limits on concurrent responses."""

    clock: Callable[[], datetime]
    patience: float
    trial: TrialRecord
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    large: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_AT_ONCE))


class _Unread(Exception):
    """A pod cannot be read; the message says why."""


@dataclass(frozen=True)
class _Read:
    """A pod's response, converted to the operator's clock."""

    samples: PodSamples
    offset: float  # what is to be added to the pod's clock
    lost: Lost | None


class _Sums:
    """A pod's counts in `span` on the operator's clock, summed while the response is read. `now` is the time of the response."""

    def __init__(self, pod: Object, head: WindowsHead, span: TimeRange, now: datetime, trial: TrialRecord) -> None:
        self._pod, self._head, self._span = pod, head, span
        self._offset = now.timestamp() - head.now
        process = ServerLife(str(pod["metadata"].get("uid") or pod["metadata"]["name"]), head.start)
        self._counted = trial.tiles.seconds(process, span, self._offset, over=int(head.now))
        self._block = max(math.ceil(span.seconds / MOST_BLOCKS), 1)
        self._blocks: dict[int, _Block] = {}

    def add(self, windows: Iterable[Window]) -> None:
        """Add the seconds that are in the span."""
        start, end = self._span.start.timestamp(), self._span.end.timestamp()
        for window in windows:
            if window.second not in self._counted:
                continue
            key = (window.second - self._counted.start) // self._block
            if key not in self._blocks:
                # Which seconds are counted is settled; that they lie within the span is what they are told by.
                self._blocks[key] = _Block(min(max(window.second + self._offset, start), end - 1e-3))
            self._blocks[key].add(window)

    def read(self) -> _Read:
        """The complete result."""
        name, head = self._pod["metadata"]["name"], self._head
        seconds = tuple(block.told() for block in self._blocks.values())
        samples = PodSamples(name, seconds, head.bucket_base, head.bucket_ratio, _doubt(name, head))
        return _Read(samples, self._offset, _lost(self._pod, head, self._offset))


@dataclass
class _Block:
    """Some consecutive seconds. `at` is the start of the first."""

    at: float
    requests: int = 0
    errors: int = 0
    latencies: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, window: Window) -> None:
        self.requests += window.requests
        self.errors += window.errors
        self.latencies.update(window.latencies())
        outcomes = window.outcomes
        self.outcomes.update(agreed=outcomes.agreed, disagreed=outcomes.disagreed, unsure=outcomes.unsure)

    def told(self) -> Second:
        return Second(self.at, self.requests, self.errors, self.latencies, Comparisons(**self.outcomes))


def samples_of(pod: Object, answer: PodFigures, span: TimeRange, now: datetime, trial: TrialRecord) -> _Read:
    """The part of a response that is in `span`, on the operator's clock, read as a whole. Raises UnreadableError."""
    sums = _Sums(pod, answer.head, span, now, trial)
    for windows in answer.pieces():
        sums.add(windows)
    return sums.read()


def _lost(pod: Object, answer: WindowsHead, offset: float) -> Lost | None:
    """Seconds with traffic whose counts the pod's current server process does not have; None if there are none. A pod's first process has all."""
    name = pod["metadata"]["name"]
    if answer.known_since > answer.start + 1 and answer.kept is None:
        text = f"pod {name} keeps its counts for only {OLD_RING_SECONDS} s, because its server image is older"
        return Lost(answer.known_since + offset, text, keeps=OLD_RING_SECONDS)
    if answer.known_since > answer.start + 1:
        text = f"pod {name} no longer has its earlier counts: it discarded them to save memory, or its clock was set"
        return Lost(answer.known_since + offset, text)
    if _restarts(pod):
        return Lost(answer.start + offset, f"the counts of pod {name} from before its container was restarted are lost")
    return None


def _restarts(pod: Object) -> int:
    """The number of restarts of the server container."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return sum(int(container.get("restartCount") or 0) for container in statuses if container["name"] == SERVER)


def _doubt(pod: str, answer: WindowsHead) -> Doubt | None:
    """Why this pod cannot compare its answers with the stable revision's; None if it can."""
    if answer.agreement is None:
        message = "it does not compare answers: its server image is older, or it was started without the stable revision's address"
        return Doubt(Reason.ANALYSIS_INCONCLUSIVE, f"pod {pod}: {message}")
    problem = answer.agreement.problem
    return Doubt(problem.reason, clip(f"pod {pod}: {problem.message}")) if problem is not None else None


async def observe(
    pods: Mapping[str, Iterable[Object]],
    span: TimeRange,
    clock: Callable[[], datetime],
    patience: float,
    trial: TrialRecord,
) -> dict[str, Observation]:
    """The counts of the pods of each revision in `span`: of ready pods, and of canary pods that were ready before.

    A pod that does not answer within `patience` seconds is silent.
    """
    listed = {revision: list(own) for revision, own in pods.items()}
    looker = _Looker(clock, patience, trial)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), trust_env=False) as session:
        asked = {
            revision: [pod for pod in own if is_ready(pod) or trial.had_traffic(pod)]
            for revision, own in listed.items()
        }
        answers = await asyncio.gather(*(_ask(session, pod, span, looker) for own in asked.values() for pod in own))
    given = iter(answers)
    seen = {
        revision: _observation(listed[revision], [(pod, next(given)) for pod in own], clock())
        for revision, own in asked.items()
    }
    if trial.revision in seen:
        mine = seen[trial.revision]
        seen[trial.revision] = replace(mine, lost=(*mine.lost, *trial.lost))
    return seen


def _observation(pods: list[Object], answers: list[tuple[Object, _Read | str]], now: datetime) -> Observation:
    read = {pod["metadata"]["name"]: answer for pod, answer in answers if isinstance(answer, _Read)}
    unread = [(pod, answer) for pod, answer in answers if isinstance(answer, str)]
    names = [(pod["metadata"]["name"], problem, is_ready(pod)) for pod, problem in unread]
    # Its clock is its node's, which wrote down when its container ended.
    clocks = {name: timedelta(seconds=figures.offset) for name, figures in read.items()}
    ended = tuple(replace(crash, at=crash.at + clocks.get(crash.pod, timedelta())) for crash in crashes(pods))
    gone = [
        Lost(now.timestamp(), f"pod {name} is not ready and does not answer") for name, _, ready in names if not ready
    ]
    return Observation(
        pods=tuple(figures.samples for figures in read.values()),
        silent=tuple(f"{name} ({problem})" for name, problem, ready in names if ready),
        crashes=ended,
        lost=(*(figures.lost for figures in read.values() if figures.lost is not None), *gone),
    )


async def _ask(session: aiohttp.ClientSession, pod: Object, span: TimeRange, looker: _Looker) -> _Read | str:
    """A pod's response, or why it cannot be read."""
    name = pod["metadata"]["name"]
    try:
        async with looker.places, _Large(looker) as large:
            answer = await _get(session, pod, span.start.timestamp() - CLOCK_SLACK_SECONDS, large)
            offset = looker.clock().timestamp() - answer.head.now
            if abs(offset) > CLOCK_SLACK_SECONDS:  # on its clock the window lies elsewhere
                answer = await _get(session, pod, span.start.timestamp() - offset - CLOCK_SLACK_SECONDS, large)
            sums = _Sums(pod, answer.head, span, looker.clock(), looker.trial)
            for windows in answer.pieces():
                sums.add(windows)
                await asyncio.sleep(0)  # the Lease is renewed in between
            return sums.read()
    except UnreadableError as error:
        problem = f"invalid response: {error}"
    except _Unread as error:
        problem = str(error)
    except TimeoutError:
        problem = f"no complete response within {looker.patience:g} s"
    except (aiohttp.ClientError, OSError) as error:
        problem = str(error) or type(error).__name__
    logger.info("no analysis window from pod %s: %s", name, problem)
    return clip(problem, 160)


class _Large:
    """A slot for one large response. It is taken when a response turns out to be large, and released with the context."""

    def __init__(self, looker: _Looker) -> None:
        self._looker, self._held = looker, False
        self.patience = looker.patience

    async def __aenter__(self) -> _Large:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._held:
            self._looker.large.release()

    async def take(self, limit: asyncio.Timeout) -> None:
        """Wait for the slot. The pod's timeout is suspended meanwhile, because the pod waits for us."""
        if self._held:
            return
        limit.reschedule(None)
        await self._looker.large.acquire()
        self._held = True
        limit.reschedule(asyncio.get_running_loop().time() + self.patience)


async def _get(session: aiohttp.ClientSession, pod: Object, since: float, large: _Large) -> PodFigures:
    """One response. Raises _Unread, UnreadableError, TimeoutError, and errors of aiohttp."""
    address = str((pod.get("status") or {}).get("podIP") or "")
    if not address:
        raise _Unread("it has no IP address")
    host = f"[{address}]" if ":" in address else address
    url = f"{management_scheme(pod)}://{host}:{MANAGEMENT_PORT}/fettle/window"
    query = {"since": f"{max(since, 0):.0f}"}
    async with (
        asyncio.timeout(large.patience) as limit,
        # A pod's certificate is its users': no name or authority in it is known here. What is read is encrypted all the same.
        session.get(url, params=query, allow_redirects=False, ssl=False) as response,
    ):
        if response.status != 200:
            raise _Unread(f"HTTP status {response.status}")
        body = bytearray()
        async for chunk in response.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > LARGE:
                await large.take(limit)
            if len(body) > MOST_BYTES:
                raise _Unread(f"its response is larger than {MOST_BYTES >> 20} MiB")
        return parse(body)
