"""Measured rows in one line, for tables of tests."""

from __future__ import annotations

from fettle.api.measured import Flips, Interval, Measurement, Percentiles, SpeedupStatus
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.vocabulary import Basis, CandidateState, RuntimeName

BASELINE_MILLISECONDS = 6.0


def row(
    name: str,
    speed: float | tuple[float, float, float] | None = 1.5,
    drop: float | tuple[float, float, float] | None = None,
    *,
    size: int | None = 1000,
    exact: bool = False,
    state: CandidateState = CandidateState.MEASURED,
    reason: Reason | None = None,
    message: str | None = None,
    percentiles: dict[str, float] | None = None,
    runs: int = 400,
    flips: tuple[int, int] | None = None,
    target: str = "cpu",
    artifact: str | None = "",
    recipe: str | None = None,
    runtime: RuntimeName = RuntimeName.ONNXRUNTIME,
    batch_size: int = 1,
) -> CandidateStatus:
    """A row. `speed` and `drop` are (point, low, high); a number means an interval of +-3 % or +-0.002."""
    if isinstance(speed, int | float):
        speed = (speed, speed * 0.97, speed * 1.03)
    if isinstance(drop, int | float):
        drop = (drop, drop - 0.002, drop + 0.002)
    milliseconds = BASELINE_MILLISECONDS / speed[0] if speed else BASELINE_MILLISECONDS
    latency = percentiles if percentiles is not None else {"p50": milliseconds, "p99": milliseconds * 1.3}
    measurement = Measurement(
        batch_size=batch_size,
        latency_milliseconds=Percentiles(**latency),
        items_per_second=1000 / milliseconds,
        peak_memory_bytes=1,
        runs=runs,
        restarts=3,
    )
    done = state == CandidateState.MEASURED
    return CandidateStatus(
        name=name,
        target=target,
        runtime=runtime,
        recipe=recipe or name.split("-")[0],
        state=state,
        reason=reason,
        message=message,
        bytes=size,
        artifact=(f"{name:0<64}".replace("-", "f") if artifact == "" else artifact) if done else None,
        exact=exact,
        accuracy_drop=Interval(value=drop[0], low=drop[1], high=drop[2]) if drop else None,
        flips=Flips(worse=flips[0], better=flips[1]) if flips else None,
        speedup=(
            SpeedupStatus(value=speed[0], low=speed[1], high=speed[2], basis=Basis.SOURCE_RUNTIME) if speed else None
        ),
        measurements=(measurement,) if done else (),
    )


def original(size: int = 1000) -> CandidateStatus:
    """The untouched source as a candidate."""
    return row("original", (1.0, 1.0, 1.0), exact=True, size=size)
