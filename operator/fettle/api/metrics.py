"""One row for each metric: what it judges, how it is told to a person, and what its figures can prove. Data only.

The code of a task's metric stands in `optimizer/measure/tasks/`, and its row names it. The plan, the report, the API's descriptions and the
guide's table are made from these rows, so that nothing about a metric has to be said twice. A test holds them against the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from fettle.api.text import joined
from fettle.api.vocabulary import Metric


class DropUnit(Enum):
    """What a drop of the metric is counted in."""

    FRACTION = auto()  # of 1: 0.02 is 2 %
    OPEN = auto()  # nothing bounds it: R² and cosines fall below 0
    LABELS = auto()  # in the labels' own unit: no bound can be guessed


class Proof(Enum):
    """What an interval of the drop rests on, and so how many items it takes to prove anything."""

    ITEMS = auto()  # each item is right or wrong: a score interval
    BOOTSTRAP_OVER_ITEMS = auto()  # a bootstrap that never claims more than the score interval where nothing changed
    BOOTSTRAP = auto()


@dataclass(frozen=True)
class MetricEntry:
    """A metric. `judges`, `by_labels` and `without_labels` are what the guide says of it; `without_labels` None: it needs labels.

    `title` names its value in sentences, `title_without_labels` where that is something else without labels.
    """

    metric: Metric
    judges: str
    by_labels: str
    without_labels: str | None
    title: str
    proof: Proof
    scorer: str | None = None  # "module:class" in optimizer/measure/tasks; None: `measure/metrics.py` computes it
    title_without_labels: str | None = None
    percent: bool = True  # people read it in percent, and its drop in percentage points
    drop: DropUnit = DropUnit.FRACTION
    lower_is_better: bool = False
    names_classes: bool = False  # a label is a class, and an answer decides for one
    changed: str | None = None  # what share maxChanged bounds; None: 1 - the metric by the original's answers
    outputs: str = "the first"  # that are read unless data.evaluation.output names one
    recognized: str | None = None  # answers for which Auto chooses it
    # The metric whose labels train a model that is judged by this one; None: no loss is known, and training follows the original's answers.
    trained_as: Metric | None = None
    # How a canary's answers are compared with stable's; None: their numbers may differ where they say the same.
    canaries: str | None = None

    @property
    def needs_labels(self) -> bool:
        """Whether the original's answers cannot stand in for labels."""
        return self.without_labels is None

    @property
    def bounds_agreement(self) -> bool:
        """Whether its drop also says how many answers may differ, which is all that is known before labels are looked at."""
        return self.drop is DropUnit.FRACTION or not self.needs_labels


_AS_CANDIDATES = "like candidates"

