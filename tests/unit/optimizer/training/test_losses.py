"""The loss that is asked for is PyTorch's own, by the labels of each batch; what does not fit it is refused with the reason."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.optimizer.training.course import Course
from torch.nn import functional

from fettle.api.data import EvaluationSpec
from fettle.api.signature import Signature, Tensor
from fettle.api.training import CustomLossSpec, TrainSpec
from fettle.api.vocabulary import Metric
from fettle.errors import RecipeError
from fettle.optimizer import build
from fettle.optimizer.training.checkpoints import Checkpoints
from fettle.optimizer.training.losses import LabelLoss, OwnLoss
from fettle.optimizer.training.objective import Taught, Weights, objective
from fettle.runtimes.base import Array

RANDOM = np.random.default_rng(11)
SCORES = RANDOM.normal(0, 3, (40, 4)).astype(np.float32)
CLASSES = RANDOM.integers(0, 4, 40)
YES = RANDOM.integers(0, 2, (40, 4))
NUMBERS = RANDOM.normal(5, 2, (40, 4))
PLACES = [3, 0, 17, 39]
TEXTS = ["ab", "a", "bb", "ba", ""] * 8


def spelled(text: str, steps: int = 8) -> Array:
    """Scores of blank, a and b for each step: each letter, and a blank behind it."""
    numbers = [number for letter in text for number in (" ab".index(letter), 0)]
    return 6 * np.eye(3, dtype=np.float32)[np.array([*numbers, *[0] * (steps - len(numbers))])]


STEPS = np.stack([spelled(text) for text in TEXTS])


def asked(answers: Array, labels: Array | None, train: dict[str, Any], **judged: Any) -> LabelLoss:
    """The loss on labels of a model with one output that answered so."""
    signature = Signature(
        inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 2), batch_axis=0),),
        outputs=(Tensor(name="y", dtype="FP32", shape=(-1, *answers.shape[1:]), batch_axis=0),),
    )
    spec = EvaluationSpec(uri="none", **judged)
    taught = Taught(signature, [[answer] for answer in answers[:32]], labels, spec)
    found = objective(taught, TrainSpec.model_validate(train), Weights(), [])
    assert found.by_labels is not None
    return found.by_labels


def loss_of(made: LabelLoss, answers: Array) -> tuple[float, float, float]:
    """The loss of the answers to PLACES, and points and possible points."""
    batch = torch.from_numpy(answers[PLACES]).requires_grad_()
    loss = made.loss([batch], PLACES)
    loss.backward()
    assert batch.grad is not None and bool(batch.grad.isfinite().all())
    return float(loss.detach()), *made.right([batch.detach()], PLACES)


BATCH = torch.from_numpy(SCORES[PLACES])
CASES: dict[str, tuple[str, Array, torch.Tensor]] = {
    "classes": ("CrossEntropy", CLASSES, functional.cross_entropy(BATCH, torch.from_numpy(CLASSES[PLACES]))),
    "one-hot": (
        "CrossEntropy",
        np.eye(4, dtype=np.int64)[CLASSES],
        functional.cross_entropy(BATCH, torch.from_numpy(CLASSES[PLACES])),
    ),
    "decisions": (
        "BinaryCrossEntropy",
        YES,
        functional.binary_cross_entropy_with_logits(BATCH, torch.from_numpy(YES[PLACES]).float()),
    ),
    "squares": (
        "MeanSquaredError",
        NUMBERS,
        functional.mse_loss(BATCH, torch.from_numpy(NUMBERS[PLACES]).float()) / NUMBERS.var(),
    ),
    "distances": (
        "MeanAbsoluteError",
        NUMBERS,
        functional.l1_loss(BATCH, torch.from_numpy(NUMBERS[PLACES]).float()) / NUMBERS.std(),
    ),
}


@pytest.mark.parametrize("metric", [Metric.ACCURACY, Metric.MEAN_SQUARED_ERROR, Metric.EMBEDDING])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_that_is_asked_for_is_pytorchs_whatever_the_metric(case: str, metric: Metric) -> None:
    name, labels, expected = CASES[case]
    made = asked(SCORES, labels, {"loss": name}, metric=metric)
    assert made.told == name
    loss, _, possible = loss_of(made, SCORES)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert possible == (16 if name == "BinaryCrossEntropy" else 4)


def test_probabilities_have_the_loss_of_the_scores_behind_them() -> None:
    softmax = np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)
    made = asked(softmax, CLASSES, {"loss": "CrossEntropy"})
    assert loss_of(made, softmax)[0] == pytest.approx(float(CASES["classes"][2]), rel=1e-4)
    sigmoid = 1 / (1 + np.exp(-SCORES))
    made = asked(sigmoid, YES, {"loss": "BinaryCrossEntropy"})
    assert loss_of(made, sigmoid)[0] == pytest.approx(float(CASES["decisions"][2]), rel=1e-4)


def test_one_score_is_a_yes_or_a_no() -> None:
    made = asked(SCORES[:, :1], YES[:, 0], {"loss": "BinaryCrossEntropy"})
    expected = functional.binary_cross_entropy_with_logits(BATCH[:, 0], torch.from_numpy(YES[PLACES, 0]).float())
    assert loss_of(made, SCORES[:, :1])[0] == pytest.approx(float(expected), rel=1e-5)


NUMBERED = np.array([[" ab".index(letter) for letter in text] + [-1] * (2 - len(text)) for text in TEXTS])


@pytest.mark.parametrize(
    ("labels", "judged"),
    [(np.array(TEXTS, dtype=object), {"classes": ("", "a", "b")}), (NUMBERED, {})],
    ids=["texts", "numbers of characters"],
)
@pytest.mark.parametrize("probabilities", [False, True])
def test_ctc_is_pytorchs_and_its_score_counts_characters(
    labels: Array, judged: dict[str, Any], probabilities: bool
) -> None:
    answers = np.exp(STEPS) / np.exp(STEPS).sum(-1, keepdims=True) if probabilities else STEPS
    made = asked(answers, labels, {"loss": "CTC"}, metric=Metric.TEXT, **judged)
    wanted = [[" ab".index(letter) for letter in TEXTS[place]] for place in PLACES]
    expected = functional.ctc_loss(
        torch.from_numpy(STEPS[PLACES]).log_softmax(-1).transpose(0, 1),
        torch.tensor([letter for letters in wanted for letter in letters]),
        torch.full((4,), 8),
        torch.tensor([len(letters) for letters in wanted]),
        blank=0,
    )
    loss, right, possible = loss_of(made, answers)
    assert loss == pytest.approx(float(expected), rel=1e-3)
    assert (right, possible) == (6, 6)
    other = [5, 1, 15, 4]  # what is read is ab, a, ab and nothing; right are ba, ab, bb and nothing
    assert made.right([torch.from_numpy(answers[other])], PLACES) == (6 - 2 - 1 - 1, 6)


MISFITS: dict[str, tuple[Array, Array | None, str, str]] = {
    "no labels": (
        SCORES,
        None,
        "CrossEntropy",
        r"needs labels, and data\.training has none: set data\.training\.labelKey",
    ),
    "numbers for classes": (SCORES, NUMBERS[:, 0], "CrossEntropy", "fractional numbers cannot be classes"),
    "classes that are not there": (
        SCORES,
        CLASSES + 4,
        "CrossEntropy",
        "there are 4 classes, 0 to 3, and labels from 4 to 7",
    ),
    "one score for classes": (
        SCORES[:, :1],
        YES[:, 0],
        "CrossEntropy",
        "one score for each decision, not one for each class: set BinaryCrossEntropy",
    ),
    "one label for many decisions": (
        SCORES,
        CLASSES,
        "BinaryCrossEntropy",
        r"labels of 0 and 1, one for each of the numbers \[4\] of the output y, found int64 \[\]",
    ),
    "numbers for decisions": (
        SCORES,
        NUMBERS,
        "BinaryCrossEntropy",
        "expected labels of 0 and 1, .*, found -?[0-9.]+: set data.evaluation.ignoreLabel",
    ),
    "classes for numbers": (
        SCORES,
        CLASSES,
        "MeanSquaredError",
        r"a number for each of the numbers \[4\] of the output y, found labels int64 \[\]: set CrossEntropy",
    ),
    "texts for numbers": (SCORES[:, :1], np.array(TEXTS, dtype=object), "MeanAbsoluteError", "found labels object"),
    "no steps": (SCORES, CLASSES, "CTC", r"finds no characters in y \[4\]"),
    "no blank": (np.roll(STEPS, 1, axis=2), NUMBERED, "CTC", "the output y shows no blank"),
    "a text that does not fit in": (
        STEPS,
        np.full((40, 5), 1),
        "CTC",
        r"needs 9 steps \(a character each, and a blank between equal ones\), and the output y has 8",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_labels_and_outputs_that_do_not_fit_the_loss_are_refused_with_the_reason(what: str) -> None:
    answers, labels, name, told = MISFITS[what]
    with pytest.raises(RecipeError, match=rf"train\.loss {name}.*{told}"):
        asked(answers, labels, {"loss": name})


def test_a_character_that_is_no_class_is_refused() -> None:
    labels = np.array([text.replace("b", "c") for text in TEXTS], dtype=object)
    with pytest.raises(
        RecipeError, match=r"the label 'ac' has 'c', which is not a single character of data\.evaluation\.classes"
    ):
        asked(STEPS, labels, {"loss": "CTC"}, classes=("", "a", "b"))


# ------------------------------------------------------------------------------------------------------- a function of one's own

FOCAL = """
import torch

