"""The content of the page: from the reports of a run's tasks to the values that the template prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fettle import __version__
from fettle.api import metrics
from fettle.api.bounds import BASELINES, is_unsteady
from fettle.api.constraints import Constraints
from fettle.api.measured import Interval
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, Distribution, LayerError, MeasureReport, PrepareReport, TrainingFigures
from fettle.api.task import CandidateVerdict, PublishTask
from fettle.api.vocabulary import Basis, CandidateState, Metric
from fettle.optimizer.report import plot, plot_layers, plot_rows, plot_training, text
from fettle.optimizer.report.promise import Promise, promises
from fettle.store.manifest import Manifest

ORIGINAL = "original"  # recipe of the untouched source, as the plan names it
PARETO_CAPTION = (
    "Each mark is a candidate, numbered as in the table; lines are 95 % intervals. Towards the lower left is better. "
    "Candidates that were rejected by the timing pre-test are on the axis: their accuracy drop was not measured."
)
SPEEDUP_CAPTION = "Speed-up over {} in the same rounds, with its 95 % interval. Right of the dashed line is faster."
DROP_CAPTION = "How much worse than the original by the metric, with its interval. The whole line must be to the left of the bound."
SPREAD_CAPTION = "Line: 1st to 99th percentile of single runs. Box: the middle half. Mark: the median."
BASES = {
    Basis.SOURCE_RUNTIME: "the untouched source in its own runtime",
    Basis.PORTABLE_FORM: "the portable form of the source, because the source itself could not be timed",
}


@dataclass(frozen=True)
class Material:
    """Everything that the report is made from. `manifests` are the winners', by digest; `artifacts` are their addresses in
    the store, and `registry` those in a registry, by target. `trainings` and `layers` are by the names of their builds."""

    task: PublishTask
    prepare: PrepareReport
    builds: Sequence[BuildReport]
    measures: Sequence[MeasureReport]
    manifests: Mapping[str, Manifest]
    artifacts: Mapping[str, str]
    registry: Mapping[str, str]
    trainings: Mapping[str, TrainingFigures]
    layers: Mapping[str, Sequence[LayerError]]


@dataclass(frozen=True)
class CandidateLine:
    """A row of the table: a measured candidate, or one that was rejected before measurement (`row` is None)."""

    label: str
    name: str
    kind: str
    state: str
    reason: str
    message: str
    row: CandidateStatus | None = None


@dataclass(frozen=True)
class Plot:
    """A figure with its caption; `svg` is generated here and safe to embed."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class TargetSection:
    """A section of the page."""

    name: str
    baseline: BaselineStatus
    measured: MeasureReport
    lines: tuple[CandidateLine, ...]
    winner: CandidateStatus | None
    size_before: int  # of the source; of what was timed in its place, nobody asked for a size
    unsteady: str | None  # what the clock says against the winner's figures
    manifest: Manifest | None
    artifact: str | None
    registry_uri: str | None
    promises: tuple[Promise, ...]
    plots: tuple[Plot, ...]

    @property
    def kept(self) -> bool | None:
        """Whether every promise holds; None if nothing was promised."""
        return all(one.kept for one in self.promises) if self.promises else None


