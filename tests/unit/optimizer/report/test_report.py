"""The last stage: what is checked before anything counts as published, and what the report says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.unit.optimizer.report.run_of_digits import (
    BUILD,
    HOSTILE,
    MEASURE,
    PREPARE,
    fill,
    open_store,
    publish_task,
    published,
    rows,
    verdicts,
)

from fettle.api.constraints import AccuracyConstraint, Constraints, LatencyConstraint, SizeConstraint, SpeedupConstraint
from fettle.api.measured import Interval, Measurement, MetricValue
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.report import MeasureReport, PrepareReport
from fettle.api.vocabulary import Basis, CandidateState, Evidence, Metric
from fettle.errors import StoreError
from fettle.optimizer import publish
from fettle.optimizer.report import plot, plot_rows, text
from fettle.optimizer.report.promise import promises
from fettle.store.manifest import read_stored
from fettle.store.store import Store
from fettle.store.uris import Mounts


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Store, str]:
    """A store with a finished run, and the digest of its winner."""
    store = open_store(tmp_path / "store")
    return store, fill(store, tmp_path / "model")


class Page(HTMLParser):
    """What a reader sees, and what a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All text, on one line."""
        return " ".join(" ".join(self.words).split())


def parsed(html: str) -> Page:
    """The page as a browser reads it."""
    page = Page()
    page.feed(html)
    return page


def test_the_winner_is_checked_whole_and_named(finished: tuple[Store, str]) -> None:
    store, digest = finished
    assert publish.run(publish_task(store), store, Mounts()).artifacts == {"cpu": digest}


def test_the_report_says_what_was_won_what_it_cost_and_whether_it_is_proved(report: str) -> None:
    page = parsed(report).text
    assert "int8-nncf-openvino is published" in page
    assert "4 times as fast as the original: 10.4 ms became 2.6 ms (factor [3.92, 4.08])" in page
    assert (
        "0.11 percentage points of accuracy; with 95 % confidence, the true drop is at most 0.73 percentage points"
        in page
    )
    assert "Judged on 897 labeled items; 2 answers changed from right to wrong, 1 from wrong to right" in page
    assert "accuracy drop ≤ 0.02, p99 ≤ 8 ms" in page


def test_two_sentences_tell_who_decides_what_was_gained_what_it_costs_and_whether_the_promise_holds(
    report: str,
) -> None:
    page = parsed(report).text
    assert (
        "digits answers 4 times as fast: in 2.6 ms instead of 10.4 ms, from a file 73 % smaller. "
        "With 95 % confidence it loses at most 0.73 percentage points of accuracy, and every constraint is satisfied."
        in page
    )
    assert "✓ satisfied drop in accuracy ≤ 2.00 points: 0.11 points, at worst 0.73 points" in page
    assert "✓ satisfied p99 latency ≤ 8 ms: 3.64 ms" in page


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        (Constraints(accuracy=AccuracyConstraint(max_drop=0.0073)), True),
        (Constraints(accuracy=AccuracyConstraint(max_drop=0.0072)), False),
        (Constraints(latency=LatencyConstraint(max_milliseconds=3.65)), True),
        (Constraints(latency=LatencyConstraint(max_milliseconds=3.6)), False),
        (Constraints(latency=LatencyConstraint(max_milliseconds=2.7, percentile=50)), True),
        (Constraints(speedup=SpeedupConstraint(min=3.9)), True),
        (Constraints(speedup=SpeedupConstraint(min=3.95)), False),
        (Constraints(size=SizeConstraint(max_bytes=1_290_000)), True),
        (Constraints(size=SizeConstraint(max_bytes=1_289_999)), False),
    ],
)
def test_a_promise_is_judged_at_the_unfavourable_end(bounds: Constraints, kept: bool) -> None:
    (one,) = promises(bounds, found("int8-nncf-openvino"))
    assert one.kept is kept


@pytest.mark.parametrize(
    ("metric", "max_changed", "told"),
    [
        (Metric.ACCURACY, 0.1, "≤ 10.00 %"),
        (Metric.ACCURACY, 1.0, "≤ 100.00 % (default)"),
        (Metric.MEAN_SQUARED_ERROR, 0.1, "≤ 10.00 % (default)"),
        (Metric.MEAN_SQUARED_ERROR, 1.0, "≤ 100.00 %"),
    ],
)
def test_a_bound_on_changed_answers_that_nobody_set_is_called_the_default(
    metric: Metric, max_changed: float, told: str
) -> None:
    seen = {"accuracy": MetricValue(metric=metric, value=1.0), "changed": Interval(value=0.0, low=0.0, high=0.1)}
    bounds = Constraints(accuracy=AccuracyConstraint(max_drop=9, max_changed=max_changed))
    _, changed = promises(bounds, found("int8-nncf-openvino").model_copy(update=seen))
    assert changed.bound == told


def test_a_promise_that_nothing_was_measured_for_is_not_called_kept() -> None:
    every = Constraints(
        accuracy=AccuracyConstraint(max_drop=0.02),
        latency=LatencyConstraint(max_milliseconds=8),
        speedup=SpeedupConstraint(min=1),
    )
    assert [one.kept for one in promises(every, found("bf16-openvino"))] == [None, None, None]


def test_who_hears_the_page_learns_what_the_plots_show(report: str) -> None:
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', report)
    assert len(labels) == 4
    assert all("int8-nncf-openvino" in label for label in labels)
    assert "<table" in report and report.count("<table") == report.count("<caption>")
    assert all('scope="col"' in head for head in re.findall(r"<th [^>]*columnheader[^>]*>", report))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_text_has_a_contrast_of_at_least_4_5_on_light_on_dark_and_on_paper(report: str) -> None:
    themes = re.findall(r":root \{(.*?)\}", report, re.DOTALL)
    assert len(themes) == 3
    for theme in themes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", theme))
        for text_colour in ("ink", "soft", "good", "bad", "plain", "base"):
            for ground in ("page", "card", "good-soft"):
                if ground == "good-soft" and text_colour not in ("ink", "soft", "good"):
                    continue
                high, low = sorted((luminance(colours[text_colour]), luminance(colours[ground])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text_colour, ground)


def test_what_was_sorted_out_early_is_no_failure(report: str) -> None:
    assert "Rejected early" in parsed(report).text
    assert "1.5 times the best's 2.6 ms and more" in parsed(report).text


def test_a_report_of_a_run_without_distributions_leaves_that_plot_out(finished: tuple[Store, str]) -> None:
    store = finished[0]
    report = store.result(MEASURE)
    assert isinstance(report, MeasureReport)
    store.put_result(MEASURE, report.model_copy(update={"distributions": ()}))
    html = published(store)
    assert "Spread of the times" not in html
    assert html.count("<svg") == 3


def test_every_candidate_stands_in_the_table_with_its_reason(report: str) -> None:
    page = parsed(report).text
    for verdict in verdicts():
        assert verdict.candidate in page
    assert "CalibrationTooSmall" in page
    assert "accuracy drop 0.052 [0.036, 0.071] must not exceed 0.02 at its upper end" in page


def test_the_table_is_in_the_order_that_its_caption_says(finished: tuple[Store, str]) -> None:
    store, _ = finished
    report = store.result(MEASURE)
    assert isinstance(report, MeasureReport)
    early = {"fp32-openvino": 6.1, "fp32-static-shape-openvino": 5.8}
    rows = tuple(row.model_copy(update={"speedup": None}) if row.name in early else row for row in report.candidates)
    store.put_result(MEASURE, report.model_copy(update={"candidates": rows}))
    names = re.findall(r'<th role="rowheader" scope="row">([^<]+)<', published(store))
    assert names[:3] == ["int8-nncf-openvino", "int8-qdq-openvino", "int8-transformer-openvino"]
    timed = names.index("int8-dynamic-onnxruntime")
    assert names[timed + 1 : timed + 3] == ["fp32-static-shape-openvino", "fp32-openvino"]


def test_numbers_that_share_a_label_stand_in_short_lines() -> None:
    points = [plot.Point(str(number), "pruned", "x", None, None, None) for number in range(1, 7)]
    assert plot._numbers(points) == "1, 2, 3, 4,\n5, 6"


def test_lineage_names_source_data_libraries_and_cpu(finished: tuple[Store, str]) -> None:
    store, digest = finished
    page = parsed(published(store)).text
    for expected in ("5" * 64, digest, "nncf 3.4.0", "openvino 2026.4.1", "GenuineIntel x86_64 avx2+avx512+vnni"):
        assert expected in page


def test_the_file_loads_nothing_from_elsewhere_and_runs_no_script(report: str) -> None:
    page = parsed(report)
    assert not [address for address in page.loads if not address.startswith("#")]
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "@import" not in report
    assert "prefers-color-scheme: dark" in report
    assert page.tags.count("svg") == 4


def test_what_a_message_says_is_text_and_never_markup(report: str) -> None:
    assert HOSTILE in parsed(report).text
    assert "<script" not in report


def test_the_same_run_writes_the_same_report(finished: tuple[Store, str]) -> None:
    assert published(finished[0]) == published(finished[0])


def test_plots_take_every_colour_from_the_page(report: str) -> None:
    for drawing in re.findall(r"<svg.*?</svg>", report, re.DOTALL):
        colours = set(re.findall(r"(?:fill|stroke): ?(#[0-9a-f]{6})", drawing))
        assert not colours


def test_a_winner_whose_file_is_gone_is_not_published(finished: tuple[Store, str], tmp_path: Path) -> None:
    store, digest = finished
    (tmp_path / "store" / "blobs" / read_stored(store, digest).model.files[0].sha256).unlink()
    with pytest.raises(StoreError, match=r"model\.onnx") as caught:
        publish.run(publish_task(store), store, Mounts())
    assert caught.value.reason == Reason.ARTIFACT_TAMPERED
    assert not store.exists("reports/vision/digits/3.html")


def test_a_winner_whose_reference_was_changed_is_not_published(finished: tuple[Store, str]) -> None:
    store, digest = finished
    reference = read_stored(store, digest).reference
    assert reference is not None
    store.write_bytes(f"blobs/{reference.sha256}", b"x" * reference.bytes)
    with pytest.raises(StoreError, match=r"reference\.npz"):
        publish.run(publish_task(store), store, Mounts())


def test_a_winner_without_an_artifact_is_not_published(finished: tuple[Store, str]) -> None:
    store, _ = finished
    chosen = tuple(
        one.model_copy(update={"state": CandidateState.SELECTED}) if one.candidate == "fp32-openvino" else one
        for one in verdicts()
    )
    with pytest.raises(StoreError, match="fp32-openvino") as caught:
        publish.run(publish_task(store, verdicts=chosen), store, Mounts())
    assert caught.value.reason == Reason.ARTIFACT_NOT_FOUND


@pytest.mark.parametrize("key", [PREPARE, BUILD, MEASURE])
def test_an_answer_that_is_gone_is_asked_for_again(finished: tuple[Store, str], tmp_path: Path, key: str) -> None:
    store, _ = finished
    (tmp_path / "store" / "results" / f"{key}.json").unlink()
    with pytest.raises(StoreError) as caught:
        publish.run(publish_task(store), store, Mounts())
    assert caught.value.retryable


def test_a_target_without_a_winner_says_so(finished: tuple[Store, str]) -> None:
    store, _ = finished
    lost = tuple(
        one.model_copy(update={"state": CandidateState.REJECTED, "reason": Reason.CONSTRAINTS_NOT_MET})
        for one in verdicts()
    )
    report = publish.run(publish_task(store, verdicts=lost), store, Mounts())
    assert report.artifacts == {}
    assert "Nothing new is published: none of" in store.read_bytes("reports/vision/digits/3.html").decode()


def test_an_unsteady_clock_is_said_where_the_figures_stand(finished: tuple[Store, str]) -> None:
    store, _ = finished
    doubted = tuple(
        one.model_copy(update={"reason": Reason.MEASUREMENT_UNSTABLE, "message": "known to 40% only"})
        if one.state == CandidateState.SELECTED
        else one
        for one in verdicts()
    )
    publish.run(publish_task(store, verdicts=doubted), store, Mounts())
    page = parsed(store.read_bytes("reports/vision/digits/3.html").decode()).text
    assert "The timing was unsteady: known to 40% only." in page
    headline = "The timing was unsteady; digits answers at least 3.92 times as fast, from a file 73 % smaller. With 95 % confidence"
    assert headline in page
    assert "times as fast ≥ 3.92 ×" in page
    assert "It is at least 3.92 times as fast as the original: 10.4 ms became 2.6 ms (factor 4 × [3.92, 4.08])" in page


def test_the_report_of_a_converted_source_compares_times_with_the_converted_model_and_sizes_with_the_source(
    finished: tuple[Store, str],
) -> None:
    store, _ = finished
    prepared, measured = store.result(PREPARE), store.result(MEASURE)
    assert isinstance(prepared, PrepareReport)
    assert isinstance(measured, MeasureReport)
    source = prepared.source.model_copy(update={"bytes": 12_900_000})
    store.put_result(PREPARE, prepared.model_copy(update={"source": source, "basis": Basis.PORTABLE_FORM}))
    converted = tuple(
        row.model_copy(update={"speedup": row.speedup.model_copy(update={"basis": Basis.PORTABLE_FORM})})
        if row.speedup is not None
        else row
        for row in measured.candidates
    )
    store.put_result(MEASURE, measured.model_copy(update={"candidates": converted}))
    page = parsed(published(store)).text
    headline = "digits answers 4 times as fast as the converted model (ONNX): in 2.6 ms instead of 10.4 ms, from a file 90 % smaller."
    assert headline in page
    assert "times as fast as the converted model 4 ×" in page
    assert "was 12.9 MB" in page
    assert "It is 4 times as fast as the converted model (ONNX): 10.4 ms became 2.6 ms" in page
    assert "times as fast as the converted model (more is better)" in page
    assert "as fast as the original" not in page.partition("in pictures")[0]


# ------------------------------------------------------------------------------------------------------- numbers and sentences


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (None, "–"), (3.14159, "3.14"), (1234.5, "1234"), (0.000123, "0.000123"), (99.96, "100"), (12, "12")],
)
def test_numbers_have_three_digits(value: float | None, written: str) -> None:
    assert text.number(value) == written


@pytest.mark.parametrize(("value", "written"), [(12.345, "12.3 ms"), (0.0256, "25.6 µs"), (None, "–"), (0.1, "0.1 ms")])
def test_times_have_their_unit(value: float | None, written: str) -> None:
    assert text.milliseconds(value) == written


@pytest.mark.parametrize(("count", "written"), [(12, "12 B"), (4_810_000, "4.81 MB"), (2_200_000_000, "2.2 GB")])
def test_sizes_have_their_unit(count: int, written: str) -> None:
    assert text.size(count) == written


def found(name: str) -> CandidateStatus:
    """A row of the finished run."""
    return next(row for row in rows() if row.name == name)


def baseline() -> Measurement:
    """The original's time."""
    return found("original").measurements[0]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("int8-nncf-openvino", "It is 4 times as fast as the original: 10.4 ms became 2.6 ms"),
        ("original", "It is as fast as the original"),
        ("int8-dynamic-onnxruntime", "It is 4 times as slow as the original"),
        ("bf16-openvino", "Its time was not measured."),
    ],
)
def test_a_gain_is_a_sentence(name: str, sentence: str) -> None:
    assert text.gain(found(name), baseline()).startswith(sentence)


