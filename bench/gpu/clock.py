"""Times of sessions in turns, for `bench/gpu/check.py`."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fettle.runtimes.base import Array, Session, TimedOnGpu

if TYPE_CHECKING:
    from bench.gpu.check import Check
    from bench.gpu.forms import Subject

BLOCK_SECONDS, WARM_UP_SECONDS = 0.25, 3.0
ROUNDS, LEAST_ROUNDS = 15, 5
NOT_RUN = "not run"
BASELINE, EAGER = "onnxruntime-cuda float32", "torch eager float32"


def block(session: Session, feed: dict[str, Array]) -> tuple[float, float]:
    """Milliseconds of a run, by the wall clock and, where the session tells it, between CUDA events: the medians of a block."""
    taken: list[float] = []
    on_gpu: list[float] = []
    until = time.perf_counter() + BLOCK_SECONDS
    while time.perf_counter() < until or len(taken) < 3:
        began = time.perf_counter()
        session.infer(feed)
        taken.append((time.perf_counter() - began) * 1000)
        on_gpu.append(session.gpu_milliseconds() if isinstance(session, TimedOnGpu) else 0.0)
    return statistics.median(taken), statistics.median(on_gpu)


def timed(check: Check, subject: Subject, sessions: Mapping[str, Session]) -> dict[str, Any]:
    """Time sessions in turns, and keep a row each."""
    running = warm(check, subject, sessions)
    if BASELINE not in running:
        return {"outcome": NOT_RUN, "why": f"{BASELINE}, which the others are compared with, does not run here"}
    medians: dict[str, list[float]] = {name: [] for name in running}
    on_gpu: dict[str, list[float]] = {name: [] for name in running}
    shuffled = random.Random(7)
    rounds = 0
    while rounds < LEAST_ROUNDS or (rounds < ROUNDS and time.monotonic() < check.ends):
        rounds += 1
        for name in shuffled.sample(list(running), len(running)):
            by_clock, by_events = block(running[name], subject.feed)
            medians[name].append(by_clock)
            on_gpu[name].append(by_events)
    for name, own in medians.items():
        faster = speedup(medians[BASELINE], own, "speedup", "low", "high")
        if EAGER in medians:
            faster |= speedup(medians[EAGER], own, "overEager", "overEagerLow", "overEagerHigh")
        if between := statistics.median(on_gpu[name]):
            faster["gpuMilliseconds"] = round(between, 4)
        taken = round(statistics.median(own), 4)
        check.row("speed", subject.name, name, outcome="ok", milliseconds=taken, **faster)
    return {"outcome": "ok", "rounds": rounds, "blockSeconds": BLOCK_SECONDS}


def warm(check: Check, subject: Subject, sessions: Mapping[str, Session]) -> dict[str, Session]:
    """The sessions that run beside each other, once the clocks of the GPU are up; a row for each other one."""
    running = dict(sessions)
    until = time.monotonic() + WARM_UP_SECONDS
    while True:
        for name, session in list(running.items()):
            try:
                session.infer(subject.feed)
            except Exception as error:  # noqa: BLE001  libraries raise what they like
                check.failed("speed", subject.name, name, error)
                del running[name]
        if time.monotonic() > until:
            break
    for session in running.values():
        if isinstance(session, TimedOnGpu):
            session.time_on_gpu()
    return running


def speedup(others: list[float], own: list[float], name: str, low: str, high: str) -> dict[str, float]:
    """The median over rounds of how many times as fast, and its interval, under these names."""
    ratios = np.array(others) / np.array(own)
    least, most = interval(ratios)
    return {name: round(float(np.median(ratios)), 3), low: round(least, 3), high: round(most, 3)}


def interval(ratios: Array) -> tuple[float, float]:
    """95 % of the median, by the bootstrap over rounds."""
    drawn = np.random.default_rng(11).choice(ratios, (4000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)
