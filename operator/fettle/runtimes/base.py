"""The interface of a runtime, which loads a model's file and runs it. The optimizer and the server use the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import BY_NUMPY, BY_V2, DATA_TYPES, Signature, Tensor
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.store.arrays import Array as Array
from fettle.store.arrays import Arrays as Arrays

_V2_NAMES = {np.dtype(row.numpy): row.v2 for row in DATA_TYPES if row.v2 not in ("BF16", "BYTES")}


class Interrupted(Exception):
    """A run was ended by its `Interrupt`. It needs no message, because the caller that interrupts knows why."""


class Interrupt:
    """Ends a run early, from any thread: the runtime stops before the next operator of the graph."""

    def __init__(self) -> None:
        self.is_set = False
        self._stop: Callable[[], None] | None = None

    def set(self) -> None:
        """End the current run, and any run that starts with this interrupt later."""
        self.is_set = True
        stop = self._stop
        if stop is not None:
            stop()

    @contextmanager
    def ending(self, stop: Callable[[], None]) -> Iterator[None]:
        """Used by a runtime around a run that `stop` ends. Raises Interrupted if the run was interrupted before it began."""
        self._stop = stop
        try:
            if self.is_set:
                raise Interrupted
            yield
        finally:
            self._stop = None


class Session(Protocol):
    """A loaded model."""

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Outputs by name, in the order and with the data types of the signature. It may be called from several threads concurrently.

        `inputs` must have the names, data types and shapes of the signature (BYTES: object arrays of str or bytes, and of str in outputs), and
        are not changed. The caller owns the outputs: they are not views of inputs or of memory that the next run writes to. The same inputs give
        the same outputs except for rounding errors, unless the runtime's entry in the catalog says otherwise. `optimizer/measure/promises.py`
        checks all this for every model before it is measured. Raises RuntimeFailure, and Interrupted if `interrupt` ended the run.
        """
        ...

    def effective_settings(self) -> RuntimeSettings:
        """The settings that the runtime reports after loading; `load` has checked that they are the requested ones."""
        ...

    def close(self) -> None:
        """Free the model. The session cannot be used afterwards. It may be closed more than once."""
        ...


@runtime_checkable
class TimedOnGpu(Session, Protocol):
    """A session that can also tell how long its runs take on the GPU: from the first copy to it to the last copy from it, between CUDA events."""

    def time_on_gpu(self) -> None:
        """Take the times of all runs from now on."""
        ...

    def gpu_milliseconds(self) -> float:
        """The time of the last run, where runs do not overlap."""
        ...


class Runtime(Protocol):
    """A library that runs models."""

    name: RuntimeName

    def load(self, entry: Path, settings: RuntimeSettings, signature: Signature | None = None) -> Session:
        """Load the model at `entry`, whose other files are in the same folder.

        `signature` has the names in the artifact's order and the verified batch axes; a fixed `settings.batch_size` needs it. Raises
        RuntimeFailure: ModelLoadFailed, UnsupportedOperator, UnsupportedModel, and NodeIncompatible if this node cannot run these settings.
        """
        ...

    def executed(
        self, entry: Path, settings: RuntimeSettings, inputs: Arrays, signature: Signature | None = None
    ) -> Executed:
        """The number of compute nodes by the precision in which they actually run for `inputs`, in a separate session that is not timed."""
        ...

    def capabilities(self) -> frozenset[Precision]:
        """The precisions that this node supports in hardware."""
        ...


def get(name: RuntimeName) -> Runtime:
    """The runtime with that name. Its library is imported by this call. Raises RuntimeFailure if it is not installed."""
    try:
        module = import_module(f"fettle.runtimes.{name.value.replace('-', '_')}")
    except ImportError as error:
        message = f"the runtime {name.value} is not installed here ({error}); use an image that has it"
        raise RuntimeFailure(message) from error
    runtime: Runtime = module.RUNTIME
    return runtime


