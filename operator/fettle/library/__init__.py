"""Fettle as a library: `fettle.optimize` in a notebook, or at the end of a training script."""

from __future__ import annotations

from fettle.library.run import Result, RunOptions, Target, optimize

__all__ = ["Result", "RunOptions", "Target", "optimize"]