def render(material: Material) -> str:
    """The whole page as one file that loads nothing from elsewhere."""
    environment = Environment(
        loader=PackageLoader("fettle.optimizer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["text"] = text
    trained = list(material.trainings.items())
    curves = [(name, plot_training.curve(name, figures)) for name, figures in trained]
    return environment.get_template("report.html.j2").render(
        task=material.task,
        prepare=material.prepare,
        builds=[build for build in material.builds if build.built is not None],
        trained=trained,
        ranked=[(name, plot_layers.errors(name, layers)) for name, layers in material.layers.items()],
        curves=[(name, drawn) for name, drawn in curves if drawn is not None],
        targets=targets(material),
        steps=text.steps,
        bases=BASES,
        version=__version__,
    )


def targets(material: Material) -> tuple[TargetSection, ...]:
    """One section per measured target, in the order of measurement."""
    reports: dict[str, list[MeasureReport]] = {}
    for report in material.measures:
        reports.setdefault(report.baseline.target, []).append(report)
    return tuple(_target(material, name, found) for name, found in reports.items())


def _target(material: Material, name: str, reports: Sequence[MeasureReport]) -> TargetSection:
    rows = {row.name: row for report in reports for row in report.candidates}
    verdicts = [verdict for verdict in material.task.verdicts if verdict.target == name]
    lines = tuple(_line(number, verdict, rows.get(verdict.candidate)) for number, verdict in enumerate(verdicts, 1))
    baseline = reports[0].baseline
    winner = next((_judged(line) for line in lines if line.kind == "selected" and line.row is not None), None)
    digest = winner.artifact if winner is not None else None
    points = [_point(line, baseline) for line in lines if line.row is not None]
    metric = _metric(lines)
    bounds = material.task.bounds
    entry = metrics.entry(metric)
    label = f"{'rise' if entry.lower_is_better else 'drop'} in {_metric_name(lines)}"
    unit = f"{label}, percentage points" if entry.percent else label
    beside = BASELINES[material.prepare.basis].removesuffix(" (ONNX)")
    return TargetSection(
        name=name,
        baseline=baseline,
        measured=reports[0],
        lines=tuple(sorted(lines, key=_order)),
        winner=winner,
        size_before=material.prepare.source.bytes if winner and text.is_converted(winner) else baseline.bytes,
        unsteady=winner.message if winner and is_unsteady(winner) else None,
        manifest=material.manifests.get(digest) if digest is not None else None,
        artifact=material.artifacts.get(digest) if digest is not None else None,
        registry_uri=material.registry.get(name),
        promises=promises(bounds, winner) if winner is not None else (),
        plots=_plots(points, unit, bounds, entry.percent, reports, beside),
    )


def _judged(line: CandidateLine) -> CandidateStatus:
    """The row of a line, with the verdict on it."""
    assert line.row is not None
    return line.row.model_copy(update={"reason": line.reason or None, "message": line.message or None})


def _plots(
    points: Sequence[plot.Point],
    label: str,
    bounds: Constraints | None,
    share: bool,
    reports: Sequence[MeasureReport],
    beside: str,
) -> tuple[Plot, ...]:
    """The plots that can be drawn, in the order in which a reader needs them. `beside`: what the candidates were timed beside."""
    max_drop = bounds.accuracy.max_drop if bounds is not None and bounds.accuracy is not None else None
    most = bounds.latency.max_milliseconds if bounds is not None and bounds.latency is not None else None
    drawn = (
        ("Speed and accuracy", PARETO_CAPTION, plot.pareto(points, label, max_drop, share)),
        ("Speed-up", SPEEDUP_CAPTION.format(beside), plot_rows.speedups(points, beside)),
        ("Accuracy drop", DROP_CAPTION, plot_rows.drops(points, label, max_drop, share)),
        ("Spread of the times", SPREAD_CAPTION, plot_rows.spreads(points, _distributions(reports), most)),
    )
    return tuple(Plot(title, caption, svg) for title, caption, svg in drawn if svg is not None)


def _distributions(reports: Sequence[MeasureReport]) -> Mapping[str, Distribution]:
    """The distribution of times by candidate; the baseline's belongs to the original."""
    return {one.candidate or ORIGINAL: one for report in reports for one in report.distributions}


def _line(number: int, verdict: CandidateVerdict, row: CandidateStatus | None) -> CandidateLine:
    original = row is not None and row.recipe == ORIGINAL
    if verdict.state == CandidateState.SELECTED:
        kind = "selected"
    elif original:
        kind = "original"
    else:
        kind = "passed" if verdict.state == CandidateState.MEASURED else "rejected"
    if kind == "rejected" and verdict.reason == Reason.PRUNED:
        kind = "pruned"
    words = {"selected": "Published", "passed": "Passed", "original": "Original", "pruned": "Rejected early"}
    return CandidateLine(
        label=str(number),
        name=verdict.candidate,
        kind=kind,
        state=words.get(kind, verdict.state.value),
        reason=verdict.reason or "",
        message=verdict.message or "",
        row=row,
    )


def _order(line: CandidateLine) -> tuple[Any, ...]:
    """Sort key: the winner, then by speed-up; then those that only the timing pre-test timed, by their time; then the others."""
    row = line.row
    speedup = row.speedup.value if row is not None and row.speedup is not None else 0.0
    measured = text.first(row) if row is not None else None
    p50 = measured.latency_milliseconds.p50 if measured is not None else None
    return line.kind != "selected", -speedup, p50 if p50 is not None else math.inf, int(line.label)


def _point(line: CandidateLine, baseline: BaselineStatus) -> plot.Point:
    row = line.row
    assert row is not None
    exact = Interval(value=0, low=0, high=0) if row.exact else row.accuracy_drop
    return plot.Point(line.label, line.kind, line.name, _latency(row, baseline), exact, row.speedup)


def _latency(row: CandidateStatus, baseline: BaselineStatus) -> Interval | None:
    """Median latency, with an interval derived from the speed-up's interval."""
    mine = row.measurements[0].latency_milliseconds.p50 if row.measurements else None
    before = baseline.measurements[0].latency_milliseconds.p50 if baseline.measurements else None
    if not mine:  # 0: quicker than the clock's tick
        return None
    if not before or row.speedup is None:
        return Interval(value=mine, low=mine, high=mine)
    low, high = before / row.speedup.high, before / row.speedup.low
    return Interval(value=mine, low=min(low, mine), high=max(high, mine))


def _metric(lines: Sequence[CandidateLine]) -> Metric:
    return next(
        (line.row.accuracy.metric for line in lines if line.row is not None and line.row.accuracy is not None),
        Metric.AGREEMENT,
    )


def _metric_name(lines: Sequence[CandidateLine]) -> str:
    rows = [line.row for line in lines if line.row is not None and line.row.accuracy is not None]
    return text.metric_name(_metric(lines), next((row.evidence for row in rows), None))
