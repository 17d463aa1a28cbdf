"""The GPU of this machine, for targets that need one. Where a cluster is asked for its nodes, a local run looks at what it runs on."""

from __future__ import annotations

from fettle.api import architectures
from fettle.api.optimizedmodel import DeviceSpec, OptimizedModelSpec, TargetSpec
from fettle.api.vocabulary import DeviceKind
from fettle.errors import RuntimeFailure, UsageError


def on_this_machine(spec: OptimizedModelSpec) -> OptimizedModelSpec:
    """`spec` with the architecture of this machine's GPU at each target that needs one. Raises UsageError if there is no such GPU."""
    return spec.model_copy(update={"targets": tuple(map(_located, spec.targets))})


def _located(target: TargetSpec) -> TargetSpec:
    if not target.has_gpu:
        return target
    # Only here: it needs numpy. Nothing is asked that makes a context on the GPU: this process lives as long as those that measure.
    from fettle.runtimes import cuda

    try:
        gpu = cuda.connect()
    except RuntimeFailure as error:
        raise UsageError(
            f"target {target.name} needs an NVIDIA GPU, which this machine lacks: {error.message}"
        ) from error
    asked, here = target.device or DeviceSpec(kind=DeviceKind.NVIDIA), gpu.architecture()
    if asked.architecture not in (None, here):
        raise UsageError(
            f"target {target.name} needs a GPU of {asked.architecture}, and this machine's ({gpu.name()}) is {here}"
        )
    if architectures.older(here, architectures.OLDEST):
        raise UsageError(
            f"target {target.name} needs a GPU from {architectures.OLDEST} on, and this machine's ({gpu.name()}) is {here}"
        )
    return target.model_copy(update={"device": asked.model_copy(update={"architecture": here})})
