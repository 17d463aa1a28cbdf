"""Libraries that read files: whatever they raise becomes one error."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from fettle.api.text import error_text
from fettle.errors import DataError, FettleError


@contextmanager
def readable(what: str, kind: str) -> Iterator[None]:
    """A context in which a library reads a file: any exception of the library becomes a DataError that says that the file is damaged.

    Errors of the filesystem and MemoryError are not changed.
    """
    try:
        yield
    except (FettleError, MemoryError):
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: a place in the file that the damaged file itself names
            raise
        raise DataError(f"{what} is not a readable {kind}: {error}") from error
    except Exception as error:
        raise DataError(f"{what} is not a readable {kind}: {error_text(error)}") from error