def test_an_exact_candidate_cost_nothing() -> None:
    assert text.cost(found("fp32-openvino")).startswith(
        "It cost nothing: on all 897 items its answers equal the original's"
    )


@pytest.mark.parametrize(
    ("metric", "lost", "sentence"),
    [
        (
            Metric.ACCURACY,
            (0, -0.01, 0.01),
            "accuracy is unchanged; with 95 % confidence, the true drop is at most 1.00",
        ),
        (
            Metric.ACCURACY,
            (-0.02, -0.03, -0.01),
            "improved by 2.00 percentage points; with 95 % confidence, it is no worse",
        ),
        (Metric.MEAN_SQUARED_ERROR, (0.5, 0.2, 0.9), "Its mean squared error is 0.5 higher; with 95 % confidence"),
        (
            Metric.F1,
            (0.012, 0.0, 0.03),
            "It cost 0.012 of F1; with 95 % confidence, the true drop is at most 0.03.",
        ),
    ],
)
def test_a_cost_is_a_sentence(metric: Metric, lost: tuple[float, float, float], sentence: str) -> None:
    row = found("int8-nncf-openvino").model_copy(
        update={
            "accuracy": MetricValue(metric=metric, value=0.9),
            "accuracy_drop": Interval(value=lost[0], low=lost[1], high=lost[2]),
        }
    )
    assert sentence in text.cost(row)


