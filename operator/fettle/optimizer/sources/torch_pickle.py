"""Why a file that `torch.save` wrote is refused: read by PyTorch's restricted unpickler, which runs nothing that it does not know."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from fettle.api.reasons import Reason
from fettle.api.text import quoted
from fettle.errors import SourceError
from fettle.optimizer.sources import pickles

EXPORT_IT = (
    "save the model with torch.export.save(torch.export.export(model, inputs), 'model.pt2') or "
    "torch.jit.script(model).save('model.pt')"
)


def needed(path: Path) -> list[str]:
    """What else than weights is in the file: the classes and functions that unpickling it would call. Raises SourceError (SourceCorrupted)."""
    try:
        return list(
            get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else _named_by_the_unpickler(path)
        )
    except Exception as error:  # the library raises what it likes for a damaged file
        raise SourceError(
            f"{path.name} is a damaged PyTorch file: {cause(error)}", reason=Reason.SOURCE_CORRUPTED
        ) from error


def cause(error: Exception) -> str:
    """What PyTorch says of a damaged file, without its advice to read it in another way, which would run what is in it."""
    said = quoted(error, 5000).rpartition("WeightsUnpickler error: ")[2]
    for advice in (" This is an internal miniz error", " Please file an issue", " Check the documentation"):
        said = said.partition(advice)[0]
    return quoted(said) or type(error).__name__


def refusal(path: Path) -> SourceError:
    """UnsafePickle, naming what else than weights is in the file; UnsupportedFormat for weights alone; SourceCorrupted."""
    try:
        named = needed(path)
    except SourceError as error:
        return error
    if named:
        message = (
            f"{path.name} is a pickle that needs {', '.join(sorted(named)[:3])}: unpickling it runs whatever code the file "
            f"names, so it was not loaded; {EXPORT_IT}"
        )
        return SourceError(message, reason=Reason.UNSAFE_PICKLE)
    message = (
        f"{path.name} contains only weights (a state dict), without the model that they belong to: set source.factory to the code that "
        f"makes it, or {EXPORT_IT}"
    )
    return SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)


def _named_by_the_unpickler(path: Path) -> list[str]:
    """What the unpickler stops at: an old file, which is a bare pickle, cannot be listed beforehand."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it may not know every instruction: then it stops
            torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        named = [match[1]] if match is not None else pickles.imported(path)
        if not named:
            raise
        return named
    return []
