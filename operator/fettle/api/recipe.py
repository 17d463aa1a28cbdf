"""Recipes: steps that transform a model, and the runtime's settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel, Rule, rules
from fettle.api.vocabulary import Name, Precision, QuantizeMode, QuantizePreset


class OptimizeGraphStep(ApiModel):
    """Fuse and fold the graph; outputs stay equal."""


class QuantizeStep(ApiModel):
    """Store weights, and in static mode compute activations, in int8."""

    mode: Annotated[QuantizeMode, Field(description="Static needs calibration items.")] = QuantizeMode.STATIC
    preset: Annotated[QuantizePreset, Field(description="Transformer treats attention and LayerNorm specially.")] = (
        QuantizePreset.DEFAULT
    )
    operators: Annotated[
        tuple[Annotated[str, Field(max_length=64)], ...],
        Field(
            max_length=32,
            description="Operator types to quantize; the runtime's defaults when empty.",
            json_schema_extra={"x-set": True},
        ),
    ] = ()


@rules(
    Rule(
        "[has(self.optimizeGraph), has(self.quantize)].filter(s, s).size() == 1",
        "a step has exactly one key: optimizeGraph or quantize",
    )
)
class RecipeStep(ApiModel):
    """One transformation of the model: exactly one key."""

    optimize_graph: Annotated[OptimizeGraphStep | None, Field(description="Fuse and fold; exact.")] = None
    quantize: Annotated[QuantizeStep | None, Field(description="int8; lossy, so it must be proved.")] = None

    @property
    def dynamic(self) -> bool:
        """Whether ranges are taken while the model runs, over all items of a run."""
        return self.quantize is not None and self.quantize.mode == QuantizeMode.DYNAMIC


class RecipeSpec(ApiModel):
    """A named chain of steps; with a runtime and settings it becomes a candidate."""

    name: Annotated[Name, Field(description="Name of the recipe; part of its candidates' names.")]
    steps: Annotated[tuple[RecipeStep, ...], Field(max_length=8, description="Applied in order.")] = ()
    precision: Annotated[Precision, Field(description="Runtime setting for what is not quantized.")] = Precision.FLOAT32


class RuntimeSettings(ApiModel):
    """Settings of a runtime, pinned in the manifest and read back after loading. Absent = the runtime's own default."""

    threads: Annotated[int, Field(description="Threads of one inference.")] = 1
    streams: Annotated[int, Field(description="Inferences at once.")] = 1
    precision: Annotated[Precision, Field(description="Precision of what is not quantized.")] = Precision.FLOAT32
    graph_optimization: Annotated[
        bool,
        Field(
            description="Whether the runtime may rewrite the graph (onnxruntime: level all; off: its default level)."
        ),
    ] = True
    batch_size: Annotated[int | None, Field(description="Static batch size; absent: dynamic.")] = None
    preferred_batch: Annotated[
        int | None,
        Field(
            description="Items per run at which most were answered in a second; the server splits larger requests so."
        ),
    ] = None