@pytest.mark.parametrize(
    ("metric", "evidence", "words"),
    [
        (Metric.REGRESSION, Evidence.LABELS, "of R²"),
        (Metric.REGRESSION, Evidence.AGREEMENT, "of items near the original's answer"),
        (Metric.RANKING, Evidence.LABELS, "of area under the ROC curve"),
        (Metric.RANKING, Evidence.AGREEMENT, "of pairs in the original's order"),
        (Metric.TOP_K, Evidence.LABELS, "percentage points of top-k accuracy"),
        (Metric.MULTI_LABEL, Evidence.AGREEMENT, "of F1 of the yes-or-no decisions"),
    ],
)
def test_what_was_lost_is_called_what_was_measured(metric: Metric, evidence: Evidence, words: str) -> None:
    row = found("int8-nncf-openvino").model_copy(
        update={
            "evidence": evidence,
            "accuracy": MetricValue(metric=metric, value=0.9),
            "accuracy_drop": Interval(value=0.01, low=0, high=0.02),
        }
    )
    assert words in text.cost(row) and words in text.bottom_line(row, kept=True)


def test_a_plot_of_nothing_is_no_plot() -> None:
    empty = plot.Point("1", "rejected", "a", None, None, None)
    assert plot.pareto([empty], "loss", 0.01, True) is None
    assert plot_rows.speedups([empty], "the original") is None
    assert plot_rows.drops([empty], "loss", 0.01, True) is None
    assert plot_rows.spreads([empty], {}, None) is None


