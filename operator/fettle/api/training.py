"""The steps of a recipe that train, and how they do."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel, Rule, rules
from fettle.api.code import FunctionName, FunctionSpec, function_rules
from fettle.api.step import StepParameters
from fettle.api.uris import Address
from fettle.api.vocabulary import (
    CALLABLE,
    Granularity,
    Importance,
    Optimizer,
    PruneMethod,
    PruneUnit,
    Schedule,
    StepKind,
    TrainingLoss,
)

DEFAULT_RATIO, DEFAULT_SPARSITY, DEFAULT_ENERGY = 0.5, 0.8, 0.95  # of steps that do not say how much


@rules(*function_rules("train.custom"))
class CustomLossSpec(FunctionSpec):
    """A loss of one's own: a Python function over a batch. It runs only inside Jobs, with PyTorch and what their image has."""

    function: Annotated[
        FunctionName,
        Field(
            description="Name of the function. It takes the outputs for a batch of items (PyTorch tensors by name) and their labels (a tensor with "
            "items along the first axis, or a list of texts), and returns a scalar tensor with a gradient: lower is better."
        ),
    ] = "loss"


@rules(
    Rule(
        "(has(self.loss) && self.loss == 'Custom') == has(self.custom)",
        "train.custom is required with loss: Custom, and only allowed with it",
    )
)
class TrainSpec(ApiModel):
    """Training parameters of every step of a recipe that trains."""

    epochs: Annotated[
        int | None,
        Field(
            ge=1,
            le=10_000,
            description="Maximum number of passes over the training items. Defaults to 20, or more if that is fewer than 500 optimizer steps.",
        ),
    ] = None
    batch_size: Annotated[int, Field(ge=1, le=65_536, description="Number of items per optimizer step.")] = 64
    loss: Annotated[
        TrainingLoss,
        Field(
            description="Loss on the labels of data.training. Auto follows from the metric and the labels: CrossEntropy for classes, "
            "BinaryCrossEntropy for yes-or-no decisions, MeanSquaredError for numbers, none for other metrics. MeanAbsoluteError is for numbers with "
            "outliers, CTC for texts from a score for each step and character, Custom for a function of your own.",
            # Keys of builds that were trained before there was a choice stay as they were.
            exclude_if=lambda loss: loss == TrainingLoss.AUTO,
        ),
    ] = TrainingLoss.AUTO
    custom: Annotated[CustomLossSpec | None, Field(description="The function of loss Custom.")] = None
    optimizer: Annotated[Optimizer, Field(description="Optimizer. SGD has a momentum of 0.9.")] = Optimizer.ADAM_W
    learning_rate: Annotated[
        float | None,
        Field(
            gt=0,
            le=100,
            description="Learning rate at the start. Defaults to 0.001 for AdamW and 0.02 for SGD, and to a tenth of that for mode Aware.",
        ),
    ] = None
    schedule: Annotated[
        Schedule, Field(description="Cosine decays the learning rate to 0 at the last epoch, Constant keeps it.")
    ] = Schedule.COSINE
    weight_decay: Annotated[
        float,
        Field(ge=0, le=1, description="Weight decay. Not applied to biases and normalization layers."),
    ] = 0.0001
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Random seed: order of items, dropout.")] = 0
    mixed_precision: Annotated[
        bool,
        Field(
            description="Compute layers in bfloat16 while training (autocast). Weights, losses and validation stay in float32. Needs a CPU with "
            "bfloat16 instructions."
        ),
    ] = False
    nodes: Annotated[
        int,
        Field(
            ge=1,
            le=16,
            description="Number of pods that train together, each on its part of every batch. On a cluster only. All of them need the same store, "
            "and nodes with the same class of CPU.",
            exclude_if=lambda nodes: nodes == 1,  # keys of builds that one pod trained stay as they were
        ),
    ] = 1
    deadline_seconds: Annotated[
        int,
        Field(
            ge=1, le=604_800, description="Time limit for the training, in seconds. The best epoch so far is then used."
        ),
    ] = 1800
    patience: Annotated[
        int | None,
        Field(ge=1, le=10_000, description="Early stopping: number of epochs without a gain on the validation set."),
    ] = None

    @property
    def address(self) -> Address | None:
        """Where the code of a loss of one's own is read from; None if there is none, or if it is in the spec."""
        uri = self.custom.uri if self.custom is not None else None
        return None if self.custom is None or uri is None else Address(uri, self.custom.secret_name)


