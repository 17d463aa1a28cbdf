"""The pods' own figures: `GET /fettle/window` of each pod's management port, asked of all at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

import aiohttp
from pydantic import Field, ValidationError

from fettle.api.base import ApiModel
from fettle.cluster.kinds import Object
from fettle.cluster.serving import MANAGEMENT_PORT
from fettle.cluster.workloads import crashes, is_ready
from fettle.plan.analysis import Observation, PodSamples, Second

logger = logging.getLogger(__name__)

CLOCK_SLACK_SECONDS = 60  # a pod's clock may be off by so much, and its seconds are still asked for
AT_ONCE = 64  # pods asked at the same time


class _Window(ApiModel):
    second: int
    requests: int = 0
    errors: int = 0
    buckets: dict[int, int] = {}


class _Answer(ApiModel):
    start: float
    now: float
    windows: tuple[_Window, ...] = ()
    bucket_base: float = Field(gt=0)
    bucket_ratio: float = Field(gt=1)


def samples_of(pod: str, body: bytes, now: datetime) -> PodSamples:
    """An answer, on the operator's clock. `now` is when it was given. Raises ValidationError when it is none."""
    answer = _Answer.model_validate_json(body)
    offset = round(now.timestamp() - answer.now)  # whole seconds, so that a second always counts into the same window
    seconds = tuple(Second(one.second + offset, one.requests, one.errors, one.buckets) for one in answer.windows)
    return PodSamples(pod, seconds, answer.bucket_base, answer.bucket_ratio)


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