# Where the user names no metric, those of tasks are asked in this order whether the answers are theirs.
METRICS: tuple[MetricEntry, ...] = (
    MetricEntry(
        Metric.ACCURACY,
        judges="classes",
        by_labels="share of right answers",
        without_labels="agreement with the original",
        title="accuracy",
        proof=Proof.ITEMS,
        names_classes=True,
        changed="of decisions",
        canaries=_AS_CANDIDATES,
        trained_as=Metric.ACCURACY,
    ),
    MetricEntry(
        Metric.F1,
        judges="classes, some of them rare",
        by_labels="F1, averaged as `average` says",
        without_labels=None,
        title="F1",
        proof=Proof.BOOTSTRAP,
        percent=False,
        names_classes=True,
        changed="of decisions",
        canaries=_AS_CANDIDATES,
        trained_as=Metric.F1,
    ),
    MetricEntry(
        Metric.DETECTION,
        judges="boxes",
        by_labels="average precision at IoU 0.5; a label is `[n, 5]`: left, top, right, bottom, class (-1 is padding)",
        without_labels="F1 against the original's boxes, at several score and IoU thresholds",
        title="detected objects",
        proof=Proof.BOOTSTRAP_OVER_ITEMS,
        scorer="detection:Detection",
        outputs="those that hold boxes",
        recognized="boxes",
    ),
    MetricEntry(
        Metric.TEXT,
        judges="texts, for example from OCR or speech recognition",
        by_labels="1 - character error rate; labels are texts (characters in `classes`) or numbers",
        without_labels="the same, against the original's text",
        title="correct characters",
        proof=Proof.BOOTSTRAP_OVER_ITEMS,
        scorer="text:Text",
        recognized="CTC outputs (if classes names the blank)",
        canaries="equal texts, where the model itself outputs texts",
    ),
    MetricEntry(
        Metric.SEGMENTATION,
        judges="masks",
        by_labels="mean intersection over union; a label has a class for each pixel",
        without_labels="the same, against the original's mask",
        title="mean intersection over union",
        proof=Proof.BOOTSTRAP_OVER_ITEMS,
        scorer="segmentation:Segmentation",
        recognized="masks",
        trained_as=Metric.ACCURACY,
    ),
    MetricEntry(
        Metric.EMBEDDING,
        judges="vectors for search or recognition",
        by_labels="nearest neighbor has the same label",
        without_labels="share of items whose vector stays close to the original's and keeps its nearest neighbor",
        title="correct nearest neighbors",
        proof=Proof.ITEMS,
        scorer="embedding:Embedding",
        recognized="normalized embeddings",
        canaries="cosine of at least 0.9",
    ),
    MetricEntry(
        Metric.TOP_K,
        judges="the best few classes or recommendations",
        by_labels="share of items whose class is among the best `topK` (5 by default)",
        without_labels="share of items whose best `topK` are mostly the original's",
        title="top-k accuracy",
        title_without_labels="items with the same best classes",
        proof=Proof.ITEMS,
        scorer="top_k:TopK",
        trained_as=Metric.ACCURACY,
    ),
    MetricEntry(
        Metric.MULTI_LABEL,
        judges="many yes-or-no decisions per item, such as tags",
        by_labels="micro F1 with a threshold of 0.5 for probabilities or 0 for logits; a label has 0 or 1 for each decision",
        without_labels="the same against the original's decisions, at three thresholds",
        title="F1 of the yes-or-no decisions",
        proof=Proof.BOOTSTRAP_OVER_ITEMS,
        scorer="multi_label:MultiLabel",
        percent=False,
        outputs="all",
        trained_as=Metric.MULTI_LABEL,
    ),
    MetricEntry(
        Metric.RANKING,
        judges="one score per item, where only the order matters",
        by_labels="area under the ROC curve; a label is 1, or 0 or -1",
        without_labels="share of pairs of items that are in the original's order",
        title="area under the ROC curve",
        title_without_labels="pairs in the original's order",
        proof=Proof.BOOTSTRAP_OVER_ITEMS,
        scorer="ranking:Ranking",
        percent=False,
        trained_as=Metric.ACCURACY,
    ),
    MetricEntry(
        Metric.REGRESSION,
        judges="quantities: prices, ratings, pitches",
        by_labels="R², the share of the labels' variance that the model explains, so `maxDrop` is in R²; MAE and RMSE are reported too",
        without_labels="share of items whose numbers are all within a tenth of the spread (a robust standard deviation) of the original's answers",
        title="R² (share of the labels' variance explained)",
        title_without_labels="items near the original's answer",
        proof=Proof.BOOTSTRAP_OVER_ITEMS,
        scorer="regression:Regression",
        percent=False,
        drop=DropUnit.OPEN,
        changed="of items",
        outputs="all",
        trained_as=Metric.MEAN_SQUARED_ERROR,
    ),
    MetricEntry(
        Metric.MEAN_SQUARED_ERROR,
        judges="quantities; the error is in the square of their unit",
        by_labels="mean squared error; lower is better, and `maxDrop` is how far it may rise",
        without_labels=None,
        title="mean squared error",
        proof=Proof.BOOTSTRAP,
        percent=False,
        drop=DropUnit.LABELS,
        lower_is_better=True,
        changed="of variance",
        canaries=_AS_CANDIDATES,
        trained_as=Metric.MEAN_SQUARED_ERROR,
    ),
    MetricEntry(
        Metric.COSINE_SIMILARITY,
        judges="vectors, compared with the correct vectors",
        by_labels="mean cosine similarity",
        without_labels=None,
        title="cosine similarity",
        proof=Proof.BOOTSTRAP,
        percent=False,
        drop=DropUnit.OPEN,
        changed="of 1 - cosine",
        canaries=_AS_CANDIDATES,
        trained_as=Metric.COSINE_SIMILARITY,
    ),
    MetricEntry(
        Metric.CUSTOM,
        judges="scored by your own Python function (`custom`)",
        by_labels="mean of `score(outputs, label)` over the items; higher is better",
        without_labels="the same, with the original's outputs in place of the label; equal outputs must score 1",
        title="custom score",
        proof=Proof.BOOTSTRAP_OVER_ITEMS,
        scorer="custom:Custom",
        percent=False,
        drop=DropUnit.OPEN,
        changed="of the squares of outputs",
        outputs="all",
    ),
    MetricEntry(
        Metric.AGREEMENT,
        judges="any outputs, compared with the original's",
        by_labels="not used",
        without_labels="share of items with the same answer as the original's",
        title="agreement with the original",
        proof=Proof.ITEMS,
        canaries=_AS_CANDIDATES,
    ),
)

