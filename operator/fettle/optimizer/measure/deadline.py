"""The time that a measurement has left, so that an exhaustive search ends before it is ended, and what it measured is not lost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from fettle.api.task import ENDS_VARIABLE

LONGER = 1.5  # times the longest round so far: the next one may take that long
RESERVED_SECONDS = 60.0  # in which artifacts are written, and published by another Job


@dataclass
class TimeLeft:
    """What is left until `ends`, in Unix time. The clocks of nodes differ by less than what is reserved."""

    ends: float = math.inf
    clock: Callable[[], float] = time.time
    _rounds: list[float] = field(default_factory=list)  # when each began

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> TimeLeft:
        """What this process was told."""
        return cls(float(environment.get(ENDS_VARIABLE, "inf")))

    def another(self) -> bool:
        """Whether another round of finals fits in; the first is tried in any case."""
        self._rounds.append(self.clock())
        longest = max((after - before for before, after in pairwise(self._rounds)), default=None)
        return longest is None or self._rounds[-1] + LONGER * longest + RESERVED_SECONDS <= self.ends
