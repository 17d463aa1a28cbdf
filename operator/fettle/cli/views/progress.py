"""A run's progress: a live display of stage, tasks and candidates in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fettle.api.bounds import ORIGINAL, is_unsteady
from fettle.api.conditions import READY, find
from fettle.api.measured import Interval
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus, OptimizedModelStatus
from fettle.api.reasons import Reason
from fettle.api.vocabulary import CandidateState
from fettle.plan.run.state import RunDecision, TaskRequest

STYLES = {
    CandidateState.SELECTED: "bold green",
    CandidateState.MEASURED: "",
    CandidateState.RUNNING: "cyan",
    CandidateState.PENDING: "dim",
    CandidateState.REJECTED: "yellow",
    CandidateState.FAILED: "red",
}
PRUNED = f"{Reason.PRUNED}: rejected early, to save time. Figures, if any, are from the timing pre-test."
INTERVALS_WIDTH = 132  # columns from which a table has room for intervals
PIPE_WIDTH = 240  # a pipe has no width: nothing that grep will read is folded
SILENT_SECONDS = 25.0  # without a line, after which what runs is told again
PICTURES_PER_SECOND = 2.0  # drawn beside a measurement too: no more than it needs


class Display(Protocol):
    """Shows the progress of a run."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *exc: object) -> None: ...

    def update(self, decision: RunDecision, running: tuple[TaskRequest, ...]) -> None:
        """The run decided something."""
        ...


class LiveDisplay:
    """A display that is redrawn in place."""

    def __init__(self, console: Console, name: str) -> None:
        """`name` is the OptimizedModel's."""
        self._name = name
        self._console = console
        self._started = time.monotonic()
        self._since: dict[str, float] = {}
        self._decision: RunDecision | None = None
        self._running: tuple[TaskRequest, ...] = ()
        self._spinners: dict[str, Spinner] = {}
        self._live = Live(
            console=console, get_renderable=self._picture, refresh_per_second=PICTURES_PER_SECOND, transient=True
        )

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def update(self, decision: RunDecision, running: tuple[TaskRequest, ...]) -> None:
        """Store what to draw; it is drawn within half a second."""
        now = time.monotonic()
        self._since = {task.task_hash: self._since.get(task.task_hash, now) for task in running}
        self._decision, self._running = decision, running

    def _picture(self) -> RenderableType:
        now = time.monotonic()
        head = Text.assemble((self._name, "bold"), "  ", (_clock(now - self._started), "dim"), "  ")
        parts: list[RenderableType] = [head]
        if self._decision is not None:
            head.append(stage_line(self._decision.status))
            for task in self._running:
                age = _clock(now - self._since.get(task.task_hash, now))
                spinner = self._spinners.setdefault(task.task_hash, Spinner("dots"))
                spinner.update(text=Text(f"{task.label}  {age}"))
                parts.append(spinner)
            if self._decision.status.candidates:
                parts.append(candidates_table(self._decision.status, self._console.width))
        return Group(*parts)


