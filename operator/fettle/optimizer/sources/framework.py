"""What formats have in common whose models another framework runs: converted to ONNX, and answering as that framework does.

No runtime of the catalog serves such a source as it came, so the portable form is the timed baseline, and the framework its judge.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import onnx

from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.api.text import installing, joined, quoted
from fettle.api.vocabulary import FormatName, ModelFormat
from fettle.errors import ConversionError, FettleError, RuntimeFailure, SourceError
from fettle.optimizer.data.columns import Encoder
from fettle.optimizer.onnx import inputs as onnx_inputs
from fettle.optimizer.onnx.inputs import Hint
from fettle.optimizer.onnx.steps import output_steps
from fettle.optimizer.sources import newer
from fettle.optimizer.sources.base import (
    Beside,
    Inputs,
    Original,
    Plain,
    RunModel,
    RunnableModel,
    frozen_arrays,
)
from fettle.optimizer.sources.onnx import saved
from fettle.runtimes.base import Array, Arrays, as_text, numpy_dtype, v2_dtype


class LoadedModel(Protocol):
    """A model as its framework has loaded it."""

    def to_onnx(self) -> onnx.ModelProto:
        """Converted. Raises SourceError, or whatever the converter raises."""
        ...

    def run(self, inputs: Arrays) -> Sequence[Array] | Arrays:
        """The framework's own answers, by the names of the ONNX outputs or in their order. May raise whatever the framework raises."""
        ...


class FrameworkFormat(ABC):
    """A format whose files `framework` loads. A subclass says how they are recognized and loaded."""

    name: ClassVar[FormatName]
    title: ClassVar[str]
    framework: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]  # what must be installed, by the names that are imported
    extra: ClassVar[str]  # of pyproject.toml: what brings them
    stored: ModelFormat = "ONNX"

    @abstractmethod
    def recognizes(self, path: Path, head: bytes) -> bool:
        """See `SourceFormat.recognizes`."""

    @abstractmethod
    def load(self, path: Path, inputs: Inputs) -> LoadedModel:
        """The model in the file. Raises SourceError, or whatever the framework raises for a file that it cannot read."""

    def require(self, path: Path, trusted: bool) -> None:
        """See `SourceFormat.require`."""
        require_modules(path, self)

    def companions(self, path: Path, beside: Beside) -> Sequence[str]:
        """See `SourceFormat.companions`."""
        return ()

    def hints(self, path: Path, inputs: Inputs) -> Mapping[str, Hint] | None:
        """A file tells little without being loaded."""
        return None

    def convert(self, path: Path, inputs: Inputs, folder: Path) -> Path:
        """See `SourceFormat.convert`."""
        loaded = self._loaded(path, inputs)
        try:
            model = loaded.to_onnx()
        except FettleError:
            raise
        except Exception as error:  # converters raise what they like
            message = f"{self.framework} loads the model, but it could not be converted to ONNX: {quoted(error, 300)}"
            raise ConversionError(message) from error
        return saved(model, folder, folder)

    def encoder(self, path: Path, inputs: Inputs) -> Encoder | None:
        """See `SourceFormat.encoder`."""
        return None

    def original(self, path: Path, plain: Plain, inputs: Inputs, folder: Path) -> Original:
        """See `SourceFormat.original`."""
        made = saved(plain.model, folder, path.parent)
        run = runner(self._loaded(path, inputs), self.framework, plain.whole, inputs.frozen)
        note = f"the portable form, verified against the outputs of {self.framework}, is the timed baseline"
        return Original(
            plain.model,
            made,
            plain.signature,
            onnx_inputs.hints(plain.model),
            run,
            untouched=False,
            converted=True,
            notes=(*plain.changes, note),
            foreign=True,
            steps=output_steps(plain.model),
            encoder=self.encoder(path, inputs),
        )

    def native(self, path: Path, inputs: Inputs, folder: Path) -> Path | None:
        """See `SourceFormat.native`."""
        return None

    def unconverted(self, path: Path, inputs: Inputs) -> RunnableModel | None:
        """No runtime serves it."""
        return None

    def _loaded(self, path: Path, inputs: Inputs) -> LoadedModel:
        try:
            return self.load(path, inputs)
        except (FettleError, MemoryError):
            raise
        except Exception as error:  # frameworks raise what they like for a damaged file
            raise damaged(path, self, error) from error


