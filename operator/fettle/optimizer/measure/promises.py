"""What `runtimes.base.Session.infer` promises, held against a loaded model: once for each candidate, never in a timed run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fettle.api import catalog
from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure.agreement import OutputProfile, within_noise
from fettle.runtimes.base import Array, Arrays, Session, v2_dtype


@dataclass(frozen=True)
class _Runs:
    """Two runs on the same arrays. `given` and `answered` are copies, made before the first run and right after it."""

    inputs: Arrays
    given: Arrays
    first: Arrays
    answered: Arrays
    second: Arrays


def require(name: RuntimeName, session: Session, signature: Signature, inputs: Arrays) -> None:
    """Run the model twice on `inputs`. Raises RuntimeFailure (OutputsInvalid) that names the runtime and the promise it broke."""
    given = _copies(inputs)
    first = session.infer(inputs)
    broken = _misnamed(signature, first)
    if broken is None:
        runs = _Runs(inputs, given, first, _copies(first), session.infer(inputs))
        broken = _touched(runs) or _not_owned(runs)
        if broken is None and catalog.runtime(name).repeats:
            broken = _moved(runs)
    if broken is not None:
        message = f"the runtime {name} (runtimes/{name.replace('-', '_')}.py) violated its contract: {broken}; please report it"
        raise RuntimeFailure(message, reason=Reason.OUTPUTS_INVALID)


def _copies(arrays: Arrays) -> dict[str, Array]:
    return {name: np.array(array) for name, array in arrays.items()}


def _misnamed(signature: Signature, outputs: Mapping[str, object]) -> str | None:
    """How the names, their order or the data types differ from the signature's."""
    names = [tensor.name for tensor in signature.outputs]
    if list(outputs) != names:
        return f"outputs have the names and the order of the signature, {names}, and it answered {list(outputs)}"
    for tensor in signature.outputs:
        output = outputs[tensor.name]
        dtype = v2_dtype(output) if isinstance(output, np.ndarray) else type(output).__name__
        if dtype != tensor.dtype:
            return f"the output {tensor.name!r} is an array of {tensor.dtype}, and it answered {dtype}"
    return None


def _touched(runs: _Runs) -> str | None:
    changed = [name for name, array in runs.inputs.items() if not _same(array, runs.given[name])]
    return f"inputs are left as they are, and it changed {changed}" if changed else None


def _not_owned(runs: _Runs) -> str | None:
    """Which output its caller may not keep, or not write to."""
    for name, output in runs.first.items():
        if not output.flags.writeable:
            return f"the caller owns what it gets, and the output {name!r} is read-only"
        if any(np.may_share_memory(output, array) for array in runs.inputs.values()):
            return f"the caller owns what it gets, and the output {name!r} is a view of an input"
        overwritten = not _same(output, runs.answered[name])
        if overwritten or any(np.may_share_memory(output, later) for later in runs.second.values()):
            return f"the caller owns what it gets, and the output {name!r} lies in memory that the next run writes to"
    return None


def _moved(runs: _Runs) -> str | None:
    """Which output another run on the same inputs answers otherwise, beyond float noise."""
    for name, answer in runs.answered.items():
        profile = OutputProfile()
        profile.add(answer)
        if not within_noise(answer, runs.second[name], profile.noise()):
            return f"the same inputs get the same answer (else its row in the catalog says repeats=False), and the output {name!r} moved"
    return None


def _same(array: Array, copy: Array) -> bool:
    """Bit by bit: a NaN is the same as itself."""
    if array.dtype.kind == "O":
        return array.shape == copy.shape and bool(array.tolist() == copy.tolist())
    return array.shape == copy.shape and array.tobytes() == copy.tobytes()
