"""The requests from the measuring process to its workers, and their replies: plain data, pickled through a pipe."""

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
    """Load a model and map the items (an .npy file per input). Reply: Loaded.

    `prove`: also check the session's promises with the first item (`measure/promises.py`).
    """

    entry: Path
    runtime: RuntimeName
    settings: RuntimeSettings
    signature: Signature
    items: Mapping[str, Path]
    prove: bool = False


@dataclass(frozen=True)
class Loaded:
    """The model is loaded, with the requested settings."""


@dataclass(frozen=True)
class MapItems:
    """Use other items from now on (an .npy file per input). Reply: Mapped."""

    items: Mapping[str, Path]


@dataclass(frozen=True)
class Mapped:
    """The items are mapped."""


@dataclass(frozen=True)
class Judge:
    """Run these items in one run. `size`: the fixed batch size that the run is filled up to. Reply: a list with a dictionary of outputs per item.

    The floating-point inputs of the items at the places `scaled` are multiplied by a thousand.
    """

    indices: tuple[int, ...]
    size: int = 1
    scaled: tuple[int, ...] = ()


@dataclass(frozen=True)
class RunItems:
    """One run over these items. Reply: the model's outputs."""

    indices: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Time runs of `batch` items for at least `seconds` and at least `runs` runs, from as many callers as streams. Reply: Runs.

    `alone`: each item in a run of its own, one after the other, as they will be served; the time of all `batch` items is measured together.
    """

    batch: int
    seconds: float
    runs: int
    first: int = 0
    alone: bool = False


@dataclass(frozen=True)
class Runs:
    """The milliseconds of each timed run, the total seconds, and the number of runs that were disturbed by other work on the CPU."""

    milliseconds: tuple[float, ...]
    seconds: float = 0.0
    disturbed: int = 0
    gpu_milliseconds: tuple[float, ...] = ()  # of each run, between CUDA events; empty where the runtime tells none


@dataclass(frozen=True)
class Profile:
    """Determine the precision in which the compute nodes actually run, in a separate session. Reply: Executed."""


@dataclass(frozen=True)
class Memory:
    """Peak memory so far. Answer: Count."""


@dataclass(frozen=True)
class PeakMemory:
    """Peak resident bytes of the worker."""

    peak_memory_bytes: int


@dataclass(frozen=True)
class WorkerFailure:
    """The request failed; the worker continues."""

    reason: Reason
    message: str


WorkerRequest = Load | MapItems | Judge | RunItems | Block | Profile | Memory
