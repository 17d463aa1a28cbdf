"""What /proc/cpuinfo says, and what an artifact may ask for."""

from __future__ import annotations

import pytest

from fettle.api.report import CpuClass
from fettle.api.vocabulary import Precision
from fettle.runtimes import cpu

SAPPHIRE_RAPIDS = """processor\t: 0
vendor_id\t: GenuineIntel
flags\t\t: fpu avx avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8 amx_tile

processor\t: 1
vendor_id\t: GenuineIntel
flags\t\t: fpu
"""
ROME = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx avx2 sse4_2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("text", "architecture", "label"),
    [
        (SAPPHIRE_RAPIDS, "x86_64", "GenuineIntel x86_64 avx2+avx512+vnni+bf16+amx"),
        (ROME, "x86_64", "AuthenticAMD x86_64 avx2"),
        (ARM, "aarch64", "0x41 aarch64 bf16"),
        ("", "riscv64", "unknown riscv64 baseline"),
    ],
)
def test_a_class_is_read_from_cpuinfo(text: str, architecture: str, label: str) -> None:
    assert cpu.parse(text, architecture).label == label


@pytest.mark.parametrize(
    ("requires", "lacking"),
    [((), []), (("avx2",), []), (("avx2", "vnni"), ["vnni"]), (("quantum",), ["quantum"]), (("vendor",), ["vendor"])],
)
def test_what_a_node_lacks_is_named(requires: tuple[str, ...], lacking: list[str]) -> None:
    assert cpu.missing(requires, cpu.parse(ROME, "x86_64")) == lacking


@pytest.mark.parametrize(
    ("quantized", "precision", "here", "needs"),
    [
        (False, Precision.FLOAT32, SAPPHIRE_RAPIDS, ()),
        (True, Precision.FLOAT32, SAPPHIRE_RAPIDS, ("vnni",)),
        (True, Precision.FLOAT32, ROME, ()),
        (False, Precision.BFLOAT16, SAPPHIRE_RAPIDS, ("bf16",)),
        (True, Precision.BFLOAT16, SAPPHIRE_RAPIDS, ("vnni", "bf16")),
    ],
)
def test_an_artifact_asks_for_what_it_was_judged_with(
    quantized: bool, precision: Precision, here: str, needs: tuple[str, ...]
) -> None:
    assert cpu.requirements(quantized, precision, cpu.parse(here, "x86_64")) == needs


def test_this_machine_has_a_class_and_a_core() -> None:
    assert isinstance(cpu.detect(), CpuClass)
    assert cpu.usable_cores() >= 1
