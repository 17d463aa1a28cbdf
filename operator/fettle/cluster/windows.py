"""The pods' own figures: `GET /fettle/window` of each pod's management port, asked of all at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

import aiohttp
from pydantic import Field, ValidationError

from fettle.api.base import ApiModel
from fettle.api.reasons import Reason
from fettle.api.text import clip
from fettle.cluster.kinds import Object
from fettle.cluster.serving import MANAGEMENT_PORT
from fettle.cluster.workloads import crashes, is_ready
from fettle.plan.analysis import Comparisons, Doubt, Observation, PodSamples, Second

logger = logging.getLogger(__name__)

CLOCK_SLACK_SECONDS = 60  # a pod's clock may be off by so much, and its seconds are still asked for
AT_ONCE = 64  # pods asked at the same time


class _Problem(ApiModel):
    reason: Reason
    message: str = Field(max_length=4096)


class _Agreement(ApiModel):
    stable: str | None = None
    problem: _Problem | None = None


class _Outcomes(ApiModel):
    agreed: int = 0
    disagreed: int = 0
    unsure: int = 0


class _Window(ApiModel):
    second: int
    requests: int = 0
    errors: int = 0
    outcomes: _Outcomes = _Outcomes()
    buckets: dict[int, int] = {}


class _Answer(ApiModel):
    start: float
    now: float
    windows: tuple[_Window, ...] = ()
    bucket_base: float = Field(gt=0)
    bucket_ratio: float = Field(gt=1)
    agreement: _Agreement | None = None


def samples_of(pod: str, body: bytes, now: datetime) -> PodSamples:
    """An answer, on the operator's clock. `now` is when it was given. Raises ValidationError when it is none."""
    answer = _Answer.model_validate_json(body)
    offset = round(now.timestamp() - answer.now)  # whole seconds, so that a second always counts into the same window
    seconds = tuple(
        Second(one.second + offset, one.requests, one.errors, one.buckets, Comparisons(**one.outcomes.model_dump()))
        for one in answer.windows
    )
    return PodSamples(pod, seconds, answer.bucket_base, answer.bucket_ratio, _doubt(pod, answer))


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
    pods: Mapping[str, Iterable[Object]], since: datetime, clock: Callable[[], datetime], patience: float
) -> dict[str, Observation]:
    """What the ready pods of each revision counted since `since`. A pod that does not answer within `patience` seconds is silent."""
    listed = {revision: list(own) for revision, own in pods.items()}
    limit = aiohttp.ClientTimeout(total=patience)
    places = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(timeout=limit, trust_env=False) as session:

        async def ask(pod: Object) -> PodSamples | None:
            async with places:
                return await _ask(session, pod, since, clock)

        asked = {revision: [pod for pod in own if is_ready(pod)] for revision, own in listed.items()}
        answers = await asyncio.gather(*(ask(pod) for own in asked.values() for pod in own))
    given = iter(answers)
    return {
        revision: _observation(listed[revision], [(pod, next(given)) for pod in own]) for revision, own in asked.items()
    }


def _observation(pods: list[Object], answers: list[tuple[Object, PodSamples | None]]) -> Observation:
    return Observation(
        pods=tuple(answer for _, answer in answers if answer is not None),
        silent=tuple(pod["metadata"]["name"] for pod, answer in answers if answer is None),
        crashes=crashes(pods),
    )


async def _ask(
    session: aiohttp.ClientSession, pod: Object, since: datetime, clock: Callable[[], datetime]
) -> PodSamples | None:
    name, address = pod["metadata"]["name"], str((pod.get("status") or {}).get("podIP") or "")
    if not address:
        return None
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{MANAGEMENT_PORT}/fettle/window"
    start = (since - timedelta(seconds=CLOCK_SLACK_SECONDS)).timestamp()
    try:
        async with session.get(url, params={"since": f"{start:.0f}"}, allow_redirects=False) as response:
            response.raise_for_status()
            return samples_of(name, await response.read(), clock())
    except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
        logger.info("no analysis window from pod %s: %s", name, error or type(error).__name__)
        return None
