"""What a row of the catalog tells about a recipe step, or about a runtime. The rows are in `catalog.py`."""

from __future__ import annotations

from dataclasses import dataclass

from fettle.api.vocabulary import DeviceKind, FormatName, ModelFormat, Precision, RuntimeName, StepKind


@dataclass(frozen=True)
class StepEntry:
    """What one kind of step needs in one family, and what identifies its result."""

    kind: StepKind
    family: RuntimeName
    writes: ModelFormat  # format of the file it leaves
    libraries: tuple[str, ...]  # distributions whose versions are part of the cache key
    function: str | None = None  # "module:function" in optimizer/steps; None where nothing is left to do
    revision: int = 1
    lossy: bool = False  # answers may change, so they must be proved
    calibration: bool = False  # needs calibration items
    instruction_set: bool = False  # the file is made for the CPU's instruction set, which is then part of the cache key
    # Looks at the answers and at how many of them may change, which are then part of the cache key.
    bounded: bool = False
    trains: bool = False  # changes the model in its own framework: a build of its own, the same for every family
    training: bool = False  # needs training items; one that trains and does not need them takes calibration items where there are none
    finishes: bool = False  # ends each build of its family: puts the file into the form that its device takes
    on_device: bool = False  # is built on a node of the target, for the device at hand
    converts: bool = False  # makes its family's file of the source as its framework saves it, not of the portable form: the only step of a build

    def calibrates(self, learns: bool) -> bool:
        """Whether the step needs calibration items. `learns`: there are training items, which a step that trains uses instead."""
        return self.calibration and not (self.trains and learns)


@dataclass(frozen=True)
class RuntimeEntry:
    """A runtime: the file formats that it loads, and the precisions in which it can compute.

    Precisions other than Float32 also depend on the node, so the measuring Job asks the runtime there. `process_bytes` is the memory of a
    process that has loaded the library and a model without weights.
    """

    runtime: RuntimeName
    library: str
    loads: tuple[ModelFormat, ...]
    precisions: tuple[Precision, ...]
    process_bytes: int
    by_default: bool = False  # tried on a target of its device that names no runtimes
    device: DeviceKind = DeviceKind.CPU
    repeats: bool = True  # answers the same inputs alike each time, but for float noise
    converts: tuple[FormatName, ...] = ()  # sources that a converter of its own makes into what it loads
    compiled: bool = False  # its files are machine code for one class of CPU, and made for a number of threads
    beside: tuple[str, ...] = ()  # distributions that an image must have as well
    architectures: tuple[str, ...] = ()  # GPUs that engines are built for; empty: for the one at hand

    @property
    def libraries(self) -> frozenset[str]:
        """What an image must have to run it."""
        return frozenset({self.library, *self.beside})