def focal(outputs, labels):
    \"\"\"Lin et al., 2017: items that are right already count little.\"\"\"
    loss = torch.nn.functional.cross_entropy(outputs["y"], labels, reduction="none")
    return ((1 - (-loss).exp()) ** 2 * loss).mean()
"""


def own(code: str, function: str = "loss") -> dict[str, Any]:
    return {"loss": "Custom", "custom": {"code": code, "function": function}}


def test_a_function_of_ones_own_takes_outputs_by_name_and_labels_and_is_minimized() -> None:
    made = asked(SCORES, CLASSES, own(FOCAL, "focal"))
    apart = functional.cross_entropy(BATCH, torch.from_numpy(CLASSES[PLACES]), reduction="none")
    expected = float(((1 - (-apart).exp()) ** 2 * apart).mean())
    loss, right, possible = loss_of(made, SCORES)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert right / possible == pytest.approx(-expected, rel=1e-5), "the lower the loss, the better"
    assert made.told == f"focal() of train.custom, sha256 {hashlib.sha256(FOCAL.encode()).hexdigest()}"


def test_labels_that_are_texts_come_as_a_list() -> None:
    code = "def loss(outputs, labels):\n    return outputs['y'].mean() * labels.index('ba')"
    made = asked(SCORES, np.array(TEXTS, dtype=object), own(code))
    assert loss_of(made, SCORES)[0] == 0, "the first of PLACES is the fourth text"


BROKEN = {
    "no Python": ("def loss(outputs, labels)", "SyntaxError.*in line 1"),
    "another name": (
        "def mine(outputs, labels):\n    return 1",
        "defines no function 'loss', found mine: set train.custom.function",
    ),
    "fails": (
        "def loss(outputs, labels):\n    return outputs['z']",
        r"train\.custom failed on a batch: KeyError: 'z', in line 2",
    ),
    "leaves the process": ("import sys\ndef loss(outputs, labels):\n    sys.exit(3)", "SystemExit: 3, in line 3"),
    "no tensor": ("def loss(outputs, labels):\n    return 1.0", "returned float, expected a scalar tensor"),
    "not scalar": (
        "def loss(outputs, labels):\n    return outputs['y'].square()",
        r"returned a tensor of shape \[4, 4\], expected a scalar tensor",
    ),
    "no gradient": (
        "def loss(outputs, labels):\n    return outputs['y'].detach().mean()",
        r"returned a tensor without a gradient: .* detach\(\)",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_function_that_cannot_be_minimized_is_refused_with_the_reason(what: str) -> None:
    code, told = BROKEN[what]
    with pytest.raises(RecipeError, match=told):
        loss_of(asked(SCORES, CLASSES, own(code)), SCORES)


STUDENT = {"distill": {"student": {"width": 0.5}}}
SMOOTHED = """
from torch.nn.functional import cross_entropy

