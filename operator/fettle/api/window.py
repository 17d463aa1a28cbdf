"""A pod's response to `GET /fettle/window`: `{start, now, kept, bucketBase, bucketRatio, agreement, drift, windows: [second, …]}`.

The server writes it and the operator reads it. The reader treats it as untrusted data, so each field is bounded.
"""

from __future__ import annotations

import functools
import heapq
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Annotated

from pydantic import Field, model_validator

from fettle.api.base import ApiModel
from fettle.api.reasons import Reason

BUCKET_BASE = 0.05  # milliseconds; bucket 0 holds everything faster
BUCKET_RATIO = 1.05  # so a percentile is off by at most 5 %
OLD_RING_SECONDS = 900  # that a server keeps which does not say how many
HIGHEST_BUCKET = 1000  # far beyond a day at the server's own ratio; any ratio up to 2 stays a number

Count = Annotated[int, Field(ge=0, le=1_000_000_000, strict=True)]
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False, strict=True)]  # Unix time


class Problem(ApiModel):
    """Why a pod cannot compare its answers with the stable revision's."""

    reason: Reason
    message: str = Field(max_length=4096)


class Agreement(ApiModel):
    """The revision with which a pod compares its answers."""

    stable: str | None = None
    problem: Problem | None = None


class Drift(ApiModel):
    """The drift of live items from the evaluation data: the feature that drifted most; absent if too few items were seen."""

    items: Annotated[int, Field(ge=0, le=1_000_000_000, strict=True)]
    tensor: Annotated[str | None, Field(max_length=1024)] = None
    feature: Annotated[str | None, Field(max_length=64)] = None
    psi: Annotated[float | None, Field(ge=0, le=1e6, allow_inf_nan=False)] = None
    ks: Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False)] = None


class Outcomes(ApiModel):
    """Items compared in a second."""

    agreed: Count = 0
    disagreed: Count = 0
    unsure: Count = 0


class Window(ApiModel):
    """The counts of a pod in one second."""

    second: Annotated[int, Field(ge=0, le=10**11, strict=True)]
    requests: Count = 0
    errors: Count = 0
    outcomes: Outcomes = Outcomes()
    buckets: dict[Annotated[int, Field(ge=0, le=HIGHEST_BUCKET)], Count] = {}

    @model_validator(mode="after")
    def _adds_up(self) -> Window:
        if self.errors > self.requests or sum(self.buckets.values()) > self.requests:
            raise ValueError("more errors, or more answers in buckets, than requests")
        return self

    def __add__(self, other: Window) -> Window:
        """The counts of two processes of a pod in the same second."""
        if other.second != self.second:
            raise ValueError(f"expected counts of the second {self.second}, found those of {other.second}")
        mine, more = self.outcomes, other.outcomes
        return Window(
            second=self.second,
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            outcomes=Outcomes(
                agreed=mine.agreed + more.agreed,
                disagreed=mine.disagreed + more.disagreed,
                unsure=mine.unsure + more.unsure,
            ),
            buckets=Counter(self.buckets) + Counter(other.buckets),
        )

    def written(self) -> bytes:
        """As JSON."""
        return self.model_dump_json().encode()

    def latencies(self) -> dict[int, int]:
        """Answers by bucket. If a server also counts failures in its buckets, they are assumed to be the fastest, and removed."""
        failed = sum(self.buckets.values()) - (self.requests - self.errors)
        if failed <= 0:
            return self.buckets
        kept: dict[int, int] = {}
        for index, count in sorted(self.buckets.items()):
            gone = min(max(failed, 0), count)
            failed -= gone
            kept |= {index: count - gone} if count > gone else {}
        return kept


class WindowsHead(ApiModel):
    """A response without its seconds. Bucket i of a second holds answers of at most `bucket_base * bucket_ratio**i` milliseconds."""

    start: Seconds
    now: Seconds
    kept: Seconds | None = None  # from when on every second is told; servers of before do not say
    bucket_base: float = Field(gt=0, le=1e3, allow_inf_nan=False)
    bucket_ratio: float = Field(gt=1, le=2, allow_inf_nan=False)
    agreement: Agreement | None = None
    drift: Drift | None = None

    @property
    def known_since(self) -> float:
        """The time from which the process has the counts of every second, on its own clock."""
        return self.kept if self.kept is not None else max(self.start, self.now - OLD_RING_SECONDS + 1)


def summed(parts: Sequence[tuple[WindowsHead, Iterable[Window]]]) -> tuple[WindowsHead, Iterator[Window]]:
    """The response of a pod whose processes count separately, from theirs. Their seconds are ascending, and so are those of the result.

    A pod knows of a second what all its processes know of it: from the latest `start` and `kept` on, and until the earliest `now`.
    """
    heads = [head for head, _ in parts]
    head = heads[0].model_copy(
        update={
            "start": max(head.start for head in heads),
            "kept": max(head.known_since for head in heads),
            "now": min(head.now for head in heads),
            "agreement": next((head.agreement for head in heads if head.agreement is not None), None),
            "drift": None,  # which is no sum
        }
    )
    second = operator.attrgetter("second")
    # One second of each process at a time: of hours, all of them would be a multiple of the response.
    groups = groupby(heapq.merge(*(windows for _, windows in parts), key=second), key=second)
    known = range(int(head.known_since), int(head.now))
    return head, (functools.reduce(operator.add, windows) for at, windows in groups if at in known)


def written(head: WindowsHead, seconds: Iterable[bytes]) -> bytes:
    """The response as JSON; `seconds` are Windows in the form of `Window.written`."""
    return b'%b,"windows":[%b]}' % (head.model_dump_json(exclude_none=True).encode()[:-1], b",".join(seconds))
