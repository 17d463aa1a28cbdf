"""The pods' own figures: `GET /fettle/window` of each pod's management port, asked of all at once.

What a pod answers is data of somebody else's: each field is bounded, and a pod whose answer is nonsense is one that cannot be read.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated

import aiohttp
from pydantic import Field, ValidationError, model_validator

from fettle.api.base import ApiModel
from fettle.api.reasons import Reason
from fettle.api.text import clip
from fettle.cluster.kinds import Object
from fettle.cluster.serving import MANAGEMENT_PORT, SERVER
from fettle.cluster.trials import Process, Trial
from fettle.cluster.workloads import crashes, is_ready
from fettle.plan.rollout.analysis import Span
from fettle.plan.rollout.window_totals import (
    Comparisons,
    Doubt,
    Lost,
    Observation,
    PodSamples,
    Second,
)

logger = logging.getLogger(__name__)

CLOCK_SLACK_SECONDS = 60  # a pod's clock may be off by so much; one that is off by more is asked again
AT_ONCE = 64  # pods asked at the same time
MOST_BYTES = 32 << 20  # of an answer: six hours of seconds, each with dozens of buckets
MOST_BLOCKS = 900  # into which a pod's seconds are summed: hours of hundreds of pods are too much to hold one by one
OLD_RING_SECONDS = 900  # that a server keeps which does not say how many
HIGHEST_BUCKET = 1000  # far beyond a day at the server's own ratio; any ratio up to 2 stays a number

Count = Annotated[int, Field(ge=0, le=1_000_000_000, strict=True)]
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False, strict=True)]  # Unix time


class _Problem(ApiModel):
    reason: Reason
    message: str = Field(max_length=4096)


class _Agreement(ApiModel):
    stable: str | None = None
    problem: _Problem | None = None


class _Outcomes(ApiModel):
    agreed: Count = 0
    disagreed: Count = 0
    unsure: Count = 0


class _Window(ApiModel):
    second: Annotated[int, Field(ge=0, le=10**11, strict=True)]
    requests: Count = 0
    errors: Count = 0
    outcomes: _Outcomes = _Outcomes()
    buckets: dict[Annotated[int, Field(ge=0, le=HIGHEST_BUCKET)], Count] = {}

    @model_validator(mode="after")
    def _adds_up(self) -> _Window:
        if self.errors > self.requests or sum(self.buckets.values()) > self.requests:
            raise ValueError("more errors, or more answers in buckets, than requests")
        return self

    def latencies(self) -> dict[int, int]:
        """Answers by bucket. A server that counts failures in buckets too is taken to have failed fast: the fastest go."""
        failed = sum(self.buckets.values()) - (self.requests - self.errors)
        kept: dict[int, int] = {}
        for index, count in sorted(self.buckets.items()):
            gone = min(max(failed, 0), count)
            failed -= gone
            kept |= {index: count - gone} if count > gone else {}
        return kept


class _Answer(ApiModel):
    start: Seconds
    now: Seconds
    kept: Seconds | None = None
    windows: tuple[_Window, ...] = ()
    bucket_base: float = Field(gt=0, le=1e3, allow_inf_nan=False)
    bucket_ratio: float = Field(gt=1, le=2, allow_inf_nan=False)
    agreement: _Agreement | None = None

    @model_validator(mode="after")
    def _ascends(self) -> _Answer:
        seconds = [window.second for window in self.windows]
        if seconds != sorted(set(seconds)):
            raise ValueError("the seconds of windows do not ascend")
        return self

    @property
    def known_since(self) -> float:
        """From when on every second is known to the process, on its own clock."""
        return self.kept if self.kept is not None else max(self.start, self.now - OLD_RING_SECONDS + 1)


class _Unread(Exception):
    """A pod that cannot be read, and why."""


@dataclass(frozen=True)
class _Read:
    """What a pod answered, on the operator's clock."""

    samples: PodSamples
    offset: float  # what is to be added to the pod's clock
    lost: Lost | None


def parse(body: bytes) -> _Answer:
    """An answer. Raises ValidationError when it is none."""
    return _Answer.model_validate_json(body)


def samples_of(pod: Object, answer: _Answer, span: Span, now: datetime, trial: Trial) -> _Read:
    """An answer on the operator's clock, as far as it belongs to `span`. `now` is when it was given."""
    name, offset = pod["metadata"]["name"], now.timestamp() - answer.now
    start, end = span.start.timestamp(), span.end.timestamp()
    process = Process(str(pod["metadata"].get("uid") or name), answer.start)
    counted = trial.tiles.seconds(process, span, offset, over=int(answer.now))
    block, blocks = max(math.ceil(span.seconds / MOST_BLOCKS), 1), dict[int, Second]()
    for one in (one for one in answer.windows if one.second in counted):
        # Which seconds are counted is settled; that they lie within the span is what they are told by.
        at = min(max(one.second + offset, start), end - 1e-3)
        found = Second(at, one.requests, one.errors, one.latencies(), Comparisons(**one.outcomes.model_dump()))
        key = (one.second - counted.start) // block
        blocks[key] = blocks[key] + found if key in blocks else found
    samples = PodSamples(name, tuple(blocks.values()), answer.bucket_base, answer.bucket_ratio, _doubt(name, answer))
    return _Read(samples, offset, _lost(pod, answer, offset))