@rules(
    Rule("!has(self.ratio) || !has(self.targetSpeedup)", "ratio and targetSpeedup are mutually exclusive"),
    Rule(
        "!has(self.sparsity) || (has(self.method) && self.method == 'Magnitude')",
        "sparsity is only for method Magnitude: set ratio for Structured, n and m for NM",
    ),
    Rule(
        "!has(self.unit) || self.unit == 'Channels' || !has(self.method) || self.method == 'Structured'",
        "unit is only for method Structured",
    ),
    Rule(
        "!has(self.unit) || self.unit != 'Blocks' || !has(self.importance) || self.importance != 'Taylor'",
        "importance Taylor is for unit Channels and Heads: blocks are ranked by what the answers lose without them",
    ),
)
class PruneStep(StepParameters):
    """Remove weights, and train the rest to restore accuracy."""

    method: Annotated[
        PruneMethod,
        Field(
            description="Structured removes whole channels, heads or blocks, so the graph gets smaller and faster. "
            "Magnitude sets the smallest weights to 0, "
            "which makes the file compressible but only few runtimes faster. NM keeps n of every m neighboring weights, which some GPUs run faster."
        ),
    ] = PruneMethod.STRUCTURED
    unit: Annotated[
        PruneUnit,
        Field(
            description="What is removed (Structured): Channels of each layer, Heads of each attention, or Blocks, which are residual: x + f(x) "
            "becomes x.",
            # Keys of builds from before there was a choice stay as they were.
            exclude_if=lambda unit: unit == PruneUnit.CHANNELS,
        ),
    ] = PruneUnit.CHANNELS
    ratio: Annotated[
        float | None,
        Field(
            gt=0,
            le=0.99,
            description="Share that is removed: of the channels of each layer, of the heads of each attention, or of all blocks (Structured). "
            f"Default: {DEFAULT_RATIO}.",
        ),
    ] = None
    target_speedup: Annotated[
        float | None,
        Field(
            gt=1,
            le=100,
            description="Use the smallest ratio with which the model is this many times as fast (Structured).",
        ),
    ] = None
    importance: Annotated[
        Importance,
        Field(
            description="How the importance of channels and heads is measured; the least important are removed (Structured)."
        ),
    ] = Importance.MAGNITUDE
    iterations: Annotated[
        int,
        Field(
            ge=1, le=20, description="Number of rounds in which a part is removed and the rest is trained (Structured)."
        ),
    ] = 1
    sparsity: Annotated[
        float | None,
        Field(
            gt=0,
            le=0.99,
            description=f"Share of the weights that is set to 0 (Magnitude). Default: {DEFAULT_SPARSITY}.",
        ),
    ] = None
    granularity: Annotated[
        Granularity,
        Field(description="Whether sparsity is the share of each layer, or of the whole model (Magnitude)."),
    ] = Granularity.LAYER
    n: Annotated[int, Field(ge=1, le=15, description="Number of weights to keep of every m (NM).")] = 2
    m: Annotated[int, Field(ge=2, le=16, description="Number of neighboring weights of which n are kept (NM).")] = 4

    @property
    def kind(self) -> StepKind:
        """One kind for each method."""
        return {
            PruneMethod.STRUCTURED: StepKind.PRUNE_STRUCTURED,
            PruneMethod.MAGNITUDE: StepKind.PRUNE_MAGNITUDE,
            PruneMethod.NM: StepKind.PRUNE_NM,
        }[self.method]

    @property
    def words(self) -> str:
        """The method and the amount."""
        if self.method == PruneMethod.NM:
            return f"prune {self.n}:{self.m}"
        if self.method == PruneMethod.MAGNITUDE:
            return f"prune Magnitude, {self.sparsity or DEFAULT_SPARSITY:g}"
        share = f"{self.ratio or DEFAULT_RATIO:g}"
        how_much = f"to {self.target_speedup:g}x" if self.target_speedup is not None else share
        what = f"Structured {self.unit}" if self.unit is not PruneUnit.CHANNELS else "Structured"
        return f"prune {what}, {how_much}"


@rules(
    Rule(
        "[has(self.energy), has(self.rank), has(self.targetSpeedup)].filter(s, s).size() <= 1",
        "energy, rank and targetSpeedup are mutually exclusive",
    )
)
class LowRankStep(StepParameters):
    """Factorize layers: the singular values of a dense layer that matter, the Tucker form of a convolution."""

    energy: Annotated[
        float | None,
        Field(
            gt=0,
            le=0.99,
            description=f"Share of the energy (squared singular values) of each layer to keep. Default: {DEFAULT_ENERGY}.",
        ),
    ] = None
    rank: Annotated[
        float | None, Field(gt=0, le=0.99, description="Rank of each layer, as a share of its full rank.")
    ] = None
    target_speedup: Annotated[
        float | None,
        Field(gt=1, le=100, description="Use the highest rank with which the model is this many times as fast."),
    ] = None

    @property
    def kind(self) -> StepKind:
        """There is one."""
        return StepKind.LOW_RANK

    @property
    def words(self) -> str:
        """How the rank is chosen."""
        if self.rank is not None:
            return f"low rank, {self.rank:g} of the full rank"
        if self.target_speedup is not None:
            return f"low rank, to {self.target_speedup:g}x"
        return f"low rank, {self.energy or DEFAULT_ENERGY:g} of the energy"


