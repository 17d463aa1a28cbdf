"""Which of the processes of a training on several nodes this is: what the pods of an Indexed Job are told. Without PyTorch."""

from __future__ import annotations

import os

from fettle.api.task import LEADER_VARIABLE

RANK_VARIABLE = "JOB_COMPLETION_INDEX"  # Kubernetes sets it


def together() -> bool:
    """Whether there are others."""
    return LEADER_VARIABLE in os.environ


def rank() -> int:
    """Its number; 0 for a process that is alone."""
    return int(os.environ.get(RANK_VARIABLE, "0")) if together() else 0


def leads() -> bool:
    """Whether it is the one that writes to the store, and whose answer counts."""
    return rank() == 0