def require_modules(path: Path, format: FrameworkFormat) -> None:
    """Raises SourceError (UnsupportedFormat) where what loads and converts the format is not installed."""
    missing = [name for name in format.modules if find_spec(name) is None]
    if missing:
        raise not_installed(f"{path.name} is {format.title}", missing, format.extra, format.name)


def not_installed(what: str, missing: Sequence[str], extra: str, formats: str) -> SourceError:
    """A source, `what` it is, whose toolchain is not there: `extra` of pyproject.toml brings it, and so does the image of `formats`."""
    verb = "is" if len(missing) == 1 else "are"
    message = (
        f"{what}, and {joined(missing)} {verb} not installed: {installing(extra)} for fettle optimize; in a cluster source.format: {formats} "
        "selects the image that has it"
    )
    return SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)


def damaged(path: Path, format: FrameworkFormat, error: Exception) -> SourceError:
    """A file that the framework could not read."""
    if (told := newer.said(error)) is not None:
        return newer.unreadable(path, format.framework, told)
    if isinstance(error, ImportError | AttributeError):
        message = (
            f"{path.name} needs something that is not installed here beside {format.framework}, or another version of it: {quoted(error, 200)}; "
            "export the model to ONNX where it was made"
        )
        return SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    message = f"{path.name} is damaged or not {format.title}: {said(error, 250)}"
    return SourceError(message, reason=Reason.SOURCE_CORRUPTED)


def said(error: Exception, limit: int) -> str:
    """What a framework says of a fault, without the stack trace that XGBoost appends."""
    return quoted(str(error).partition("Stack trace:")[0], limit) or type(error).__name__


def runner(model: LoadedModel, framework: str, signature: Signature, frozen: Mapping[str, float]) -> RunModel:
    """A function that runs `model` in its framework. `signature` is the source's own; `frozen` inputs are filled in."""
    constants = frozen_arrays(signature, frozen)

    def run(inputs: Arrays) -> Arrays:
        try:
            answers = model.run({**inputs, **constants})
        except (FettleError, MemoryError):
            raise
        except Exception as error:  # frameworks raise what they like
            raise RuntimeFailure(f"{framework} could not run the model: {quoted(error, 300)}") from error
        named = answers if isinstance(answers, Mapping) else _in_order(answers, signature)
        missing = [tensor.name for tensor in signature.outputs if tensor.name not in named]
        if missing:
            message = f"the converted model has the outputs {missing}, which are not among those of {framework}: {sorted(named)}"
            raise RuntimeFailure(message, reason=Reason.OUTPUTS_INVALID)
        return {tensor.name: fitted(np.asarray(named[tensor.name]), tensor) for tensor in signature.outputs}

    return run


def _in_order(answers: Sequence[Array], signature: Signature) -> Arrays:
    return {tensor.name: answer for tensor, answer in zip(signature.outputs, answers, strict=False)}


def fitted(answer: Array, tensor: Tensor) -> Array:
    """A framework's answer in the data type of the converted model's output, and with its dimensions of size 1.

    What says something else stays as it is: then the two do not agree, and the conversion is refused.
    """
    if tensor.dtype == "BYTES":
        answer = np.array([as_text(value) for value in answer.reshape(-1)], dtype=object).reshape(answer.shape)
    elif v2_dtype(answer) != tensor.dtype and answer.dtype.kind in "fiub":
        answer = answer.astype(numpy_dtype(tensor.dtype))
    if answer.ndim + 1 == len(tensor.shape) and tensor.shape[-1] == 1:
        return answer[..., np.newaxis]
    if answer.ndim == len(tensor.shape) + 1 and answer.shape[-1] == 1:
        return answer[..., 0]
    return answer
