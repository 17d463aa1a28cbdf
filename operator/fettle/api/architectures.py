"""Architectures of NVIDIA's GPUs, by their compute capability (`sm89` is 8.9), and the number formats that they have."""

from __future__ import annotations

from fettle.api.vocabulary import Precision, StepKind

OLDEST = "sm75"  # for which CUDA 13, and all that is built with it, has kernels
_SINCE: dict[Precision | StepKind, str] = {
    Precision.TF32: "sm80",
    Precision.BFLOAT16: "sm80",
    StepKind.QUANTIZE_FLOAT8: "sm89",
}


def older(architecture: str, than: str) -> bool:
    """Whether an architecture came before another one."""
    return int(architecture[2:]) < int(than[2:])


def since(wanted: Precision | StepKind) -> str:
    """The first architecture that has the number format of a precision or a step."""
    return _SINCE.get(wanted, OLDEST)


def offers(architecture: str, wanted: Precision | StepKind) -> bool:
    """Whether GPUs of an architecture have the number format of a precision or a step."""
    return not older(architecture, since(wanted))
