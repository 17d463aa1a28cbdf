"""Code of a user's own, named as `module:callable`: called in this process, which is a Job's or one of `fettle optimize`."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def called(name: str) -> Any:
    """What `module:callable` returns when it is called without arguments. Raises whatever the code raises."""
    module, function = name.split(":")
    return getattr(import_module(module), function)()
