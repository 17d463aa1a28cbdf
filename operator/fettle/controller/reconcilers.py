"""Who works on which kind."""

from __future__ import annotations

from collections.abc import Mapping

from fettle.cluster.kinds import MODEL_DEPLOYMENT, OPTIMIZED_MODEL
from fettle.controller import modeldeployment
from fettle.controller.context import Reconciler
from fettle.controller.optimizedmodel import OptimizedModels


def reconcilers() -> Mapping[str, Reconciler]:
    """The reconciler of each kind, new: what one keeps in memory belongs to one process."""
    return {
        OPTIMIZED_MODEL.kind: OptimizedModels().reconcile,
        MODEL_DEPLOYMENT.kind: modeldeployment.reconcile,
    }
