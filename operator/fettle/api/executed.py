"""What a runtime says of a model that it runs. By itself, so that workers and servers need not load the whole status to say it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel, nothing


class Executed(ApiModel):
    """How many compute nodes (operators) of the graph ran in which number type, as the runtime reported it. A count of 0 is left out."""

    int8: Annotated[int, Field(description="Nodes that computed with 8-bit integers.", exclude_if=nothing)] = 0
    weight_only: Annotated[
        int, Field(description="Nodes with int8 weights that computed in floating point.", exclude_if=nothing)
    ] = 0
    f8: Annotated[int, Field(description="Nodes that computed in 8-bit floating point.", exclude_if=nothing)] = 0
    bf16: Annotated[int, Field(description="Nodes that computed in bfloat16.", exclude_if=nothing)] = 0
    f16: Annotated[int, Field(description="Nodes that computed in float16.", exclude_if=nothing)] = 0
    f32: Annotated[int, Field(description="Nodes that computed in float32.", exclude_if=nothing)] = 0
    total: Annotated[int, Field(description="Number of all compute nodes.", exclude_if=nothing)] = 0

    @property
    def rounds(self) -> bool:
        """Whether any node computes with 8 bits, or with weights that are stored so: runtimes round activations on the way then."""
        return self.int8 + self.weight_only + self.f8 > 0
