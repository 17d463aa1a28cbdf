"""Numbers and sentences of the report, for readers without the background."""

from __future__ import annotations

from fettle.api import metrics
from fettle.api.bounds import BASELINES, is_unsteady
from fettle.api.executed import Executed
from fettle.api.measured import AgreementStatus, Interval, Measurement
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus
from fettle.api.recipe import RecipeStep, RuntimeSettings
from fettle.api.text import counted, percent, rounded
from fettle.api.vocabulary import Basis, Evidence, Metric, Precision

MISSING = "–"
EVIDENCE = {
    Evidence.LABELS: "labeled items",
    Evidence.AGREEMENT: "items, compared with the original's answers",
    Evidence.GENERATED: "generated items, compared with the original's answers",
}


def metric_name(metric: Metric, evidence: Evidence | None) -> str:
    """The name of the metric, with or without labels."""
    entry = metrics.entry(metric)
    return entry.title if evidence == Evidence.LABELS else entry.title_without_labels or entry.title


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without an exponent if possible: 0.0123, 4.56, 1230."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.6f}".rstrip("0") if "e" in text and abs(value) >= 1e-5 else text


def milliseconds(value: float | None) -> str:
    """'4.56 ms', or microseconds below a tenth."""
    if value is None:
        return MISSING
    return f"{number(value * 1000)} µs" if value < 0.1 else f"{number(value)} ms"


def size(count: int | None) -> str:
    """Bytes in the unit that keeps it short: '1.2 MB'."""
    if count is None:
        return MISSING
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{number(value)} {unit}"


def times(interval: Interval | None) -> str:
    """'3.2 ×'."""
    return MISSING if interval is None else f"{number(interval.value)} ×"


def claimed(row: CandidateStatus) -> str:
    """The speed-up that can be claimed: '3.2 ×', or '≥ 2.9 ×' if the timing was unsteady."""
    if row.speedup is None or not is_unsteady(row):
        return times(row.speedup)
    return f"≥ {rounded(row.speedup.low)} ×"


def span(interval: Interval | None, metric: Metric | None = None) -> str:
    """'[3.1, 3.4]'; shares in percentage points."""
    if interval is None:
        return MISSING
    if metric is not None and metrics.entry(metric).percent:
        return f"[{points(interval.low)}, {points(interval.high)}]"
    return f"[{number(interval.low)}, {number(interval.high)}]"


def points(value: float) -> str:
    """A share as a number of percentage points: '0.22', '−0.42', '0'."""
    rounded = round(100 * value, 2)
    return "0" if rounded == 0 else f"{rounded:.2f}".replace("-", "−")


def drop(row: CandidateStatus) -> str:
    """The drop, as the table shows it."""
    if row.exact:
        return "none: exact"
    if row.accuracy_drop is None:
        return MISSING
    if row.accuracy is not None and metrics.entry(row.accuracy.metric).percent:
        return f"{points(row.accuracy_drop.value)} points"
    return number(row.accuracy_drop.value)


def metric_value(metric: Metric, value: float) -> str:
    """A metric's value: shares in percent."""
    return percent(value) if metrics.entry(metric).percent else number(value, 4)


def settings(runtime: RuntimeSettings) -> str:
    """'1 thread, bfloat16, batch 1 fixed'."""
    parts = [counted(runtime.threads, "thread")]
    if runtime.streams != 1:
        parts.append(f"{runtime.streams} streams")
    if runtime.precision != Precision.FLOAT32:
        parts.append(runtime.precision.lower())
    if runtime.batch_size is not None:
        parts.append(f"batch {runtime.batch_size} fixed")
    return ", ".join(parts)


def executed(counts: Executed | None) -> str:
    """'int8 12 · f32 2': compute nodes by the precision in which they ran."""
    if counts is None or not counts.total:
        return MISSING
    names = {
        "int8": counts.int8,
        "weight-only": counts.weight_only,
        "f8": counts.f8,
        "bf16": counts.bf16,
        "f16": counts.f16,
        "f32": counts.f32,
    }
    return " · ".join(f"{name} {count}" for name, count in names.items() if count) or MISSING


def agreement(status: AgreementStatus | None) -> str:
    """'99.6 %'."""
    return MISSING if status is None else percent(status.value)


def remains(status: AgreementStatus | None) -> str:
    """'; in its worst channel, boxes[:, 4, :], 99.6 % of the variance is left', or '' if no channel varies."""
    if status is None or status.variance_kept is None:
        return ""
    return f"; in its worst channel, {status.worst_channel}, {percent(status.variance_kept)} of the variance over the items is left"


def first(row: CandidateStatus) -> Measurement | None:
    """The measurement that the constraints and the objective use."""
    return row.measurements[0] if row.measurements else None


def gain(row: CandidateStatus, before: Measurement | None) -> str:
    """One sentence on the gain."""
    if row.speedup is None:
        return "Its time was not measured."
    value, beside = row.speedup.value, BASELINES[row.speedup.basis]
    after = first(row)
    change = ""
    if before is not None and after is not None:
        change = (
            f": {milliseconds(before.latency_milliseconds.p50)} became {milliseconds(after.latency_milliseconds.p50)}"
        )
    if is_unsteady(row):
        return f"It is at least {rounded(row.speedup.low)} times as fast as {beside}{change} (factor {times(row.speedup)} {span(row.speedup)})."
    if row.speedup.low <= 1 <= row.speedup.high:
        return f"It is as fast as {beside}{change} (factor {span(row.speedup)})."
    how = f"{number(value)} times as fast as" if value >= 1 else f"{number(1 / value)} times as slow as"
    return f"It is {how} {beside}{change} (factor {span(row.speedup)})."


