"""What a training minimizes follows from the labels and the metric, and from the teacher's answers where labels say nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fettle.api.data import EvaluationSpec
from fettle.api.signature import Signature, Tensor
from fettle.api.training import FeaturesSpec, TrainSpec
from fettle.api.vocabulary import Metric
from fettle.errors import RecipeError
from fettle.optimizer.training.objective import Taught, TrainingObjective, Weights, objective
from fettle.runtimes.base import Array

RANDOM = np.random.default_rng(5)
SCORES = RANDOM.normal(0, 3, (40, 4)).astype(np.float32)
PROBABILITIES = np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)
YES = (1 / (1 + np.exp(-SCORES[:, :1]))).astype(np.float32)


PICTURES = RANDOM.normal(0, 3, (40, 3, 6, 7)).astype(np.float32)  # scores of three classes for each place
FOREGROUND = (1 / (1 + np.exp(-PICTURES[:, :1]))).astype(np.float32)


def made(
    answers: Array, labels: Array | None, metric: Metric, ignore_label: int | None = None, **weights: Any
) -> tuple[TrainingObjective, list[str]]:
    """The objective of a model with one output that answered so."""
    shape = (-1, *answers.shape[1:])
    signature = Signature(
        inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 2), batch_axis=0),),
        outputs=(Tensor(name="y", dtype="FP32", shape=shape, batch_axis=0),),
    )
    notes: list[str] = []
    spec = EvaluationSpec(uri="none", metric=metric, ignore_label=ignore_label)
    examples = [[answer] for answer in answers[:32]]
    taught = Taught(signature, examples, labels, spec)
    return objective(taught, TrainSpec(), Weights(**weights), notes), notes


CASES = {
    "classes by scores": (SCORES, SCORES.argmax(1), Metric.ACCURACY),
    "classes by probabilities": (PROBABILITIES, SCORES.argmax(1), Metric.ACCURACY),
    "one-hot": (SCORES, np.eye(4)[SCORES.argmax(1)].astype(np.int64), Metric.ACCURACY),
    "top k": (SCORES, SCORES.argmax(1), Metric.TOP_K),
    "yes or no": (YES, (YES[:, 0] > 0.5).astype(np.int64), Metric.ACCURACY),
    "masks": (PICTURES, PICTURES.argmax(1), Metric.SEGMENTATION),
    "masks of foreground": (FOREGROUND, (FOREGROUND[:, 0] > 0.5).astype(np.uint8), Metric.SEGMENTATION),
    "tags": (SCORES, (SCORES > 0).astype(np.int64), Metric.MULTI_LABEL),
    "numbers": (SCORES, SCORES.astype(np.float64), Metric.MEAN_SQUARED_ERROR),
    "quantities": (SCORES, SCORES.astype(np.float64), Metric.REGRESSION),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("labelled", [True, False])
def test_right_answers_score_1_and_a_step_down_the_gradient_lowers_the_loss(case: str, labelled: bool) -> None:
    answers, labels, metric = CASES[case]
    made_of, notes = made(answers, labels if labelled else None, metric)
    assert not notes
    assert (made_of.by_labels is not None) == labelled
    places, right = list(range(len(answers))), [torch.from_numpy(answers)]
    points, possible = made_of.right(right, right, places)
    assert points == pytest.approx(possible)
    wrong = (right[0] * 0.2 + 0.1).requires_grad_()
    loss = made_of.loss([wrong], right, places)
    loss.backward()
    assert wrong.grad is not None
    with torch.no_grad():
        nearer = wrong - 0.05 * wrong.grad / wrong.grad.abs().max()
    assert float(made_of.loss([nearer], right, places)) < float(loss)


def test_a_mask_is_compared_along_its_classes_and_not_along_a_row_of_pixels() -> None:
    made_of, _ = made(PICTURES, None, Metric.SEGMENTATION)
    answers, places = torch.from_numpy(PICTURES), list(range(40))
    moved = answers.clone()
    moved[:, 0] += 9  # one class everywhere: along a row nothing but a constant
    assert float(made_of.loss([moved], [answers], places)) > 1
    points, possible = made_of.right([moved], [answers], places)
    assert possible == 40 * 6 * 7
    assert points < 0.5 * possible


@pytest.mark.parametrize(
    ("answers", "metric", "labels"),
    [
        (SCORES, Metric.MULTI_LABEL, (SCORES > 0).astype(np.int64)),
        (PICTURES, Metric.SEGMENTATION, PICTURES.argmax(1)),
        (FOREGROUND, Metric.SEGMENTATION, (FOREGROUND[:, 0] > 0.5).astype(np.int64)),
    ],
    ids=["tags", "masks", "masks of foreground"],
)
@pytest.mark.parametrize(("marker", "ignore_label"), [(-1, -1), (-100, None)])
def test_labels_that_do_not_count_teach_nothing(
    answers: Array, metric: Metric, labels: Array, marker: int, ignore_label: int | None
) -> None:
    unsure = labels.copy()
    unsure[:, 1] = marker
    made_of, _ = made(answers, unsure, metric, ignore_label, beta=0.0)
    student = torch.from_numpy(answers * 0.5).requires_grad_()
    made_of.loss([student], [torch.from_numpy(answers)], list(range(len(answers)))).backward()
    assert student.grad is not None
    assert not student.grad[:, 1].any() if metric is Metric.MULTI_LABEL else not student.grad[:, :, 1].any()
    _, possible = made_of.right([student], [student], list(range(len(answers))))
    assert possible == np.sum(unsure != marker)


@pytest.mark.parametrize(
    ("answers", "metric", "labels"),
    [
        (SCORES, Metric.MULTI_LABEL, (SCORES > 0).astype(np.int64)),
        (PICTURES, Metric.SEGMENTATION, PICTURES.argmax(1)),
    ],
    ids=["tags", "masks"],
)
def test_an_item_without_a_label_that_counts_is_no_loss_and_no_nan(
    answers: Array, metric: Metric, labels: Array
) -> None:
    unsure = labels.copy()
    unsure[7] = -100
    made_of, _ = made(answers, unsure, metric, beta=0.0)
    student = torch.from_numpy(answers[7:8] * 0.5).requires_grad_()
    loss = made_of.loss([student], [torch.from_numpy(answers[7:8])], [7])
    loss.backward()
    assert float(loss.detach()) == 0
    assert student.grad is not None and not student.grad.any()
    assert made_of.right([student], [student], [7]) == (0, 0)


def test_labels_without_a_loss_are_left_to_the_teacher_with_a_note() -> None:
    made_of, notes = made(SCORES, np.arange(40), Metric.EMBEDDING)
    assert made_of.by_labels is None
    assert notes == ["Embedding has no differentiable loss on labels: training follows the original's answers"]


def test_labels_that_do_not_fit_are_refused_with_what_they_are() -> None:
    with pytest.raises(
        RecipeError, match=r"the labels of data\.training: .*there are 4 classes, 0 to 3, and labels from 0 to 39"
    ):
        made(SCORES, np.arange(40), Metric.ACCURACY)


def test_an_answer_without_gradients_cannot_be_learned() -> None:
    with pytest.raises(RecipeError, match="no output of the model is differentiable"):
        made(SCORES.argmax(1), None, Metric.ACCURACY)


def test_alpha_beta_and_temperature_weigh_as_the_formula_says() -> None:
    answers, labels = torch.from_numpy(SCORES), SCORES.argmax(1)
    student, places = answers * 0.5, list(range(40))
    by_labels = torch.nn.functional.cross_entropy(student, torch.from_numpy(labels))
    apart = torch.nn.functional.kl_div(
        torch.log_softmax(student / 3, 1), torch.log_softmax(answers / 3, 1), reduction="batchmean", log_target=True
    )
    whole, _ = made(SCORES, labels, Metric.ACCURACY, alpha=0.7, beta=0.4, temperature=3.0)
    assert float(whole.loss([student], [answers], places)) == pytest.approx(
        float(0.7 * by_labels + 0.4 * 9 * apart), rel=1e-5
    )
    square, _ = made(SCORES, None, Metric.ACCURACY, beta=0.4, temperature=None)
    expected = 0.4 * float((student - answers).square().mean()) / float(np.std(SCORES[:32].astype(np.float64))) ** 2
    assert float(square.loss([student], [answers], places)) == pytest.approx(expected, rel=1e-5)


def test_features_add_their_mean_squared_errors_in_variances_of_the_teachers() -> None:
    labels = SCORES.argmax(1)
    plain, _ = made(SCORES, labels, Metric.ACCURACY, beta=0.5)
    features = FeaturesSpec(weight=3)
    following, _ = made(SCORES, labels, Metric.ACCURACY, beta=0.5, features=features)
    following = replace(following, scales=(2.0, 1.0))
    places, answers = list(range(len(SCORES))), torch.from_numpy(SCORES)
    taught = [answers, torch.zeros(40, 3), torch.zeros(40, 2, 2)]
    own = [answers, torch.full((40, 3), 4.0), torch.ones(40, 2, 2)]
    added = float(following.loss(own, taught, places)) - float(plain.loss([answers], [answers], places))
    assert added == pytest.approx(0.5 * 3 * ((4 / 2) ** 2 + 1**2) / 2)
    assert following.right(own, taught, places) == plain.right([answers], [answers], places)
