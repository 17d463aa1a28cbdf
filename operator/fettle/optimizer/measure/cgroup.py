"""What the container's limits do to a measurement: CPU time withheld, memory left. cgroup v2 and v1, as this process sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # v1 writes a huge number for 'no limit'


@dataclass(frozen=True)
class Limits:
    """The files of this container's cgroup. `cpu` and `memory` are folders; None where the kernel shows none."""

    cpu: Path | None
    memory: Path | None

    @classmethod
    def find(cls, root: Path = ROOT, proc: Path = Path("/proc/self/cgroup")) -> Limits:
        """Where the limits of this process stand: its own group, else the mounted root, as inside a container."""
        own = _groups(proc)
        return cls(cpu=_folder(root, own, "cpu", "cpu.stat"), memory=_folder(root, own, "memory", "memory.stat"))

    def throttled_seconds(self) -> float:
        """Seconds for which the CPU quota has withheld the processor so far; 0 where there is no quota."""
        stat = _numbers(self.cpu / "cpu.stat") if self.cpu is not None else {}
        if "throttled_usec" in stat:
            return stat["throttled_usec"] / 1e6
        return stat.get("throttled_time", 0) / 1e9

    def memory_total(self) -> int:
        """Bytes that this process may use at all: the least of the machine's and the container's."""
        total = psutil.virtual_memory().total
        if self.memory is not None:
            limits = (_number(self.memory / name) for name in ("memory.max", "memory.limit_in_bytes"))
            total = min([total, *(limit for limit in limits if limit is not None)])
        return total

    def memory_left(self) -> int:
        """Bytes that may still be used: the least of the machine's and the container's."""
        left = psutil.virtual_memory().available
        if self.memory is not None:
            for limit, used in (
                ("memory.max", "memory.current"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            ):
                most, now = _number(self.memory / limit), _number(self.memory / used)
                if most is not None and now is not None and most < UNLIMITED:
                    stat = _numbers(self.memory / "memory.stat")
                    cache = stat.get("inactive_file", stat.get("total_inactive_file", 0))
                    left = min(left, most - now + cache)
        return max(left, 0)


@dataclass
class Throttling:
    """Watches the quota over blocks: which were hit."""

    limits: Limits = field(default_factory=Limits.find)
    share: float = 0.01  # of a block's time; a quota that is just met withholds microseconds in every period
    _before: float = 0.0

    def begin(self) -> None:
        """A block begins."""
        self._before = self.limits.throttled_seconds()

    def hit(self, seconds: float) -> bool:
        """Whether the quota withheld a noticeable share of the block, which took `seconds`."""
        return self.limits.throttled_seconds() - self._before > self.share * seconds


def _groups(proc: Path) -> dict[str, str]:
    """Path of this process's group by controller; '' is the unified hierarchy."""
    if not proc.exists():
        return {}
    rows = [line.split(":", 2) for line in proc.read_text().splitlines() if line.count(":") >= 2]
    return {name: path.lstrip("/") for _, names, path in rows for name in names.split(",")}


def _folder(root: Path, own: dict[str, str], controller: str, file: str) -> Path | None:
    places = [root / own.get("", ""), root / controller / own.get(controller, ""), root / controller, root]
    return next((place for place in places if (place / file).is_file()), None)


def _number(path: Path) -> int | None:
    if not path.is_file():
        return None
    text = path.read_text().strip()
    return int(text) if text.isdigit() else None


def _numbers(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    rows = [line.split() for line in path.read_text().splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
