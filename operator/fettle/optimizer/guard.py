"""Around calls of a user's own code (`own_code.py`), which raises what it likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fettle.errors import FettleError


@contextmanager
def guarded(error_of: Callable[[BaseException], FettleError]) -> Iterator[None]:
    """Whatever the block raises, `SystemExit` included, becomes the error that `error_of` makes of it. Errors of Fettle's own pass."""
    try:
        yield
    except FettleError:
        raise
    except (Exception, SystemExit) as error:
        raise error_of(error) from error
