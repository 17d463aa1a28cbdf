"""Which runs are so short that the event loop does them itself.

A run in a thread of its own costs a hand-over and a way back, which is several times what a small model takes. So runs that take less than
the hand-over stay in the loop. How long a run takes depends on the model and on the size of its inputs, and is measured: at warm-up first, and
with each run from then on. What is looked at is not one run, which the machine may have put aside for a while, but which of two kinds is the
rule; each time a size is sent out of the loop it takes twice as many short runs until it is let in again.
"""

from __future__ import annotations

# Below these a run stays in the loop; docs/design/server.md has the measurement. On one core a thread gains nothing, and costs latency;
# the bound is what others may wait for. With more cores the loop can take the next request meanwhile, which pays off from about what the
# hand-over costs.
SHORT_SECONDS_ON_ONE_CORE = 0.0003
SHORT_SECONDS = 0.0001
LONG_SECONDS = 0.001  # what others wait for while the loop is busy, as with the decoding of a small body
PATIENCE = 8  # long runs, less the short ones between them, after which a size leaves the loop
# Counts as half of them: once it is a pod that was out of CPU for a while, twice in a row it is the model.
VERY_LONG_SECONDS = 0.05
PROOF = 32  # short runs, less the long ones, after which it comes back the first time
MOST_PROOF = 1 << 20


def short_seconds(cores: int) -> float:
    """What a run may take that the event loop does itself, where the process may use so many cores."""
    return SHORT_SECONDS if cores > 1 else SHORT_SECONDS_ON_ONE_CORE


class _Size:
    """Runs of inputs of about one size."""

    __slots__ = ("long", "needed", "short", "stays")

    def __init__(self) -> None:
        self.stays = False
        self.long = self.short = 0
        self.needed = PROOF

    def leave(self) -> None:
        self.stays = False
        self.short = 0
        self.needed = min(2 * self.needed, MOST_PROOF)

    def enter(self) -> None:
        self.stays = True
        self.long = 0


class Pace:
    """By size of the inputs in bytes, to the power of two. Threads may call `ran_there`: a count that is lost among them costs nothing."""

    def __init__(self, short: float = SHORT_SECONDS) -> None:
        self._short = short
        self._sizes: dict[int, _Size] = {}

    def is_short(self, size: int) -> bool:
        """Whether the event loop does a run of that size itself. One that was never seen is sent to a thread."""
        known = self._sizes.get(size.bit_length())
        return known is not None and known.stays

    def measured(self, size: int, seconds: float) -> None:
        """At warm-up, with nothing else under way, a run of that size took so long."""
        if seconds < self._short:
            self._sizes.setdefault(size.bit_length(), _Size()).enter()

    def ran_here(self, size: int, seconds: float) -> None:
        """A run in the event loop took so long."""
        known = self._sizes.setdefault(size.bit_length(), _Size())  # that of a run of several may be new
        if seconds < LONG_SECONDS:
            if known.long:
                known.long -= 1
            return
        known.long += PATIENCE // 2 if seconds >= VERY_LONG_SECONDS else 1
        if known.long >= PATIENCE:
            known.leave()

    def ran_there(self, size: int, seconds: float) -> None:
        """A run in a thread took so long, with what the thread waited for the interpreter: at worst it looks longer than it is."""
        known = self._sizes.setdefault(size.bit_length(), _Size())
        if seconds < self._short:
            known.short += 1
            if known.short >= known.needed:
                known.enter()
        elif known.short:
            known.short -= 1