def test_a_single_candidate_can_be_drawn() -> None:
    one = Interval(value=5.0, low=5.0, high=5.0)
    point = plot.Point("1", "original", "original", one, Interval(value=0, low=0, high=0), one)
    assert "<svg" in (plot.pareto([point], "loss", None, False) or "")


@pytest.mark.filterwarnings("error")
def test_a_time_of_nothing_is_drawn_without_a_logarithm() -> None:
    none, never = Interval(value=0, low=0, high=0), Interval(value=5.0, low=0.0, high=90.0)
    assert "<svg" in (plot.pareto([plot.Point("1", "passed", "a", never, none, never)], "loss", None, False) or "")


def timed(label: str, kind: str, milliseconds: float, drop: Interval | None = None) -> plot.Point:
    once = Interval(value=milliseconds, low=milliseconds, high=milliseconds)
    return plot.Point(label, kind, f"candidate-{label}", once, drop, None)


def test_numbers_on_the_axis_are_not_written_over_each_other() -> None:
    latencies = {"1": 12.0, "9": 6.9, "11": 7.0, "15": 7.05, "16": 7.95, "8": 7.96, "3": 14.0}
    marks = [timed(label, "pruned", milliseconds) for label, milliseconds in latencies.items()]
    drawn = (
        plot.pareto([timed("2", "original", 12.0, Interval(value=0, low=0, high=0)), *marks], "loss", 0.02, True) or ""
    )
    height = {told: float(y) for y, told in re.findall(r' y="([0-9.]+)"[^<>]*>([^<>]+)</text>', drawn)}
    assert height["16, 8"] < height["9, 11, 15"]  # a line above it
    assert height["3"] == height["9, 11, 15"]  # where there is room