class PlainDisplay:
    """One line for each change, for logs, pipes and dumb terminals. While nothing changes, one for each task from time to time."""

    def __init__(self, console: Console, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`name` is the OptimizedModel's."""
        self._console = console
        self._name = name
        self._clock = clock
        self._started = self._last = clock()
        self._stage = ""
        self._running: set[str] = set()
        self._rows: dict[tuple[str, str], CandidateState] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def update(self, decision: RunDecision, running: tuple[TaskRequest, ...]) -> None:
        """Print what is new. How the run ended is left to whoever shows its result."""
        stage = stage_line(decision.status)
        if stage != self._stage and not decision.finished:
            self._say(stage)
            self._stage = stage
        for task in running:
            if task.task_hash not in self._running:
                self._say(f"start {task.label}" + (f" (attempt {task.attempt + 1})" if task.attempt else ""))
            elif self._clock() - self._last >= SILENT_SECONDS:
                self._say(task.label)
        self._running = {task.task_hash for task in running}
        for row in decision.status.candidates:
            if self._rows.get((row.target, row.name)) != row.state:
                self._rows[row.target, row.name] = row.state
                if row.state in (CandidateState.REJECTED, CandidateState.FAILED, CandidateState.SELECTED):
                    self._say(f"{row.target}/{row.name}: {row.state} {reason_of(row)}".rstrip())

    def _say(self, text: str) -> None:
        self._last = self._clock()
        line = f"[{_clock(self._last - self._started)}] {self._name}: {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def result_console() -> Console:
    """A console on stdout; if that is not a terminal, lines are not cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def show_result(console: Console, result: RenderableType) -> None:
    """Print `result`; into a pipe without the blanks that pad a column."""
    if console.is_terminal:
        console.print(result)
        return
    with console.capture() as captured:
        console.print(result, soft_wrap=True)
    text = "\n".join(line.rstrip() for line in captured.get().splitlines())
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def stage_line(status: OptimizedModelStatus) -> str:
    """'Optimizing: 2 of 5 builds done'."""
    ready = find(status.conditions, READY)
    if ready is None:
        return ""
    return f"{ready.reason}: {ready.message}" if ready.message else ready.reason


def reason_of(row: CandidateStatus) -> str:
    """'NotFaster: speed-up 0.8 …'."""
    return ": ".join(part for part in (row.reason, row.message) if part)


def candidates_table(status: OptimizedModelStatus, width: int) -> Table:
    """A row per candidate: size, speed, loss, and its state in one word.

    `width` of the terminal in columns: if there is no room for intervals, only point values are shown.
    """
    several = len({row.target for row in status.candidates}) > 1
    pruned = any(row.reason == Reason.PRUNED for row in status.candidates)
    caption = escape(PRUNED) if pruned else None
    table = Table(box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
    for name in (["TARGET"] if several else []) + ["CANDIDATE"]:
        table.add_column(name, overflow="fold")
    for name in ("P50 MS", "SPEEDUP", "DROP", "SIZE"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("STATE", "REASON"):
        table.add_column(name, no_wrap=True)
    for row in _rows(status):
        figures = _figures(row, intervals=width >= INTERVALS_WIDTH)
        told = row.reason or (row.training.words if row.training is not None else "")
        cells = [*([row.target] if several else []), row.name, *figures, row.state.value, told]
        table.add_row(*(escape(cell) for cell in cells), style=STYLES[row.state])
    return table


def _rows(status: OptimizedModelStatus) -> list[CandidateStatus]:
    """The candidates. Where a target's original is not one of them, because the target does not list its runtime, it comes first."""
    candidates = {row.target for row in status.candidates if row.recipe == ORIGINAL}
    originals = {one.target: [_timed(one)] for one in status.baselines if one.target not in candidates}
    return [one for row in status.candidates for one in (*originals.pop(row.target, ()), row)]


def _timed(baseline: BaselineStatus) -> CandidateStatus:
    """The row of an original that is only timed."""
    return CandidateStatus(
        name=ORIGINAL,
        target=baseline.target,
        runtime=baseline.runtime,
        recipe=ORIGINAL,
        state=CandidateState.MEASURED,
        reason=f"only timed: {baseline.runtime} is not among the runtimes",
        bytes=baseline.bytes,
        exact=True,
        measurements=baseline.measurements,
    )


def _figures(row: CandidateStatus, *, intervals: bool) -> Sequence[str]:
    def figure(interval: Interval | None, digits: int) -> str:
        if interval is None:
            return ""
        span = f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]" if intervals else ""
        return f"{interval.value:.{digits}f}{span}"

    p50 = row.measurements[0].latency_milliseconds.p50 if row.measurements else None
    lost = "none" if row.exact else figure(row.accuracy_drop, 4)
    gained = f"≥ {row.speedup.low:.2f}" if is_unsteady(row) and row.speedup is not None else figure(row.speedup, 2)
    return f"{p50:.3f}" if p50 is not None else "", gained, lost, size(row.bytes)


def size(number: int | None) -> str:
    """'1.93 MB'."""
    if number is None:
        return ""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")
