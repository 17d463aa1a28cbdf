"""PyTorch: TorchScript and programs of torch.export. The source is converted to ONNX, and PyTorch stays the judge of its conversion."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.vocabulary import FormatName, ModelFormat, RuntimeName
from fettle.errors import RuntimeFailure, SourceError
from fettle.optimizer.data.columns import Encoder
from fettle.optimizer.onnx import inputs as onnx_inputs
from fettle.optimizer.onnx.inputs import Hint
from fettle.optimizer.sources import archive, newer, pickles
from fettle.optimizer.sources.base import (
    Beside,
    Inputs,
    Original,
    Plain,
    RunModel,
    RunnableModel,
    failure_of,
    frozen_arrays,
)
from fettle.optimizer.sources.framework import not_installed
from fettle.optimizer.sources.onnx import saved
from fettle.runtimes import base, cpu
from fettle.runtimes.base import Arrays
from fettle.runtimes.torch_archive import Contents, contents


@dataclass(frozen=True)
class Torch:
    """One of the two kinds of archive that PyTorch writes for use without the code of the model."""

    name: FormatName
    stored: ModelFormat
    title: str
    contents: Contents

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By the archive's table of contents. A pickle and machine code are refused by name: loading one runs whatever is in it."""
        kind = kind_of(path, head)
        if kind == Contents.PICKLE:
            raise _refused_pickle(path)
        if kind == Contents.COMPILED:
            raise _refused_machine_code(path)
        return kind == self.contents

    def require(self, path: Path, trusted: bool) -> None:
        """PyTorch is in images of its own."""
        _require_torch(path.name, self.name)

    def companions(self, path: Path, beside: Beside) -> Sequence[str]:
        """An archive is whole."""
        return ()

    def hints(self, path: Path, inputs: Inputs) -> None:
        """An archive tells little without being opened."""

    def convert(self, path: Path, inputs: Inputs, folder: Path) -> Path:
        """With PyTorch's exporters."""
        from fettle.optimizer.sources import torch_onnx

        return torch_onnx.convert(_opened(path), inputs.specs, folder / "model.onnx")

    def original(self, path: Path, plain: Plain, inputs: Inputs, folder: Path) -> Original:
        """The archive in PyTorch."""
        made = saved(plain.model, folder, path.parent)
        run = _runner(path, plain.whole, inputs.frozen)
        hints = onnx_inputs.hints(plain.model)
        return Original(plain.model, made, plain.signature, hints, run, not plain.changes, True, plain.changes)

    def encoder(self, path: Path, inputs: Inputs) -> Encoder | None:
        """A file without a tokenizer."""
        return None

    def native(self, path: Path, inputs: Inputs, folder: Path) -> Path | None:
        """A program of torch.export, as it is; a script has no graph that PyTorch's compiler takes."""
        if self.contents != Contents.EXPORT:
            return None
        folder.mkdir()
        return Path(shutil.copy(path, folder / "model.pt2"))

    def unconverted(self, path: Path, inputs: Inputs) -> RunnableModel:
        """The runtime `torchscript` runs both kinds."""
        from fettle.optimizer.sources import torch_boundary

        boundary = torch_boundary.boundary(_opened(path), inputs.specs)
        hints: Mapping[str, Hint] = {name: Hint(dimensions=names) for name, names in boundary.dimensions.items()}
        return RunnableModel(boundary.signature, hints, _runner(path, boundary.signature, {}))


FORMATS = (
    Torch(FormatName.TORCH_SCRIPT, "TorchScript", "TorchScript", Contents.SCRIPT),
    Torch(FormatName.TORCH_EXPORT, "TorchExport", "programs of torch.export", Contents.EXPORT),
)


def kind_of(path: Path, head: bytes) -> Contents | None:
    """What PyTorch wrote to the file, which begins with `head`; None if it is none of PyTorch's. Raises SourceError (SourceCorrupted)."""
    if head.startswith(pickles.HEADS):
        return Contents.PICKLE
    if not head.startswith(archive.ZIP):
        return None
    try:
        return contents(path)
    except zipfile.BadZipFile as error:
        message = f"{path.name} is a damaged zip archive (PyTorch files are zip archives): {error}"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED) from error


def _require_torch(name: str, what: str) -> None:
    if find_spec("torch") is None:
        raise not_installed(f"{name} is {what}", ("PyTorch",), "torch", "TorchScript or TorchExport")


def _refused_pickle(path: Path) -> SourceError:
    """Why a pickle is no source, without loading it."""
    _require_torch(path.name, "a file of torch.save")
    from fettle.optimizer.sources import torch_pickle

    return torch_pickle.refusal(path)


def _refused_machine_code(path: Path) -> SourceError:
    """Why a package of AOTInductor is no source, trusted or not: there is no graph in it, and it fits one class of CPU."""
    message = (
        f"{path.name} is a package of AOTInductor: machine code for one class of CPU, and no graph that could be optimized; loading it would run it, "
        "so it was not loaded; provide the program that it was compiled from (torch.export.save), and add inductor to the target's runtimes"
    )
    return SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)


def _opened(path: Path) -> Any:
    """The program in the file. Raises SourceError."""
    from fettle.runtimes import torchscript

    try:
        return torchscript.open_program(path)
    except RuntimeFailure as error:
        if (told := newer.said(error)) is not None:
            raise newer.unreadable(path, "PyTorch", told) from error
        raise failure_of(error) from error


def _runner(path: Path, signature: Signature, frozen: Mapping[str, float]) -> RunModel:
    """A function that runs the source itself. `signature` is the source's own; `frozen` inputs are filled in."""
    settings = RuntimeSettings(threads=cpu.usable_cores(), graph_optimization=False)
    session = base.get(RuntimeName.TORCHSCRIPT).load(path, settings, signature)
    constants = frozen_arrays(signature, frozen)

    def run(inputs: Arrays) -> Arrays:
        return session.infer({**inputs, **constants})

    return run
