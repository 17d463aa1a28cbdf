"""Code of a user's own: a callable named as `module:callable`, or a function that a text defines. It runs in this process, which is a Job's or one
of `fettle optimize`, and raises what it likes."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

from fettle.api.text import quoted
from fettle.errors import FettleError

Function = Callable[..., Any]


def called(name: str) -> Any:
    """What `module:callable` returns when it is called without arguments. Raises whatever the code raises."""
    module, function = name.split(":")
    return getattr(import_module(module), function)()


@contextmanager
def guarded(error_of: Callable[[BaseException], FettleError]) -> Iterator[None]:
    """Whatever the block raises, `SystemExit` included, becomes the error that `error_of` makes of it. Errors of Fettle's own pass, and a lack of
    memory, which is not the code's fault alone."""
    try:
        yield
    except (FettleError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise error_of(error) from error


@lru_cache(maxsize=8)
def load(code: str, name: str, field: str, refusal: type[FettleError]) -> Function:
    """The function `name` that `code` defines, which stands in `field` of the spec. Raises `refusal`."""
    file = f"<{field}: {name}>"
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)  # for the lines of tracebacks
    module: dict[str, Any] = {"__name__": "fettle_own_code"}
    with guarded(lambda error: refusal(f"{field} cannot be run: {_failure(error, file)}")):
        exec(compile(code, file, "exec"), module)
    function: Function | None = module.get(name)
    if function is None or not callable(function):
        known = sorted(key for key, value in module.items() if callable(value) and not key.startswith("_"))
        found = f", found {quoted(', '.join(known))}" if known else ""
        raise refusal(f"{field} defines no function {name!r}{found}: set {field}.function")
    return function


def failure(error: BaseException, function: Function) -> str:
    """What `function` raised, and the line of its code in which it did."""
    return _failure(error, getattr(getattr(function, "__code__", None), "co_filename", ""))


def _failure(error: BaseException, file: str) -> str:
    told = quoted(f"{type(error).__name__}: {error}")
    if isinstance(error, SyntaxError):
        return f"{told}, in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{told}, in line {lines[-1]}" if lines else told