def test_what_was_sorted_out_by_a_quick_clock_stands_on_the_axis_with_its_latency() -> None:
    none = Interval(value=0, low=0, high=0)
    points = [
        timed("1", "original", 8.0, none),
        *(timed(label, "pruned", milliseconds) for label, milliseconds in (("2", 4.1), ("3", 4.0), ("4", 2.0))),
    ]
    drawn = plot.pareto(points, "loss", 0.01, True) or ""
    assert "candidate-2 4.1 ms" in drawn
    assert "rejected early" in drawn
    assert "3, 2" in re.findall(r">([^<>]+)</text>", drawn)  # side by side, told together


def test_the_report_says_what_is_left_of_the_worst_channel(report: str) -> None:
    assert "in its worst channel, logits[:, 4], 98.12 % of the variance over the items is left" in report


def test_the_first_lines_say_what_would_gain_more_and_what_keeps_it_out(finished: tuple[Store, str]) -> None:
    store, _ = finished
    held_back = "int8-openvino is about 3.1 times as fast as the original, but accuracy drop 0.12 must not exceed 0.1"
    publish.run(publish_task(store, held_back={"cpu": held_back}), store, Mounts())
    text = parsed(store.read_bytes("reports/vision/digits/3.html").decode()).text
    assert f"More could be gained: {held_back}." in text
    assert text.index("More could be gained") < text.index("Candidates for cpu")
    assert "More could be gained" not in parsed(published(store)).text
