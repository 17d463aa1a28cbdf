"""PyTorch modules in eager mode: weights (a state dict), and code of the user's own that makes the module to which they belong.

The module is exported by torch.export and converted as a program of it is; it stays the judge of its conversion as it came, eagerly.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fettle.api.reasons import Reason
from fettle.api.text import joined
from fettle.api.vocabulary import FormatName
from fettle.errors import SourceError
from fettle.optimizer.sources import archive
from fettle.optimizer.sources.base import CODE, Inputs
from fettle.optimizer.sources.framework import FrameworkFormat, require_modules
from fettle.optimizer.sources.torch import kind_of
from fettle.runtimes.torch_archive import Contents

if TYPE_CHECKING:  # PyTorch is imported where a model is loaded
    from fettle.optimizer.sources.torch_eager import EagerModel

SAFETENSORS = ".safetensors"
_MOST_NAMED = 3


class TorchModule(FrameworkFormat):
    """Weights of a module, beside the folder with its code."""

    name = FormatName.TORCH_MODULE
    title = "PyTorch state dicts with source.factory"
    framework = "PyTorch"
    modules = ("onnxscript", "safetensors", "torch")
    extra = "torch"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """Never: the file alone does not tell. Where there is a factory, nothing else is asked (`recognition.py`)."""
        return False

    def require(self, path: Path, trusted: bool) -> None:
        """See `SourceFormat.require`. Weights run nothing in any case; it is the factory that has to be trusted."""
        require_modules(path, self)
        if not trusted:
            message = (
                "source.factory is Python code, which runs when the model is prepared, so it was not run: set source.trusted: true if you "
                "wrote it, or have read it"
            )
            raise SourceError(message, reason=Reason.UNSAFE_CODE)
        if path.suffix.lower() != SAFETENSORS:
            _require_weights(path)

    def load(self, path: Path, inputs: Inputs) -> EagerModel:
        """See `FrameworkFormat.load`."""
        from fettle.optimizer.sources import torch_eager, torch_factory, torch_state

        if inputs.factory is None:
            message = f"{path.name} contains only weights: set source.factory to what makes their module"
            raise SourceError(message, reason=Reason.INVALID_SPEC)
        module = torch_factory.module_of(inputs.factory, path.parent / CODE)
        state = torch_state.read(path, inputs.factory.key)
        return torch_eager.described(torch_state.filled(module, state, path.name), inputs.specs)

    def native(self, path: Path, inputs: Inputs, folder: Path) -> Path | None:
        """See `SourceFormat.native`."""
        return self.load(path, inputs).save(folder)


FORMATS = (TorchModule(),)


def _require_weights(path: Path) -> None:
    """Raises SourceError: UnsafePickle for a pickle that needs more than tensors, InvalidSpec for a whole model, SourceCorrupted."""
    with path.open("rb") as stream:
        kind = kind_of(path, stream.read(len(archive.ZIP)))
    if kind in (Contents.SCRIPT, Contents.EXPORT, Contents.COMPILED):
        message = f"{path.name} is {kind}, a whole model: remove source.factory"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    if kind is None:
        message = f"{path.name} is damaged or not a file of weights: expected what torch.save(model.state_dict(), …) writes, or {SAFETENSORS}"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED)
    from fettle.optimizer.sources import torch_pickle

    named = torch_pickle.needed(path)
    if named:
        message = (
            f"{path.name} is a pickle that needs {joined(sorted(named)[:_MOST_NAMED])}: unpickling it runs whatever code the file names, "
            "so it was not loaded, trusted or not; save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
        )
        raise SourceError(message, reason=Reason.UNSAFE_PICKLE)
