"""What this machine's CPU can do, from /proc/cpuinfo: figures and int8 answers hold for one class of CPU."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from fettle.api.report import CpuClass
from fettle.api.vocabulary import Precision

# Word of a manifest's `requires` -> flags of which one must be listed (Linux names; arm64's beside x86's).
FLAGS: dict[str, tuple[str, ...]] = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "amx": ("amx_int8", "amx_bf16"),
}


def parse(cpuinfo: str, architecture: str) -> CpuClass:
    """The class that the text of /proc/cpuinfo describes."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    features = {word: bool(flags.intersection(names)) for word, names in FLAGS.items()}
    vendor = fields.get("vendor_id") or fields.get("CPU implementer") or "unknown"
    return CpuClass(vendor=vendor, architecture=architecture, **features)


def detect() -> CpuClass:
    """The class of this machine's CPU."""
    path = Path("/proc/cpuinfo")
    return parse(path.read_text() if path.exists() else "", platform.machine())


def features(cpu: CpuClass) -> tuple[str, ...]:
    """All that `cpu` has, as words of a manifest's `requires`."""
    return tuple(word for word in FLAGS if getattr(cpu, word))


def missing(requires: Iterable[str], cpu: CpuClass) -> list[str]:
    """Words of `requires` that `cpu` lacks; a word that this version does not know is lacking too. Empty = it fits."""
    return [word for word in requires if not getattr(cpu, word, False) or word not in FLAGS]


def requirements(quantized: bool, precision: Precision, cpu: CpuClass) -> tuple[str, ...]:
    """What a model that was judged on `cpu` needs to give the same answers elsewhere.

    int8 products are summed in 16 bits without VNNI and may saturate: a model judged with VNNI is not proved without it.
    bfloat16 and float16 are emulated where the CPU lacks them.
    """
    needs = []
    if quantized and cpu.vnni:
        needs.append("vnni")
    if precision == Precision.BFLOAT16:
        needs.append("bf16")
    if precision == Precision.FLOAT16:
        needs.append("amx" if cpu.amx else "avx512")
    return tuple(needs)


def usable_cores() -> int:
    """Cores this process may use: its affinity, bounded by the cgroup's quota (a pod's CPU limit), rounded up."""
    cores, most = len(os.sched_getaffinity(0)), quota()
    return min(cores, max(1, math.ceil(most))) if math.isfinite(most) else cores


def quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that this container may use; infinity where nothing limits it. cgroup v2, else v1."""
    unified, legacy = root / "cpu.max", root / "cpu"
    try:
        if unified.exists():
            most, period = unified.read_text().split()
        else:
            most, period = ((legacy / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(most) / int(period) if most not in ("max", "-1") else math.inf
    except (OSError, ValueError):
        return math.inf
