"""`spec.data` of an OptimizedModel: the items for calibration, training and evaluation, how they are read, and how answers are scored."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api import metrics
from fettle.api.base import ApiModel, Rule, rules
from fettle.api.code import FunctionName, FunctionSpec, function_rules
from fettle.api.uris import Address, SecretName, file_rules
from fettle.api.vocabulary import (
    AgreementMode,
    Augmentation,
    Average,
    Color,
    Layout,
    Metric,
    SeveralLabels,
    UnsureItems,
    Uri,
)


class PreprocessSpec(ApiModel):
    """How the pictures of an image folder become items: scaled to width x height, then (pixel / 255 - mean) / std."""

    width: Annotated[int | None, Field(ge=1, le=8192, description="Pixels. Defaults to the model's input.")] = None
    height: Annotated[int | None, Field(ge=1, le=8192, description="Pixels. Defaults to the model's input.")] = None
    crop: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="Scale the shorter side to width / crop (or height / crop), then cut out the center. "
            "For example, 0.875 cuts 224 out of 256 pixels. Without crop, the image is stretched.",
        ),
    ] = None
    mean: Annotated[
        tuple[float, ...],
        Field(max_length=3, description="Mean on a scale of 0 to 1: one number, or one per channel. Default: 0."),
    ] = ()
    std: Annotated[
        tuple[float, ...],
        Field(max_length=3, description="Standard deviation on a scale of 0 to 1, given like mean. Default: 1."),
    ] = ()
    layout: Annotated[Layout, Field(description="Order of the dimensions of the input.")] = Layout.CHANNELS_FIRST
    color: Annotated[Color, Field(description="Order of the color channels of the input.")] = Color.RGB


@rules(*file_rules("data.calibration.uri"))
class CalibrationSpec(ApiModel):
    """Items from which static quantization learns its ranges; they never certify."""

    uri: Annotated[
        Uri,
        Field(
            description="An .npz, .parquet or .jsonl file with one column per input, named after it, and one row per item, "
            "or a folder of images with a sub-folder per class."
        ),
    ]
    secret_name: SecretName = None
    max_samples: Annotated[int, Field(ge=1, le=100_000, description="Maximum number of items to use.")] = 256
    preprocess: Annotated[
        PreprocessSpec | None, Field(description="How images become items, for a folder of images.")
    ] = None


@rules(*file_rules("data.training.uri"))
class TrainingSpec(ApiModel):
    """Items that recipes train on; they never certify."""

    uri: Annotated[
        Uri,
        Field(
            description="An .npz, .parquet or .jsonl file with one column per input, named after it, and one row per item, "
            "or a folder of images with a sub-folder per class. Items that are also evaluation items are left out."
        ),
    ]
    secret_name: SecretName = None
    max_samples: Annotated[int | None, Field(ge=1, description="Maximum number of items to use.")] = None
    preprocess: Annotated[
        PreprocessSpec | None, Field(description="How images become items, for a folder of images.")
    ] = None
    label_key: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            description="Name of the array that holds the labels. Without labels, training only follows the original's answers.",
        ),
    ] = "labels"
    augment: Annotated[
        tuple[Augmentation, ...],
        Field(
            max_length=5,
            description="Random changes of images during training, different in each epoch. HorizontalFlip and VerticalFlip mirror half of the "
            "images, Crop cuts out 80 to 100 % of each side and scales it back, Shift moves by up to an eighth of each side, Noise adds Gaussian "
            "noise of 2 % of the standard deviation. Evaluation and calibration items stay as they are.",
            json_schema_extra={"x-set": True},
        ),
    ] = ()


class AgreementSpec(ApiModel):
    """When a candidate's answer counts as the same as the original's."""

    mode: Annotated[
        AgreementMode,
        Field(
            description="How two answers are compared. Auto uses Exact for integers, booleans and strings, TopOne for classifiers, and otherwise "
            "Elementwise within 1 % of the output's range, or of each channel's range if the channels have different scales."
        ),
    ] = AgreementMode.AUTO
    axis: Annotated[
        int, Field(ge=-16, le=16, description="Axis of the classes (TopOne) or of the vector (Cosine).")
    ] = -1
    min_cosine: Annotated[float, Field(ge=-1, le=1, description="Minimum similarity to agree (Cosine).")] = 0.99
    rtol: Annotated[
        float | None,
        Field(
            ge=0, description="Relative tolerance, the same for all channels of an output (Elementwise, Regression)."
        ),
    ] = None
    atol: Annotated[
        float | None,
        Field(
            ge=0, description="Absolute tolerance, the same for all channels of an output (Elementwise, Regression)."
        ),
    ] = None
    outputs: Annotated[
        tuple[Annotated[str, Field(max_length=253)], ...],
        Field(max_length=64, description="Outputs to compare. Empty means all.", json_schema_extra={"x-set": True}),
    ] = ()
    unsure: Annotated[
        UnsureItems,
        Field(
            description="Whether items on which the original itself is unsure of a decision (TopOne) count in the agreement. Skip leaves them out, "
            "as the analysis of a rollout does; status.candidates[].agreement.unsure says how many.",
            # Tasks and builds from before there was a choice stay as they were.
            exclude_if=lambda unsure: unsure == UnsureItems.COUNT,
        ),
    ] = UnsureItems.COUNT


@rules(*function_rules("data.evaluation.custom"))
class CustomMetricSpec(FunctionSpec):
    """A metric of one's own: a Python function that scores one item. It runs only inside Jobs, with NumPy and what their image has."""

    function: Annotated[
        FunctionName,
        Field(
            description="Name of the function. It takes the outputs for one item (NumPy arrays by name, without the batch axis) and the item's "
            "label, and returns a number: higher is better, and maxDrop is in its unit. Without labels it takes the original's outputs in place "
            "of the label, and must return 1 for equal outputs."
        ),
    ] = "score"


