"""Tensors at a model's boundary, and the one table of data types: ONNX <-> V2 <-> numpy <-> OpenVINO.

Data types are named as the Open Inference Protocol V2 names them (FP32, INT64, BYTES, …) everywhere in the API.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel
from fettle.errors import DataError


@dataclass(frozen=True)
class DataType:
    """One row of the table. `onnx` is onnx.TensorProto's enum value, `numpy` a dtype name (bfloat16: ml_dtypes)."""

    v2: str
    onnx: int
    numpy: str
    openvino: str
    bytes: int | None


DATA_TYPES: tuple[DataType, ...] = (
    DataType("FP32", 1, "float32", "f32", 4),
    DataType("UINT8", 2, "uint8", "u8", 1),
    DataType("INT8", 3, "int8", "i8", 1),
    DataType("UINT16", 4, "uint16", "u16", 2),
    DataType("INT16", 5, "int16", "i16", 2),
    DataType("INT32", 6, "int32", "i32", 4),
    DataType("INT64", 7, "int64", "i64", 8),
    DataType("BYTES", 8, "object", "string", None),
    DataType("BOOL", 9, "bool", "boolean", 1),
    DataType("FP16", 10, "float16", "f16", 2),
    DataType("FP64", 11, "float64", "f64", 8),
    DataType("UINT32", 12, "uint32", "u32", 4),
    DataType("UINT64", 13, "uint64", "u64", 8),
    DataType("BF16", 16, "bfloat16", "bf16", 2),
)
BY_V2 = {row.v2: row for row in DATA_TYPES}
BY_ONNX = {row.onnx: row for row in DATA_TYPES}
BY_NUMPY = {row.numpy: row for row in DATA_TYPES}
BY_OPENVINO = {row.openvino: row for row in DATA_TYPES}


class Tensor(ApiModel):
    """One input or output. A dimension is its size, or -1 where it varies."""

    name: Annotated[str, Field(max_length=253, description="Name of the tensor in the model.")]
    dtype: Annotated[
        str, Field(max_length=8, description="Data type of the Open Inference Protocol V2: FP32, INT64, BYTES, …")
    ]
    shape: Annotated[
        tuple[int, ...],
        Field(max_length=16, description="Size of each dimension, or -1 if it varies between requests."),
    ]
    batch_axis: Annotated[
        int | None,
        Field(description="Dimension along which independent items are stacked. Absent if it could not be verified."),
    ] = None

    @property
    def free_shape(self) -> list[int]:
        """The shape as clients see it: -1 where a size varies, that of the batch always."""
        return [-1 if axis == self.batch_axis else size for axis, size in enumerate(self.shape)]


class Signature(ApiModel):
    """A model's inputs and outputs, in the model's order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def batchable(self) -> bool:
        """Whether every tensor has a proved batch axis, so that items may share one run."""
        return all(tensor.batch_axis is not None for tensor in (*self.inputs, *self.outputs))

    def judged_output(self, asked: str | None) -> str:
        """The output that is judged: the one `asked` for in data.evaluation.output, else the first. Raises DataError if there is none such."""
        names = [tensor.name for tensor in self.outputs]
        if asked is not None and asked not in names:
            raise DataError(f"data.evaluation.output is {asked!r}; the model has {sorted(names)}")
        return asked or names[0]
