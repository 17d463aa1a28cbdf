"""Which of the artifacts that an OptimizedModel published is meant."""

from __future__ import annotations

from collections.abc import Sequence

from fettle.api.optimizedmodel_status import ArtifactStatus
from fettle.errors import UsageError


def for_target(model: str, artifacts: Sequence[ArtifactStatus], target: str | None) -> ArtifactStatus:
    """The artifact of `target`, or the only one; `model` names the OptimizedModel in errors. Raises UsageError if there is not exactly one."""
    by_target = {artifact.target: artifact for artifact in artifacts}
    if target is None and len(by_target) > 1:
        raise UsageError(f"{model} has artifacts for the targets {', '.join(by_target)}: choose one with --target")
    chosen = target or next(iter(by_target))
    if chosen not in by_target:
        raise UsageError(f"{model} has no artifact for the target {chosen!r} (available: {', '.join(by_target)})")
    return by_target[chosen]