_ENTRIES = {entry.metric: entry for entry in METRICS}
UNBOUNDED = tuple(entry.metric for entry in METRICS if entry.drop is not DropUnit.FRACTION)  # their drop may exceed 1
TASKS = frozenset(entry.metric for entry in METRICS if entry.scorer is not None)  # those with a module of their own


def entry(metric: Metric) -> MetricEntry:
    """The row of a metric; Auto has Accuracy's, which it is unless the answers show another task."""
    return _ENTRIES[Metric.ACCURACY if metric is Metric.AUTO else metric]


def in_unit_of_labels(metric: Metric) -> bool:
    """Whether a drop of the metric is counted in the labels' own unit."""
    return entry(metric).drop is DropUnit.LABELS


def those(chosen: Callable[[MetricEntry], bool]) -> tuple[Metric, ...]:
    """The metrics whose rows are chosen."""
    return tuple(row.metric for row in METRICS if chosen(row))


def described() -> str:
    """data.evaluation.metric for `kubectl explain`."""
    judged = " ".join(f"{row.metric}: {row.judges}." for row in METRICS)
    recognized = joined(row.recognized for row in METRICS if row.recognized)
    needing = joined(those(lambda row: row.needs_labels))
    return (
        f"How answers are scored. {judged} Auto recognizes {recognized}, and is Accuracy otherwise; the notes say what it chose. Without labels, "
        f"Accuracy becomes Agreement, and the other metrics compare with the original's answers. {needing} require labels."
    )


def outputs_described() -> str:
    """Which outputs are read by default."""
    others = [
        f"for {names} to {outputs}" for outputs, names in _grouped(lambda row: row.outputs) if outputs != "the first"
    ]
    return f"Defaults to the first; {', '.join(others)}."


def changed_described() -> str:
    """What share maxChanged bounds, for `kubectl explain`."""
    return ", ".join(f"{share} for {names}" for share, names in _grouped(lambda row: row.changed))


def _grouped(told: Callable[[MetricEntry], str | None]) -> Iterable[tuple[str, str]]:
    """What is told of metrics, each with the list of those of which it is told."""
    groups: dict[str, list[str]] = {}
    for row in METRICS:
        if (word := told(row)) is not None:
            groups.setdefault(word, []).append(row.metric)
    return ((word, joined(names)) for word, names in groups.items())
