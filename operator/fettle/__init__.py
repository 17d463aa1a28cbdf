"""Fettle: a Kubernetes operator for optimized model deployment. As a library: `fettle.optimize`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fettle.library import Result, RunOptions, Target, optimize

__version__ = "0.1.0"
__all__ = ["Result", "RunOptions", "Target", "__version__", "optimize"]


def __getattr__(name: str) -> Any:
    """What a library's user asks for, imported only then: every process of Fettle imports this module."""
    if name in __all__:
        return getattr(importlib.import_module("fettle.library"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
