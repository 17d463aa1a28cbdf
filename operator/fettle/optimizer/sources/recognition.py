"""Which format a source is in, told from its content; a file that would run code when it is loaded is not loaded for that."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fettle.api.reasons import Reason
from fettle.api.vocabulary import SourceFormat
from fettle.errors import SourceError
from fettle.optimizer.onnx import model
from fettle.optimizer.sources import torch
from fettle.runtimes.torch_archive import Contents, contents

READ = "this version reads ONNX, TorchScript and programs of torch.export"
_ZIP = b"PK\x03\x04"
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
# First bytes, at an offset, of what is often handed in instead; for the message only.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` and bring in the file itself"),
    (0, b"\x89HDF\r\n", "HDF5 (Keras)"),
    (4, b"TFL3", "TensorFlow Lite"),
    (0, b"<!DOCTYPE", "an HTML page"),
    (0, b"<html", "an HTML page"),
    (0, b"<?xml", "XML (OpenVINO IR or PMML)"),
    (0, b"{", "JSON"),
)


def recognise(path: Path, wanted: SourceFormat) -> SourceFormat:
    """The format of the file at `path`.

    Raises SourceError: UnsupportedFormat for another format than is read or than was `wanted`, for weights without a model, and for what
    is no model at all; UnsafePickle; SourceCorrupted.
    """
    found = _found(path, wanted)
    if wanted not in (SourceFormat.AUTO, found):
        message = f"source.format asks for {wanted}, but {path.name} is {found}"
        raise SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)
    if found in torch.FORMATS:
        torch.installed(path.name, found)
    return found


def _found(path: Path, wanted: SourceFormat) -> SourceFormat:
    with path.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(_ZIP):
        return _in_archive(path)
    if head.startswith(_PICKLES):
        raise torch.refused_pickle(path)
    other = next((name for offset, magic, name in _MAGIC if head[offset:].startswith(magic)), None)
    if other is not None:
        raise SourceError(f"{path.name} is {other}; {READ}", reason=Reason.UNSUPPORTED_FORMAT)
    if wanted in torch.FORMATS:
        message = f"{path.name} is damaged or no {wanted}: it is no zip archive"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED)
    if wanted == SourceFormat.AUTO and path.suffix != ".onnx":
        try:
            model.read(path)
        except SourceError as error:
            message = f"{path.name} is in no format that this version knows; {READ}"
            raise SourceError(message, reason=Reason.UNSUPPORTED_FORMAT) from error
    return SourceFormat.ONNX


def _in_archive(path: Path) -> SourceFormat:
    try:
        found = contents(path)
    except zipfile.BadZipFile as error:
        message = f"{path.name} is a damaged zip archive (PyTorch's files are such): {error}"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED) from error
    if found is None:
        message = f"{path.name} is a zip archive, but none of PyTorch's (Keras 3 or numpy?); {READ}"
        raise SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)
    if found == Contents.PICKLE:
        raise torch.refused_pickle(path)
    return SourceFormat(found.value)