def require_settings(session: Session, asked: RuntimeSettings, library: str, advice: str = "") -> None:
    """Check that the effective settings are the requested ones. Raises RuntimeFailure (NodeIncompatible) with a message that ends with `advice`."""
    effective = session.effective_settings()
    if effective != asked:
        message = f"asked for {asked.to_json()}, {library} runs with {effective.to_json()}{advice}"
        raise RuntimeFailure(message, reason=Reason.NODE_INCOMPATIBLE)


def require_file(entry: Path) -> None:
    """Raises RuntimeFailure where there is no such file."""
    if not entry.is_file():
        raise RuntimeFailure(f"{entry} does not exist")


def checked_inputs(signature: Signature, inputs: Arrays) -> dict[str, Array]:
    """`inputs` in the signature's order, contiguous. Raises RuntimeFailure (DataInvalid) for names, data types or ranks that do not fit."""
    try:
        checked = {tensor.name: _checked(tensor, inputs[tensor.name]) for tensor in signature.inputs}
    except KeyError:
        checked = {}
    if len(checked) != len(inputs) or not checked:
        message = f"expected the inputs {[tensor.name for tensor in signature.inputs]}, found {sorted(inputs)}"
        raise RuntimeFailure(message, reason=Reason.DATA_INVALID)
    return checked


def _checked(tensor: Tensor, array: Array) -> Array:
    if v2_dtype(array) != tensor.dtype or not _fits(array.shape, tensor.shape):
        expected, found = f"{tensor.dtype} {list(tensor.shape)}", f"{v2_dtype(array)} {list(array.shape)}"
        message = f"input {tensor.name}: expected {expected}, found {found}"
        raise RuntimeFailure(message, reason=Reason.DATA_INVALID)
    # ascontiguousarray would make a scalar a vector.
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _fits(shape: Sequence[int], expected: Sequence[int]) -> bool:
    if len(shape) != len(expected):
        return False
    for size, wanted in zip(shape, expected, strict=True):  # noqa: SIM110  a generator costs twice as much, with every request
        if size != wanted and wanted != -1:
            return False
    return True


def v2_dtype(array: Array) -> str:
    """The V2 name of an array's data type; 'unknown (…)' if there is none, or if the byte order is not this machine's."""
    known = _V2_NAMES.get(array.dtype)  # by name takes numpy a while
    if known is not None:
        return known
    if array.dtype.kind in "USO":
        return "BYTES"
    row = BY_NUMPY.get(array.dtype.name) if array.dtype.isnative else None
    return row.v2 if row is not None else f"unknown ({array.dtype})"


def numpy_dtype(v2: str) -> np.dtype[Any]:
    """The numpy data type of a V2 name."""
    if v2 == "BF16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(BY_V2[v2].numpy)


def as_text(value: object) -> str:
    """An element of a BYTES array, or a label, as text; bytes that are not UTF-8 are replaced by a replacement character."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def as_texts(values: Array) -> Array:
    """The values as a flat array of texts that can be compared and sorted."""
    return np.array([as_text(value) for value in values.reshape(-1).tolist()], dtype=str)


def texts(array: Array) -> Array:
    """A BYTES array as an object array of str. Raises RuntimeFailure (DataInvalid) for bytes that are not UTF-8."""
    if array.dtype.kind == "U":
        return array.astype(object)
    try:
        flat = [value.decode() if isinstance(value, bytes) else str(value) for value in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise RuntimeFailure(f"text inputs must be UTF-8: {error}", reason=Reason.DATA_INVALID) from error
    return np.array(flat, dtype=object).reshape(array.shape)


def zeros(signature: Signature, shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """An input of zeros (strings: empty) for each shape of `shapes`."""
    made: dict[str, Array] = {}
    for tensor in signature.inputs:
        shape = tuple(shapes[tensor.name])
        if tensor.dtype == "BYTES":
            made[tensor.name] = np.full(shape, "", dtype=object)
        else:
            made[tensor.name] = np.zeros(shape, numpy_dtype(tensor.dtype))
    return made