def cost(row: CandidateStatus) -> str:
    """One sentence on the loss of accuracy."""
    if row.exact:
        return (
            f"It cost nothing: on all {row.samples} items its answers equal the original's within floating-point noise."
        )
    if row.accuracy_drop is None or row.accuracy is None:
        return "Its cost is unknown."
    metric, lost = row.accuracy.metric, row.accuracy_drop
    share = metrics.entry(metric).percent
    unit = " percentage points" if share else ""

    def amount(value: float) -> str:
        return f"{abs(100 * value):.2f}" if share else number(abs(value))

    name = metric_name(metric, row.evidence)
    if lost.value > 0:
        what = (
            f"It cost {amount(lost.value)}{unit} of {name}"
            if not metrics.entry(metric).lower_is_better
            else f"Its {name} is {amount(lost.value)} higher"
        )
    elif lost.value < 0:
        what = f"It cost nothing on these items: {name} improved by {amount(lost.value)}{unit}"
    else:
        what = f"It cost nothing on these items: {name} is unchanged"
    if lost.high <= 0:
        return f"{what}; with 95 % confidence, it is no worse than the original."
    return f"{what}; with 95 % confidence, the true drop is at most {amount(lost.high)}{unit}."


def proof(row: CandidateStatus) -> str:
    """One sentence on the evidence for the claim about accuracy."""
    if row.samples is None or row.evidence is None:
        return "There is no evidence."
    basis = f"Judged on {row.samples} {EVIDENCE[row.evidence]}"
    if row.agreement is not None and row.agreement.unsure is not None:
        basis += f", of which {row.agreement.unsure} do not count in the agreement, because the original is unsure of its answer"
    if row.flips is not None and not row.exact:
        basis += f"; {row.flips.worse} answers changed from right to wrong, {row.flips.better} from wrong to right"
    if row.changed is not None:
        basis += f"; {percent(row.changed.value)} of the answers differ from the original's"
    if row.evidence == Evidence.GENERATED:
        return f"{basis}. No evaluation data was given, so only unchanged answers count as proof."
    return f"{basis}."


def original(baseline: BaselineStatus) -> str | None:
    """One sentence on the original's own score on these items. None if only its agreement with itself is known."""
    if baseline.accuracy is None or baseline.accuracy.metric == Metric.AGREEMENT:
        return None
    taken = f" Its outputs were interpreted as {baseline.answers}." if baseline.answers else ""
    if baseline.labels is None:
        return taken.strip() or None
    metric, value = baseline.accuracy.metric, baseline.accuracy.value
    sentence = (
        f"The original's {metrics.entry(metric).title} is {metric_value(metric, value)} on {baseline.samples} items"
    )
    if baseline.constant is not None:
        sentence += f" (the best constant predictor scores {metric_value(metric, baseline.constant.value)})"
    return f"{sentence}. Labels were interpreted as {baseline.labels}.{taken}"


def is_converted(row: CandidateStatus) -> bool:
    """Whether `row` was timed beside the converted model, because the source itself could not be timed."""
    return row.speedup is not None and row.speedup.basis == Basis.PORTABLE_FORM


def headline(name: str, row: CandidateStatus, before: Measurement | None, size_before: int) -> str:
    """The gain, for people who decide: 'digits answers 4 times as fast: in 2.6 ms instead of 10.4 ms, from a file 73 % smaller.'"""
    after = first(row)
    if row.speedup is None or after is None:
        return f"{name} is published; its time was not measured."
    factor = row.speedup.value
    now, then = after.latency_milliseconds.p50, before.latency_milliseconds.p50 if before is not None else None
    beside = BASELINES[row.speedup.basis] if is_converted(row) else ""
    if is_unsteady(row):
        gained = f"The timing was unsteady; {name} answers at least {rounded(row.speedup.low)} times as fast{f' as {beside}' if beside else ''}"
    elif row.speedup.low <= 1 <= row.speedup.high:
        gained = f"{name} answers as fast as {beside or 'before'}"
    elif factor > 1:
        gained = f"{name} answers {number(factor, 2)} times as fast{f' as {beside}' if beside else ''}"
    else:
        gained = f"{name} answers {number(1 / factor, 2)} times more slowly{f' than {beside}' if beside else ''}"
    times_text = (
        f": in {milliseconds(now)} instead of {milliseconds(then)}" if then is not None and not is_unsteady(row) else ""
    )
    return f"{gained}{times_text}{_smaller(row.bytes, size_before)}."


def _smaller(now: int | None, before: int) -> str:
    if not now or not before or abs(now - before) < 0.02 * before:
        return ""
    share = round(100 * abs(now - before) / before)
    return f", from a file {share} % {'smaller' if now < before else 'larger'}"


def bottom_line(row: CandidateStatus, kept: bool | None) -> str:
    """One sentence on the loss, and whether the promise holds."""
    if row.exact:
        costs = "Its answers are the same as before"
    elif row.accuracy_drop is None or row.accuracy is None:
        costs = "The cost in accuracy is unknown"
    elif row.accuracy_drop.high <= 0:
        costs = f"It loses nothing of its {metric_name(row.accuracy.metric, row.evidence)}"
    else:
        share = metrics.entry(row.accuracy.metric).percent
        most = f"{points(row.accuracy_drop.high)} percentage points" if share else number(row.accuracy_drop.high)
        costs = f"With 95 % confidence it loses at most {most} of {metric_name(row.accuracy.metric, row.evidence)}"
    if kept is None:
        return f"{costs}; the spec sets no constraint."
    return f"{costs}, and {'every constraint is satisfied' if kept else 'not every constraint is satisfied'}."


def steps(recipe: tuple[RecipeStep, ...]) -> str:
    """'quantize Static, Default; optimize graph'."""
    named = [step.parameters.words for step in recipe if step.parameters is not None]
    return "; ".join(named) or "no step: the portable form itself"
