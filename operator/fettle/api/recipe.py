"""Recipes: steps that transform a model, and the runtime's settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel, exactly_one
from fettle.api.step import StepParameters
from fettle.api.training import DistillStep, LowRankStep, PruneStep, ReplaceStep, TrainSpec
from fettle.api.vocabulary import Name, Precision, QuantizeMode, QuantizePreset, StepKind

KINDS = {
    QuantizeMode.STATIC: StepKind.QUANTIZE_STATIC,
    QuantizeMode.DYNAMIC: StepKind.QUANTIZE_DYNAMIC,
    QuantizeMode.MIXED: StepKind.QUANTIZE_MIXED,
    QuantizeMode.AWARE: StepKind.QUANTIZE_AWARE,
    QuantizeMode.FLOAT16: StepKind.QUANTIZE_FLOAT16,
    QuantizeMode.BFLOAT16: StepKind.QUANTIZE_BFLOAT16,
    QuantizeMode.FLOAT8: StepKind.QUANTIZE_FLOAT8,
    QuantizeMode.WEIGHT_ONLY: StepKind.QUANTIZE_WEIGHT_ONLY,
    QuantizeMode.WEIGHT_ONLY_INT4: StepKind.QUANTIZE_WEIGHT_ONLY_INT4,
}


class OptimizeGraphStep(StepParameters):
    """The portable form as it is: its graph is folded and fused already, and each runtime optimizes it further when it loads it."""

    @property
    def kind(self) -> StepKind:
        """The only kind."""
        return StepKind.OPTIMIZE_GRAPH

    @property
    def words(self) -> str:
        """The step has no parameters."""
        return "optimize graph"


class DequantizeStep(StepParameters):
    """A source that came quantized, in float32 again, so that each runtime has its fast kernels, and a quantization that suits it can follow."""

    @property
    def kind(self) -> StepKind:
        """The only kind."""
        return StepKind.DEQUANTIZE

    @property
    def words(self) -> str:
        """The step has no parameters."""
        return "dequantize"


class QuantizeStep(StepParameters):
    """Store weights, and in static mode compute activations, in int8; or only store weights in float16."""

    mode: Annotated[
        QuantizeMode,
        Field(
            description="Quantization mode. Static and Mixed need calibration items. Mixed keeps those layers in floating point whose quantization "
            "changes more answers than constraints.accuracy allows. It takes longer to build. Aware trains the model to answer well in int8, and "
            "quantizes it as Static does. It also needs data.training. Float16 stores weights in float16 and computes in float32 (litert only). "
            "BFloat16 is for recipes with precision BFloat16: layers that change too many answers in it stay in float32 (openvino only). "
            "Float8 is Static in 8-bit floating point, E4M3, for engines on GPUs from sm89 on. "
            "WeightOnly stores the weights of MatMul and Gemm in 8 bits, WeightOnlyInt4 in 4. It is for models whose time goes into reading weights, "
            "and needs no calibration items."
        ),
    ] = QuantizeMode.STATIC
    preset: Annotated[
        QuantizePreset, Field(description="Preset. Use Transformer for models with attention and LayerNorm.")
    ] = QuantizePreset.DEFAULT
    operators: Annotated[
        tuple[Annotated[str, Field(max_length=64)], ...],
        Field(
            max_length=32,
            description="Operator types to quantize. Empty means the runtime's defaults.",
            json_schema_extra={"x-set": True},
        ),
    ] = ()

    @property
    def kind(self) -> StepKind:
        """One kind for each mode, because each has different requirements."""
        return KINDS[self.mode]

    @property
    def quantizes(self) -> bool:
        """Whether the step writes numbers of 8 bits or fewer. Aware only trains for it; the step that follows writes it."""
        return self.mode not in (QuantizeMode.AWARE, QuantizeMode.FLOAT16, QuantizeMode.BFLOAT16)

    @property
    def dynamic(self) -> bool:
        """Whether the mode is Dynamic."""
        return self.mode == QuantizeMode.DYNAMIC

    @property
    def words(self) -> str:
        """Mode, preset, and the operators if any are named."""
        return f"quantize {', '.join((self.mode.value, self.preset.value, *self.operators))}"


@exactly_one("a step")
class RecipeStep(ApiModel):
    """One transformation of the model: exactly one key."""

    optimize_graph: Annotated[
        OptimizeGraphStep | None,
        Field(
            description="Use the portable form as it is. Its graph is already folded and fused, and each runtime optimizes it further when it "
            "loads it, so this step has no effect beside other steps. Outputs stay equal. For litert and inductor, it converts the source."
        ),
    ] = None
    dequantize: Annotated[
        DequantizeStep | None,
        Field(
            description="Put a source that came quantized into float32 again; a quantize step may follow. Its answers change a little, because "
            "nothing is rounded to 8 bits any more, so the accuracy drop must be measured."
        ),
    ] = None
    quantize: Annotated[
        QuantizeStep | None,
        Field(
            description="Quantize to int8, or to the number type that mode names. This is lossy, so the accuracy drop must be measured."
        ),
    ] = None
    prune: Annotated[
        PruneStep | None,
        Field(description="Remove weights, and train the rest to restore accuracy. Needs data.training."),
    ] = None
    low_rank: Annotated[
        LowRankStep | None,
        Field(
            description="Factorize dense and convolutional layers into smaller ones. They are trained if data.training is set."
        ),
    ] = None
    replace: Annotated[
        ReplaceStep | None, Field(description="Replace layers by cheaper ones, and train them. Needs data.training.")
    ] = None
    distill: Annotated[
        DistillStep | None,
        Field(description="Train a student, with the original as its teacher. Needs data.training."),
    ] = None

    @property
    def parameters(self) -> StepParameters | None:
        """The parameters of the step whose key is set; None if this version does not know the key."""
        steps: Iterable[StepParameters | None] = vars(self).values()
        return next((step for step in steps if step is not None), None)

    @property
    def quantizes(self) -> bool:
        """Whether it writes int8."""
        return self.parameters is not None and self.parameters.quantizes

    @property
    def dynamic(self) -> bool:
        """Whether ranges are determined at run time, over all items of a run."""
        return self.parameters is not None and self.parameters.dynamic


def completed(steps: Sequence[RecipeStep]) -> tuple[RecipeStep, ...]:
    """`steps`, with static quantization added after quantization-aware training, unless a later step quantizes."""
    whole: list[RecipeStep] = []
    for place, step in enumerate(steps):
        whole.append(step)
        if (
            step.quantize is not None
            and step.quantize.mode is QuantizeMode.AWARE
            and not _quantized(steps[place + 1 :])
        ):
            static = step.quantize.model_copy(update={"mode": QuantizeMode.STATIC})
            whole.append(RecipeStep(quantize=static))
    return tuple(whole)


def _quantized(steps: Sequence[RecipeStep]) -> bool:
    return any(step.quantize is not None for step in steps)


class RecipeSpec(ApiModel):
    """A named chain of steps; with a runtime and settings it becomes a candidate."""

    name: Annotated[Name, Field(description="Name of the recipe. It becomes part of the candidates' names.")]
    steps: Annotated[tuple[RecipeStep, ...], Field(max_length=8, description="Steps, applied in this order.")] = ()
    precision: Annotated[
        Precision, Field(description="Number type of everything that is not quantized (a runtime setting).")
    ] = Precision.FLOAT32
    train: Annotated[TrainSpec, Field(description="Training parameters of the steps that train.")] = TrainSpec()


class RuntimeSettings(ApiModel):
    """Settings of a runtime, pinned in the manifest and read back after loading. Absent = the runtime's own default."""

    threads: Annotated[int, Field(description="Number of threads for one inference.")] = 1
    streams: Annotated[int, Field(description="Number of concurrent inferences.")] = 1
    precision: Annotated[
        Precision,
        Field(
            description="Requested number type of everything that is not quantized: in an int8 candidate, Float32 is that of the layers that stay "
            "in floating point. `executed` counts which types were really used."
        ),
    ] = Precision.FLOAT32
    graph_optimization: Annotated[
        bool,
        Field(
            description="Whether the runtime may rewrite the graph (onnxruntime: level all, otherwise its default level)."
        ),
    ] = True
    batch_size: Annotated[int | None, Field(description="Fixed batch size. Absent means dynamic.")] = None
    preferred_batch: Annotated[
        int | None,
        Field(
            description="Batch size with the highest throughput. The server splits larger requests into batches of this size."
        ),
    ] = None
