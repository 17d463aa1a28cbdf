"""What the measuring process asks its workers, and what they answer. Plain data, pickled through a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName


@dataclass(frozen=True)
class Load:
    """Load a model and map the items (an .npy file per input). Answer: Loaded.

    `prove`: hold the session to its promises on the first item as well (`measure/promises.py`).
    """

    entry: Path
    runtime: RuntimeName
    settings: RuntimeSettings
    signature: Signature
    items: Mapping[str, Path]
    prove: bool = False


@dataclass(frozen=True)
class Loaded:
    """The model is loaded, with the settings that were asked for."""


@dataclass(frozen=True)
class MapItems:
    """Map other items from now on (an .npy file per input). Answer: Mapped."""

    items: Mapping[str, Path]


@dataclass(frozen=True)
class Mapped:
    """The items are there."""


@dataclass(frozen=True)
class Judge:
    """Answer these items in one run. `size`: what a static batch is filled up to. Answer: a list, a dict of outputs per item.

    The floating-point inputs of the items at the places `scaled` are a thousand times as large.
    """

    indices: tuple[int, ...]
    size: int = 1
    scaled: tuple[int, ...] = ()


@dataclass(frozen=True)
class RunItems:
    """One run over these items. Answer: the outputs as the model gives them."""

    indices: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Time runs of `batch` items for at least `seconds` and at least `runs` runs, from as many callers as streams. Answer: Runs.

    `alone`: each item in a run of its own, one after the other, as they will be served; all `batch` together are timed.
    """

    batch: int
    seconds: float
    runs: int
    first: int = 0
    alone: bool = False


@dataclass(frozen=True)
class Runs:
    """Milliseconds of each timed run; the seconds all of them took together; in how many other work held the processor for a while."""

    milliseconds: tuple[float, ...]
    seconds: float = 0.0
    disturbed: int = 0


@dataclass(frozen=True)
class Profile:
    """In which precision the compute nodes really run, in a session of its own. Answer: Executed."""


@dataclass(frozen=True)
class Memory:
    """Peak memory so far. Answer: Count."""


@dataclass(frozen=True)
class PeakMemory:
    """Peak resident bytes of the worker."""

    peak_memory_bytes: int


@dataclass(frozen=True)
class WorkerFailure:
    """The request could not be met; the worker lives on."""

    reason: Reason
    message: str


WorkerRequest = Load | MapItems | Judge | RunItems | Block | Profile | Memory
