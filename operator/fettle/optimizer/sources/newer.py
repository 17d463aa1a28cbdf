"""Files that another version of their framework wrote, most often a newer one: recognized by their version, or by what the framework says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fettle.api.reasons import Reason
from fettle.api.text import quoted
from fettle.errors import FettleError, SourceError

# What frameworks say of a version that they do not read.
_SAID = re.compile(
    r"maximum supported version for reading"  # TorchScript
    r"|does not match our current (?:schema|archive) version"  # torch.export
    r"|schema version \d+ not equal to supported version"  # TensorFlow Lite, of the file
    r"|Didn't find op for builtin opcode '\w+' version '\d+'|builtin_code out of range: \d+"  # and of an operator in it
    r"|only supports protocols up to"  # skops
    r"|Unsupported model format: \S*Model_v"  # CatBoost
    r"|min consumer version \d+ above current version",  # TensorFlow's graphs
    re.IGNORECASE,
)


def said(error: object) -> str | None:
    """The sentence in which a framework says that it does not read the version of the file; None for an error about something else."""
    text = " ".join(str(error).split())
    found = _SAID.search(text)
    if found is None:
        return None
    before = max(text.rfind(end, 0, found.start()) for end in (". ", ": "))
    return quoted(text[before + 1 :].partition(". ")[0].rstrip("."), 200)


def unreadable(path: Path, framework: str, told: str, reason: Reason = Reason.UNSUPPORTED_MODEL) -> SourceError:
    """`told`: the versions, in words of ours or of the framework."""
    message = (
        f"{path.name} was saved by another version of {framework}, which the one installed here cannot read ({told}): "
        "save it again with the installed version, or export the model to ONNX where it was made"
    )
    return SourceError(message, reason=reason)


def _release(version: str) -> tuple[int, ...]:
    """The numbers up to the minor version: patches read each other's files."""
    found = re.match(r"(\d{1,6})(?:\.(\d{1,6}))?", version)
    return tuple(int(part or 0) for part in found.groups()) if found is not None else ()


@contextmanager
def reading(path: Path, framework: str, saved_by: str, installed: str) -> Iterator[None]:
    """While a file is read that says which version saved it. Raises SourceError (UnsupportedModel) where that is a later major version, whose files
    may mean something else, and where reading fails and it is a later one at all."""
    told = f"saved by {quoted(saved_by, 30)}, installed is {installed}"
    if _release(saved_by)[:1] > _release(installed)[:1]:
        raise unreadable(path, framework, told)
    try:
        yield
    except (FettleError, MemoryError):
        raise
    except Exception as error:  # frameworks raise what they like
        if _release(saved_by) <= _release(installed):
            raise
        raise unreadable(path, framework, f"{told}: {quoted(error, 150)}") from error