def _lost(pod: Object, answer: _Answer, offset: float) -> Lost | None:
    """Seconds in which the pod had traffic and that this process does not know. Before the first process of a pod there was none."""
    name = pod["metadata"]["name"]
    if answer.known_since > answer.start + 1 and answer.kept is None:
        text = f"pod {name} keeps {OLD_RING_SECONDS} s, its server is older"
        return Lost(answer.known_since + offset, text, keeps=OLD_RING_SECONDS)
    if answer.known_since > answer.start + 1:
        text = f"pod {name} knows its earlier seconds no more: it keeps no more of them, or its clock was set"
        return Lost(answer.known_since + offset, text)
    if _restarts(pod):
        return Lost(answer.start + offset, f"what pod {name} counted before its container was restarted is lost")
    return None


def _restarts(pod: Object) -> int:
    """How often its server was started again."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return sum(int(one.get("restartCount") or 0) for one in statuses if one["name"] == SERVER)


def _doubt(pod: str, answer: _Answer) -> Doubt | None:
    """Why this pod does not compare its answers with the stable revision's."""
    if answer.agreement is None:
        message = (
            "it does not compare answers: its server is older, or was started without the stable revision's address"
        )
        return Doubt(Reason.ANALYSIS_INCONCLUSIVE, f"pod {pod}: {message}")
    problem = answer.agreement.problem
    return Doubt(problem.reason, clip(f"pod {pod}: {problem.message}")) if problem is not None else None


async def observe(
    pods: Mapping[str, Iterable[Object]], span: Span, clock: Callable[[], datetime], patience: float, trial: Trial
) -> dict[str, Observation]:
    """What the pods of each revision counted in `span`: those that are ready, and those of the canary that were.

    A pod that does not answer within `patience` seconds is silent.
    """
    listed = {revision: list(own) for revision, own in pods.items()}
    limit = aiohttp.ClientTimeout(total=patience)
    places = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(timeout=limit, trust_env=False) as session:

        async def ask(pod: Object) -> _Read | str:
            async with places:
                return await _ask(session, pod, span, clock, trial)

        asked = {
            revision: [pod for pod in own if is_ready(pod) or trial.had_traffic(pod)]
            for revision, own in listed.items()
        }
        answers = await asyncio.gather(*(ask(pod) for own in asked.values() for pod in own))
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
    names = [(pod["metadata"]["name"], why, is_ready(pod)) for pod, why in unread]
    # Its clock is its node's, which wrote down when its container ended.
    clocks = {name: timedelta(seconds=one.offset) for name, one in read.items()}
    ended = tuple(replace(one, at=one.at + clocks.get(one.pod, timedelta())) for one in crashes(pods))
    gone = [
        Lost(now.timestamp(), f"pod {name} is not ready and does not answer") for name, _, ready in names if not ready
    ]
    return Observation(
        pods=tuple(one.samples for one in read.values()),
        silent=tuple(f"{name} ({why})" for name, why, ready in names if ready),
        crashes=ended,
        lost=(*(one.lost for one in read.values() if one.lost is not None), *gone),
    )


async def _ask(
    session: aiohttp.ClientSession, pod: Object, span: Span, clock: Callable[[], datetime], trial: Trial
) -> _Read | str:
    """What a pod answers, or why it cannot be read."""
    name = pod["metadata"]["name"]
    try:
        answer = await _get(session, pod, span.start.timestamp() - CLOCK_SLACK_SECONDS)
        offset = clock().timestamp() - answer.now
        if abs(offset) > CLOCK_SLACK_SECONDS:  # on its clock the window lies elsewhere
            answer = await _get(session, pod, span.start.timestamp() - offset - CLOCK_SLACK_SECONDS)
        return samples_of(pod, answer, span, clock(), trial)
    except ValidationError as error:
        first = error.errors()[0]
        why = f"its answer cannot be read: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    except _Unread as error:
        why = str(error)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        why = str(error) or type(error).__name__
    logger.info("no analysis window from pod %s: %s", name, why)
    return clip(why, 160)


async def _get(session: aiohttp.ClientSession, pod: Object, since: float) -> _Answer:
    """One answer. Raises _Unread, ValidationError, and what aiohttp raises."""
    address = str((pod.get("status") or {}).get("podIP") or "")
    if not address:
        raise _Unread("it has no address")
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{MANAGEMENT_PORT}/fettle/window"
    async with session.get(url, params={"since": f"{max(since, 0):.0f}"}, allow_redirects=False) as response:
        if response.status != 200:
            raise _Unread(f"HTTP status {response.status}")
        body = bytearray()
        async for chunk in response.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > MOST_BYTES:
                raise _Unread(f"its answer is larger than {MOST_BYTES >> 20} MiB")
        return parse(bytes(body))
