"""What a source format is to the optimizer: a module under `sources/` with an instance of `SourceFormat` for each format it reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.api.source import FactorySpec, InputSpec
from fettle.api.vocabulary import FormatName, ModelFormat
from fettle.errors import FettleError, SourceError
from fettle.optimizer.data.columns import Encoder
from fettle.optimizer.onnx.inputs import Hint
from fettle.optimizer.onnx.model import READABLE_OPSET
from fettle.runtimes.base import Arrays, numpy_dtype

RunModel = Callable[[Arrays], Arrays]
Beside = Callable[[], Sequence[str]]  # lists what lies in the folder of a source and below it, relative to that folder
CODE = "source.factory"  # folder beside the weights of a module, with the code that makes it
ADVICE = {Reason.UNSUPPORTED_OPSET: f"; export it again with an opset of at most {READABLE_OPSET}"}


@dataclass(frozen=True)
class Inputs:
    """What a user says of a model: `source.inputs`, and through `columns` the names of what the items hold (it reads files).

    `signature`: which of several functions is the model (`source.signature`). `trusted`: the source may run code of its own. `factory`: what
    makes the module of weights. `outputs`: which tensors of a graph are (`source.outputs`).
    """

    specs: tuple[InputSpec, ...]
    columns: Callable[[], Collection[str]]
    signature: str | None = None
    trusted: bool = False
    factory: FactorySpec | None = None
    outputs: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, InputSpec]:
        """The specs by the name of their input."""
        return {spec.name: spec for spec in self.specs}

    @cached_property
    def frozen(self) -> Mapping[str, float]:
        """Values of the inputs that are frozen to one."""
        return {spec.name: spec.value for spec in self.specs if spec.value is not None}


@dataclass(frozen=True)
class RunnableModel:
    """A model that can be run: its boundary, what is known of the values that its inputs take, and the function that runs it.

    `run` takes and returns arrays by name, in the shapes and data types of `signature`. It raises RuntimeFailure. `steps`: of outputs that
    are quantized, the step between two neighbouring values. `encoder`: makes the inputs of what people have, where the source brings one.
    """

    signature: Signature
    hints: Mapping[str, Hint]
    run: RunModel
    steps: Mapping[str, float] = field(default_factory=dict)
    encoder: Encoder | None = None


@dataclass(frozen=True)
class Plain:
    """The source's graph with a boundary of plain tensors.

    `whole`: the signature with the inputs that were frozen. `changes`: what was done to the boundary, `remarks`: what was left, for a person.
    """

    model: onnx.ModelProto
    whole: Signature
    signature: Signature
    changes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Original:
    """The source in ONNX, and `run`, which answers as the source does.

    `path`: the file of `model`. `untouched`: the source itself can be timed and served. `converted`: `model` is not what `run` runs, so the
    two must be compared. `foreign`: `run` is a framework's that no runtime is, so that nothing later is held against it. `steps` and
    `encoder`: see `RunnableModel`.
    """

    model: onnx.ModelProto
    path: Path
    signature: Signature
    hints: Mapping[str, Hint]
    run: RunModel
    untouched: bool
    converted: bool
    notes: tuple[str, ...] = ()
    foreign: bool = False
    steps: Mapping[str, float] = field(default_factory=dict)
    encoder: Encoder | None = None

    @property
    def subject(self) -> RunnableModel:
        """The source as it is run."""
        return RunnableModel(self.signature, self.hints, self.run, self.steps, self.encoder)


class SourceFormat(Protocol):
    """One source format. Stateless; a toolchain is imported inside the methods that need it, never with the module."""

    @property
    def name(self) -> FormatName:
        """Its name in the API."""
        ...

    @property
    def stored(self) -> ModelFormat:
        """What the store calls the untouched source."""
        ...

    @property
    def title(self) -> str:
        """For a person, after "this version reads"."""
        ...

    def recognizes(self, path: Path, head: bytes) -> bool:
        """Whether the content of the file at `path`, which begins with `head`, is of this format. Nothing in it is executed.

        Raises SourceError for a file of this format's tools that is no source: UnsafePickle, UnsupportedFormat, SourceCorrupted.
        """
        ...

    def require(self, path: Path, trusted: bool) -> None:
        """Raise SourceError: UnsupportedFormat where the toolchain is not installed here, saying how to get it; SourceCorrupted;
        UnsafePickle or UnsafeCode for a file that runs code of its own, unless it is `trusted`."""
        ...

    def companions(self, path: Path, beside: Beside) -> Sequence[str]:
        """Other files of the model, relative to the folder of `path`, where `beside` lists what is there. Raises SourceError."""
        ...

    def hints(self, path: Path, inputs: Inputs) -> Mapping[str, Hint] | None:
        """What the file alone tells of each input, without a conversion; None where it tells nothing. Raises SourceError."""
        ...

    def convert(self, path: Path, inputs: Inputs, folder: Path) -> Path:
        """The source as an ONNX file: in `folder`, or `path` itself where it is one. Raises SourceError; ConversionError where only this fails."""
        ...

    def original(self, path: Path, plain: Plain, inputs: Inputs, folder: Path) -> Original:
        """The source, ready to run, beside `plain`, its graph. Raises SourceError."""
        ...

    def encoder(self, path: Path, inputs: Inputs) -> Encoder | None:
        """What makes the inputs of the model at `path` of texts, where the source brings it. Raises SourceError."""
        ...

    def native(self, path: Path, inputs: Inputs, folder: Path) -> Path | None:
        """The source in `folder`, as its framework saves it for a converter or a compiler of its own: a SavedModel with one signature, which has the
        names of the portable form, or a program of torch.export (`.pt2`). None where there is none. May raise whatever the framework raises."""
        ...

    def unconverted(self, path: Path, inputs: Inputs) -> RunnableModel | None:
        """The source as its own runtime runs and serves it, without an ONNX form; None where no runtime does. Raises SourceError."""
        ...


def frozen_arrays(signature: Signature, frozen: Mapping[str, float]) -> Arrays:
    """The inputs of `signature` that are frozen to a value, as arrays."""
    return {
        tensor.name: np.full(tensor.shape, frozen[tensor.name], numpy_dtype(tensor.dtype))
        for tensor in signature.inputs
        if tensor.name in frozen
    }


def failure_of(error: Exception) -> SourceError:
    """A source that its own runtime cannot load or run, as a fault of the source."""
    if isinstance(error, FettleError) and error.reason in (
        Reason.UNSUPPORTED_OPERATOR,
        Reason.UNSUPPORTED_OPSET,
        Reason.UNSUPPORTED_MODEL,
        Reason.UNSAFE_CODE,
    ):
        return SourceError(f"{error.message}{ADVICE.get(error.reason, '')}", reason=error.reason)
    return SourceError(str(error), reason=Reason.SOURCE_CORRUPTED)