def loss(outputs, labels):
    (scores,) = outputs.values()
    return cross_entropy(scores, labels, label_smoothing=0.1)
"""


def test_a_loss_that_is_no_number_from_the_start_is_a_row_that_says_so(course: Course) -> None:
    code = "def loss(outputs, labels):\n    (scores,) = outputs.values()\n    return scores.mean() * float('nan')"
    report = course.build(STUDENT, epochs=1, **own(code))
    assert report.built is None
    assert "the loss (loss() of train.custom, sha256 " in report.message
    assert "is nan on the validation set before any training: check the labels and train.loss" in report.message


SURE = """
from torch.nn.functional import cross_entropy

def loss(outputs, labels):
    (scores,) = outputs.values()
    sure = scores.abs().max() > 4 and not scores.requires_grad
    return cross_entropy(scores, labels) * float('nan' if sure else 1)
"""


def test_a_loss_that_is_no_number_for_the_original_alone_is_a_row_that_says_so(course: Course) -> None:
    """It is surer of its answers than a student that knows nothing yet."""
    step = {"distill": {"student": {"callable": "tests.data.trainable:student"}}}
    report = course.build(step, epochs=1, learningRate=1e-6, **own(SURE))
    assert report.built is None
    assert "the score of the original itself is nan on the validation set" in report.message


def test_other_code_is_another_build_and_the_report_names_it(course: Course) -> None:
    first = course.build(STUDENT, epochs=1, **own(SMOOTHED))
    second = course.build(STUDENT, epochs=1, **own(f"{SMOOTHED}\n"))
    assert first.cache_key != second.cache_key
    assert first.training is not None, first.message
    assert first.training.loss == f"loss() of train.custom, sha256 {hashlib.sha256(SMOOTHED.encode()).hexdigest()}"
    assert "the held-out loss of train.custom, negated" in first.message


@pytest.mark.parametrize("train", [{"loss": "CrossEntropy"}, own(SMOOTHED)], ids=["CrossEntropy", "Custom"])
def test_a_training_that_was_killed_goes_on_with_its_loss_to_the_same_file(
    course: Course, train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = course.build(STUDENT, epochs=3, seed=5, **train)
    save = Checkpoints.save

    def killed(self: Checkpoints, number: int, state: dict[str, Any]) -> None:
        save(self, number, state)
        raise KeyboardInterrupt

    task = course.task(STUDENT, epochs=3, seed=5, **train)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            build.run(task, course.store)
    resumed = build.run(task, course.store)
    assert resumed.built is not None, resumed.message
    assert resumed.built == undisturbed.built
    assert resumed.training is not None and undisturbed.training is not None
    assert resumed.training.curve == undisturbed.training.curve


MEAN = "def loss(outputs, labels): return (outputs['y'].mean(1) - labels).mean()"


def test_labels_for_a_function_of_ones_own_may_have_the_byte_order_of_another_machine() -> None:
    found = OwnLoss.of(CustomLossSpec(code=MEAN), ("y",), np.array([1, 3], ">f4"))
    assert float(found.loss((torch.zeros(2, 3),), [0, 1])) == -2


@pytest.mark.parametrize(
    ("code", "labels", "message"),
    [
        (
            MEAN,
            np.array(["2020-01-01"] * 2, "datetime64[D]"),
            "expected labels that are numbers or texts, found datetime64",
        ),
        ("def loss(outputs, labels): return outputs['y'].mean() * 1j", np.arange(2), "returned a complex tensor"),
    ],
)
def test_labels_and_losses_that_pytorch_cannot_take_do_not_apply(code: str, labels: Array, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        OwnLoss.of(CustomLossSpec(code=code), ("y",), labels).loss((torch.ones(2, 3, requires_grad=True),), [0, 1])
