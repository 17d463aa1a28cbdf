"""What the container's limits do to a measurement: CPU time withheld, and how many models are loaded at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fettle.optimizer.measure.cgroup import Limits, Throttling
from fettle.optimizer.measure.clock import groups


@pytest.mark.parametrize(
    ("files", "seconds"),
    [
        ({"cpu.stat": "usage_usec 5\nnr_throttled 3\nthrottled_usec 2500000\n"}, 2.5),
        ({"cpu/cpu.stat": "nr_periods 9\nnr_throttled 3\nthrottled_time 1500000000\n"}, 1.5),
        ({"pod/cpu.stat": "throttled_usec 500000\n", "cpu.stat": "throttled_usec 9\n"}, 0.5),
        ({}, 0.0),
    ],
)
def test_throttling_is_read_from_both_kinds_of_cgroup(tmp_path: Path, files: dict[str, str], seconds: float) -> None:
    assert _limits(tmp_path, files).throttled_seconds() == seconds


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "1000\n", "memory.current": "600\n", "memory.stat": "inactive_file 100\n"}, 500),
        (
            {"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "900", "memory/memory.stat": ""},
            100,
        ),
    ],
)
def test_memory_left_is_what_the_container_may_still_use(tmp_path: Path, files: dict[str, str], left: int) -> None:
    assert _limits(tmp_path, files).memory_left() == left


def _limits(folder: Path, files: dict[str, str]) -> Limits:
    for name, content in files.items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    groups_of_process = folder / "cgroup"
    groups_of_process.write_text("4:memory:/elsewhere\n1:cpu,cpuacct:/elsewhere\n0::/pod\n")
    return Limits.find(folder / "root", groups_of_process)


def test_a_quota_that_is_just_met_is_no_hit(tmp_path: Path) -> None:
    stat = tmp_path / "cpu.stat"
    stat.write_text("throttled_usec 0\n")
    watch = Throttling(Limits(tmp_path, None))
    watch.begin()
    stat.write_text("throttled_usec 1000\n")
    assert not watch.hit(0.2)
    watch.begin()
    stat.write_text("throttled_usec 61000\n")
    assert watch.hit(0.2)


@pytest.mark.parametrize(
    ("peaks", "left", "expected"),
    [
        ([1] * 5, 1000, [5]),
        ([1] * 6, 1000, [3, 3]),
        ([1] * 11, 1000, [4, 4, 3]),
        ([10, 10, 10], 40, [2, 1]),
        ([100, 1, 1], 40, [1, 2]),
        ([100, 100], 40, [1, 1]),
        ([], 40, []),
    ],
)
def test_no_more_are_loaded_at_once_than_memory_holds(peaks: list[int], left: int, expected: list[int]) -> None:
    found = groups({str(number): peak for number, peak in enumerate(peaks)}, baseline=10, left=left)
    assert [len(group) for group in found] == expected
