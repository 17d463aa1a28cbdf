"""Which format a source is in, told from its content; a file that would run code when it is loaded is not loaded for that."""

from __future__ import annotations

import codecs
from pathlib import Path

from fettle.api import formats
from fettle.api.reasons import Reason
from fettle.api.vocabulary import FormatName
from fettle.errors import SourceError
from fettle.optimizer import sources
from fettle.optimizer.sources import archive
from fettle.optimizer.sources.base import SourceFormat

# First bytes, at an offset, of what is often handed in instead; for the message only.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` and upload the file itself"),
    (0, b"<!DOCTYPE", "an HTML page"),
    (0, b"<html", "an HTML page"),
    (0, b"<?xml", "XML (OpenVINO IR or PMML)"),
    (0, b"{", "JSON"),
    (0, archive.ZIP, "a zip archive, but not a PyTorch one, and none of Keras or skops (numpy?)"),
)
HEAD_BYTES = 64
CORE_ML = (".mlmodel", ".mlpackage")


def recognize(path: Path, wanted: FormatName, trusted: bool = False) -> SourceFormat:
    """The format of the file at `path`.

    Raises SourceError: UnsupportedFormat for another format than is read or than was `wanted`, for weights without a model, and for what
    is no model at all; UnsafePickle and UnsafeCode for a file that runs code of its own, unless it is `trusted`; SourceCorrupted.
    """
    format = _format_of(path, wanted)
    if wanted not in (FormatName.AUTO, format.name):
        message = f"expected {wanted} (source.format), but {path.name} is {format.name}"
        raise SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)
    format.require(path, trusted)
    return format


def core_ml(name: str) -> SourceError:
    """Why a model in Core ML, which has no first bytes of its own, is no source."""
    message = f"{name} is a Core ML model, which only Apple's systems can run: provide the model that it was converted from; {sources.readable()}"
    return SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)


def _named_by_suffix(path: Path) -> FormatName | None:
    """The format whose files alone are called like that."""
    return next((entry.format for entry in formats.FORMATS if str(path).lower().endswith(entry.suffixes)), None)


def _format_of(path: Path, wanted: FormatName) -> SourceFormat:
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if path.name.lower().endswith(CORE_ML):
        raise core_ml(path.name)
    if not head:
        raise SourceError(f"{path.name} is damaged: it is empty", reason=Reason.SOURCE_CORRUPTED)
    other = next((name for offset, magic, name in _MAGIC if head[offset:].startswith(magic)), None)
    told = [format for format in sources.FORMATS if format.name != FormatName.ONNX]
    if wanted != FormatName.TORCH_MODULE:
        recognized = next((format for format in told if format.recognizes(path, head)), None)
        if recognized is not None:
            return recognized
    elif other is None or head.startswith(archive.ZIP):
        return sources.of(wanted)  # weights, which other formats have too: only the factory beside them tells
    if other is not None:
        raise SourceError(f"{path.name} is {other}; {sources.readable()}", reason=Reason.UNSUPPORTED_FORMAT)
    asked = next((format for format in told if format.name in (wanted, _named_by_suffix(path))), None)
    if asked is not None:
        message = f"{path.name} is damaged or not {asked.title}"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED)
    if (line := _first_line(head)) is not None:
        what = f"it is a text file, which starts with {line!r}"
        message = f"the format of {path.name} was not recognized: {what}; {sources.readable()}"
        raise SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)
    onnx = sources.of(FormatName.ONNX)  # the last, for it has no first bytes of its own
    if wanted == FormatName.AUTO and not onnx.recognizes(path, head):
        message = f"the format of {path.name} was not recognized; {sources.readable()}"
        raise SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)
    return onnx


def _first_line(head: bytes) -> str | None:
    """The first line of a file that is text as far as its first bytes tell; None for a binary file, as every model of ONNX is."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(head)  # the last letter may be cut
    if any(not letter.isprintable() and not letter.isspace() for letter in text) or "\ufffd" in text:
        return None
    return next(iter(text.split("\n")), "").strip() if text.strip() else None
