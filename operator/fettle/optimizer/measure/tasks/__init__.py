"""Metrics of tasks: what answers are for, and how well they do it. One module a metric, registered in `METRICS`.

Each judges answers by labels, or by the original's answers taken as the truth: then it says how well they agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from fettle.api.vocabulary import Metric
from fettle.optimizer.measure.tasks import detection, embedding, segmentation, text
from fettle.optimizer.measure.tasks.base import TaskMetric

METRICS: Mapping[Metric, type[TaskMetric]] = {
    Metric.DETECTION: detection.Detection,
    Metric.SEGMENTATION: segmentation.Segmentation,
    Metric.TEXT: text.Text,
    Metric.EMBEDDING: embedding.Embedding,
}