@rules(
    Rule(
        "(has(self.metric) && self.metric == 'Custom') == has(self.custom)",
        "data.evaluation.custom is required with metric: Custom, and only allowed with it",
    ),
    *file_rules("data.evaluation.uri"),
)
class EvaluationSpec(ApiModel):
    """Items that decide what may be published."""

    uri: Annotated[
        Uri,
        Field(
            description="An .npz, .parquet or .jsonl file with one column per input, named after it, the labels in labelKey, and one row per item, "
            "or a folder of images with a sub-folder per class."
        ),
    ]
    secret_name: SecretName = None
    max_samples: Annotated[int | None, Field(ge=1, description="Maximum number of items to use.")] = None
    preprocess: Annotated[
        PreprocessSpec | None, Field(description="How images become items, for a folder of images.")
    ] = None
    label_key: Annotated[
        str, Field(min_length=1, max_length=253, description="Name of the array that holds the labels.")
    ] = "labels"
    classes: Annotated[
        tuple[Annotated[str, Field(max_length=253)], ...],
        Field(
            max_length=10_000,
            description="Names of the classes, in the order of the model's scores, if the labels are names.",
        ),
    ] = ()
    label_offset: Annotated[
        int,
        Field(ge=-1_000_000, le=1_000_000, description="Label of the first class, for example 1 if labels start at 1."),
    ] = 0
    ignore_label: Annotated[
        int | None,
        Field(description="Label to ignore, such as padding or a border. -100 is always ignored."),
    ] = None
    several_labels: Annotated[
        SeveralLabels | None,
        Field(
            description="Meaning of labels with several classes. AnyOf: any of them is right. AllOf: the answer must be exactly these."
        ),
    ] = None
    output: Annotated[
        str | None,
        Field(
            max_length=253,
            description=f"Output that the metric evaluates. {metrics.outputs_described()}",
        ),
    ] = None
    average: Annotated[
        Average,
        Field(
            description="How F1 is averaged over the classes. Only used with metric F1.",
            json_schema_extra={"x-unfilled": True},
        ),
    ] = Average.MACRO
    top_k: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="Number of best classes among which the right one has to be. Only used with metric TopK.",
            json_schema_extra={"x-unfilled": True},
        ),
    ] = 5
    metric: Annotated[Metric, Field(description=metrics.described())] = Metric.ACCURACY
    custom: Annotated[CustomMetricSpec | None, Field(description="The function of metric Custom.")] = None
    agreement: Annotated[AgreementSpec, Field(description="When two answers count as the same.")] = AgreementSpec()

    @property
    def judging(self) -> EvaluationSpec:
        """The same without the name of the Secret, because the evaluation does not depend on it."""
        return self.model_copy(update={"secret_name": None}) if self.secret_name is not None else self


class GeneratedSpec(ApiModel):
    """Items made up where none are given: they show that two models answer alike, not how well they answer."""

    samples: Annotated[
        int | None,
        Field(ge=1, le=100_000, description="Number of items to generate. Defaults to 64, or fewer for a slow model."),
    ] = None
    allow_lossy: Annotated[
        bool, Field(description="Whether a lossy candidate may be published on the evidence of generated items.")
    ] = False


@rules(
    Rule(
        "!has(self.generated) || !has(self.evaluation)",
        "data.generated and data.evaluation are mutually exclusive: set only one of them",
    )
)
class DataSpec(ApiModel):
    """Data for calibration, evaluation and training."""

    calibration: Annotated[
        CalibrationSpec | None,
        Field(
            description="Items for calibration. If absent, a part of the evaluation items is used for calibration and not for evaluation."
        ),
    ] = None
    evaluation: Annotated[
        EvaluationSpec | None, Field(description="Items for evaluation. If absent, only exact candidates are chosen.")
    ] = None
    training: Annotated[
        TrainingSpec | None,
        Field(description="Items for recipes that train. If absent, these recipes do not apply."),
    ] = None
    generated: Annotated[
        GeneratedSpec | None, Field(description="Items to generate if there is no evaluation data.")
    ] = None

    def addresses(self) -> dict[str, Address]:
        """Field of the spec -> address."""
        judging = self.evaluation
        parts: dict[str, CalibrationSpec | EvaluationSpec | CustomMetricSpec | TrainingSpec | None] = {
            "spec.data.calibration.uri": self.calibration,
            "spec.data.evaluation.uri": judging,
            "spec.data.evaluation.custom.uri": judging.custom if judging is not None else None,
            "spec.data.training.uri": self.training,
        }
        return {
            field: Address(part.uri, part.secret_name)
            for field, part in parts.items()
            if part is not None and part.uri is not None
        }
