"""PyTorch in: the source is opened, converted, and kept as the judge of its conversion. PyTorch is imported only here, and only for such sources."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.optimizedmodel import InputSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName, SourceFormat
from fettle.errors import RuntimeFailure, SourceError
from fettle.optimizer.onnx.inputs import Hint
from fettle.optimizer.prepare.check import Answers, Run, Subject, failure_of
from fettle.runtimes import base, cpu
from fettle.runtimes.base import numpy_dtype

FORMATS = frozenset({SourceFormat.TORCH_SCRIPT, SourceFormat.TORCH_EXPORT})


def installed(name: str, what: str) -> None:
    """Raise SourceError where PyTorch is not there to read `what`."""
    if find_spec("torch") is not None:
        return
    message = (
        f"{name} is {what}, and PyTorch is not installed here: pip install 'fettle-operator[torch]' for fettle optimize; in a cluster "
        "source.format: TorchScript or TorchExport chooses the image that has it"
    )
    raise SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)


def refused_pickle(path: Path) -> SourceError:
    """Why a pickle is no source, without loading it."""
    installed(path.name, "a file of torch.save")
    from fettle.optimizer.sources import torch_pickle

    return torch_pickle.refusal(path)


def convert(path: Path, specs: tuple[InputSpec, ...], folder: Path) -> Path:
    """The source at `path` as ONNX in `folder`. Raises SourceError, ConversionError where only that cannot be done."""
    from fettle.optimizer.sources import torch_onnx

    return torch_onnx.convert(_opened(path), specs, folder / "model.onnx")


def subject(path: Path, specs: tuple[InputSpec, ...]) -> Subject:
    """The source at `path` as PyTorch runs it, without a conversion. Raises SourceError."""
    from fettle.optimizer.sources import torch_boundary

    found = torch_boundary.boundary(_opened(path), specs)
    hints = {name: Hint(dimensions=names) for name, names in found.dimensions.items()}
    return Subject(found.signature, hints, runner(path, found.signature, {}))


def _opened(path: Path) -> Any:
    """The program in the file. Raises SourceError."""
    from fettle.runtimes import torchscript

    try:
        return torchscript.open_program(path)
    except RuntimeFailure as error:
        raise failure_of(error) from error


def runner(path: Path, signature: Signature, frozen: Mapping[str, Any]) -> Run:
    """A function that runs the source itself. `signature` is the source's own; `frozen` inputs are filled in. It raises RuntimeFailure."""
    settings = RuntimeSettings(threads=cpu.usable_cores(), graph_optimization=False)
    session = base.get(RuntimeName.TORCHSCRIPT).load(path, settings, signature)
    constants = {
        tensor.name: np.full(tensor.shape, frozen[tensor.name], numpy_dtype(tensor.dtype))
        for tensor in signature.inputs
        if tensor.name in frozen
    }

    def run(inputs: Answers) -> Answers:
        return session.infer({**inputs, **constants})

    return run