class DepthwiseSeparableSpec(ApiModel):
    """Which convolutions become depthwise-separable."""

    min_channels: Annotated[
        int,
        Field(
            ge=1, le=65_536, description="Minimum number of input and output channels of the convolutions to replace."
        ),
    ] = 16


class ReplaceStep(StepParameters):
    """Replace layers by cheaper ones, initialized to the best fit of the original's weights."""

    depthwise_separable: Annotated[
        DepthwiseSeparableSpec,
        Field(
            description="Replace convolutions by a depthwise and a pointwise convolution, initialized to the best fit of the original's weights."
        ),
    ] = DepthwiseSeparableSpec()

    @property
    def kind(self) -> StepKind:
        """There is one."""
        return StepKind.REPLACE

    @property
    def words(self) -> str:
        """What is replaced, and by what."""
        return "replace convolutions by depthwise-separable ones"


@rules(
    Rule(
        "!has(self.callable) || (!has(self.width) && !has(self.depth))",
        "callable and width or depth are mutually exclusive: callable makes the whole student, width and depth derive it from the original",
    )
)
class StudentSpec(ApiModel):
    """The student: the original made narrower or shallower, or a module of one's own."""

    width: Annotated[
        float | None, Field(gt=0, le=0.99, description="Share of the original's channels that each layer keeps.")
    ] = None
    depth: Annotated[
        float | None, Field(gt=0, le=0.99, description="Share of the original's residual blocks to keep.")
    ] = None
    callable: Annotated[
        str | None,
        Field(
            max_length=253,
            pattern=CALLABLE,
            description="module:callable that returns a torch.nn.Module with the original's inputs and outputs. It is called without arguments.",
        ),
    ] = None


ValueName = Annotated[str, Field(min_length=1, max_length=253)]


class FeaturePair(ApiModel):
    """What the teacher computes somewhere, and the student's counterpart."""

    teacher: Annotated[ValueName, Field(description="Name of a layer or another value in the original's graph.")]
    student: Annotated[
        ValueName | None, Field(description="Name of its counterpart in the student. Defaults to the same name.")
    ] = None


class FeaturesSpec(ApiModel):
    """Intermediate values that the student learns as well."""

    pairs: Annotated[
        tuple[FeaturePair, ...],
        Field(
            max_length=32,
            description="Pairs to compare. If empty, the last layer or sum of each shape in the original, with the one of the same name in the "
            "student.",
        ),
    ] = ()
    weight: Annotated[
        float, Field(gt=0, le=1000, description="Weight of the features beside the distance of the outputs.")
    ] = 1.0


@rules(
    Rule(
        "!has(self.features) || !has(self.beta) || self.beta > 0.0",
        "features are weighted with beta, which must be above 0",
    )
)
class DistillStep(StepParameters):
    """Train a student with the loss alpha * task(student, label) + beta * distance(teacher, student)."""

    alpha: Annotated[
        float,
        Field(ge=0, le=1000, description="Weight of the loss on labels. Without labels in data.training, it is 0."),
    ] = 1.0
    beta: Annotated[float, Field(ge=0, le=1000, description="Weight of the distance from the teacher's answers.")] = 1.0
    temperature: Annotated[
        float | None,
        Field(
            gt=0,
            le=100,
            description="Compare the scores of classes by the Kullback-Leibler divergence at this temperature. If absent, and for other outputs, "
            "the distance is the mean squared error, scaled by the variance of the teacher's outputs.",
        ),
    ] = None
    features: Annotated[
        FeaturesSpec | None,
        Field(
            description="Add the mean squared error of intermediate values to the distance. Where the student has another number of channels, a "
            "linear projection is trained with it, and dropped when it is exported."
        ),
    ] = None
    student: Annotated[
        StudentSpec | None,
        Field(description="The student. If absent, the model from the previous steps, or the original itself."),
    ] = None

    @property
    def kind(self) -> StepKind:
        """There is one."""
        return StepKind.DISTILL

    @property
    def words(self) -> str:
        """The student, if it is not the original, and whether it learns features."""
        student = self.student or StudentSpec()
        told = (
            f"width {student.width:g}" if student.width else "",
            f"depth {student.depth:g}" if student.depth else "",
            student.callable or "",
            "features" if self.features is not None else "",
        )
        return ", ".join(("distill", *(part for part in told if part)))
