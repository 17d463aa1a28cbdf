"""What a runtime says of a model that it runs. By itself, so that workers and servers need not load the whole status to say it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel


class Executed(ApiModel):
    """Compute nodes by the precision in which they really ran."""

    int8: Annotated[int, Field(description="Nodes with integer arithmetic.")] = 0
    weight_only: Annotated[int, Field(description="Nodes with int8 weights and floating-point arithmetic.")] = 0
    f8: Annotated[int, Field(description="Nodes in 8-bit floating point.")] = 0
    bf16: Annotated[int, Field(description="Nodes in bfloat16.")] = 0
    f16: Annotated[int, Field(description="Nodes in float16.")] = 0
    f32: Annotated[int, Field(description="Nodes in float32.")] = 0
    total: Annotated[int, Field(description="Number of compute nodes.")] = 0

    @property
    def rounds(self) -> bool:
        """Whether any node computes with 8 bits, or with weights that are stored so: runtimes round activations on the way then."""
        return self.int8 + self.weight_only + self.f8 > 0
