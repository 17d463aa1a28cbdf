"""The original's answers, against which every form of the model is held; and the proof of a batch axis."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.optimizedmodel import InputSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import RuntimeName
from fettle.errors import FettleError, RuntimeFailure, SourceError
from fettle.optimizer.data import Array, Items
from fettle.optimizer.formats import onnx_model
from fettle.optimizer.formats.onnx_inputs import Hint
from fettle.optimizer.measure.agreement import OutputProfile, within_noise
from fettle.runtimes import base, cpu
from fettle.store.comparison import has_nan

Answers = Mapping[str, Array]
Run = Callable[[Answers], Answers]
BATCH_NAMES = frozenset({"n", "b", "batch", "batch_size", "batchsize", "bs", "none", "unk__batch", "num_samples"})
PROOF_ITEMS = 3
ADVICE = {
    Reason.UNSUPPORTED_OPERATOR: "; export the model with standard operators, opset 7 or newer",
    Reason.UNSUPPORTED_OPSET: f"; export it again with an opset of at most {onnx_model.READABLE_OPSET}",
}
SLOW_SECONDS = 0.5  # a run that takes longer is made less often


def session(path: Path, signature: Signature | None = None, graph_optimization: bool = True) -> base.Session:
    """A session of the portable form's own runtime, for checks. Raises RuntimeFailure."""
    settings = RuntimeSettings(threads=cpu.usable_cores(), graph_optimization=graph_optimization)
    return base.get(RuntimeName.ONNXRUNTIME).load(path, settings, signature)


@dataclass(frozen=True)
class Reference:
    """What the original answers to some inputs."""

    inputs: tuple[Answers, ...]
    answers: tuple[Answers, ...]

    def differs(self, run: Run) -> str | None:
        """How `run` answers otherwise, for a person; None where it answers alike within float noise. Raises RuntimeFailure."""
        for given, wanted in zip(self.inputs, self.answers, strict=True):
            found = run(given)
            for name, answer in wanted.items():
                profile = OutputProfile()
                profile.add(answer)
                if name not in found or not within_noise(answer, found[name], profile.noise()):
                    return _difference(name, answer, found.get(name))
        return None


def _difference(name: str, wanted: Array, found: Array | None) -> str:
    if found is None:
        return f"the output {name!r} is gone"
    if wanted.shape != found.shape or wanted.dtype.kind not in "fiub":
        return f"the output {name!r} was {wanted.dtype} {list(wanted.shape)}, is {found.dtype} {list(found.shape)}"
    worst = np.max(np.abs(wanted.astype(np.float64) - found.astype(np.float64)), initial=0.0)
    return f"the output {name!r} moved by up to {worst:.3g}"


def reference(run: Run, items: Items) -> Reference:
    """Answers of `run` to the first items (one item where a run is slow: every step is checked on them).

    Raises SourceError where two runs on one item differ (UnsupportedModel), or every answer holds NaN (OutputsInvalid); RuntimeFailure.
    """
    start = time.perf_counter()
    first = run(items.whole(0))
    count = 1 if time.perf_counter() - start > SLOW_SECONDS else min(PROOF_ITEMS, len(items))
    inputs = tuple(items.whole(index) for index in range(count))
    answers = (first, *(run(given) for given in inputs[1:]))
    made = Reference(inputs, answers)
    moved = Reference(inputs[:1], answers[:1]).differs(run)
    if moved is not None:
        message = f"the model answers one input differently each time ({moved}): nothing can be compared with it"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    if all(any(has_nan(value) for value in answer.values()) for answer in answers):
        message = (
            f"the model answers NaN to each of the first {count} items, where numbers were expected: "
            "check its weights, and that the items went through the model's own preprocessing"
        )
        raise SourceError(message, reason=Reason.OUTPUTS_INVALID)
    return made


def states(signature: Signature) -> list[tuple[str, str]]:
    """Pairs (input, output) that look like a state handed from call to call: `state` and `stateN`, `past…` and `present…`."""
    outputs = {tensor.name: tensor for tensor in signature.outputs}
    pairs = []
    for tensor in signature.inputs:
        name = tensor.name
        after = [f"{name}{end}" for end in ("N", "n", "_n", "_next", "_out", "_new")]
        after += [f"{start}{name}" for start in ("new_", "next_", "out_")]
        after += [name.replace("past", "present", 1), name.replace("past_key_values", "present", 1)]
        found = next((other for other in after if other != name and other in outputs), None)
        if (
            found is not None
            and len(outputs[found].shape) in (0, len(tensor.shape))
            and outputs[found].dtype == tensor.dtype
        ):
            pairs.append((name, found))
    # A state stands beside what the call is really about: `audio` -> `audio_out` alone is a filter.
    return pairs if len(pairs) < min(len(signature.inputs), len(outputs)) else []


# --------------------------------------------------------------------------------------------------------------- batch axes


def stacking_axes(signature: Signature, specs: Mapping[str, InputSpec], hints: Mapping[str, Hint]) -> dict[str, int]:
    """Axis along which items of each input would be stacked, as its names suggest: N in `source.inputs`, a dimension
    called batch, else a first dimension that varies or is 1. Nothing is proved here."""
    axes = {
        tensor.name: _suggested(tensor, specs.get(tensor.name), hints.get(tensor.name)) for tensor in signature.inputs
    }
    return {name: axis for name, axis in axes.items() if axis is not None}


def _suggested(tensor: Tensor, spec: InputSpec | None, hint: Hint | None) -> int | None:
    given = spec.shape if spec is not None else None
    names = [str(size) for size in given] if given is not None else list(hint.dimensions) if hint is not None else []
    if "N" in names:
        return names.index("N")
    for axis, name in enumerate(names):
        if name.lower() in BATCH_NAMES and tensor.shape[axis] == -1:
            return axis
    return 0 if tensor.shape and tensor.shape[0] in (-1, 1) else None


def prove_batch(run: Run, signature: Signature, axes: Mapping[str, int], items: Items) -> dict[str, int] | None:
    """Batch axis of every input and output, proved by a run of two and of three items against single runs.

    None where it is not: an input without such an axis, an output that does not follow it, answers that depend on their neighbours.
    """
    if not signature.inputs or len(items) < PROOF_ITEMS:
        return None
    for tensor in signature.inputs:
        axis = axes.get(tensor.name)
        if axis is None or tensor.shape[axis] != -1 or items.arrays[tensor.name].shape[axis + 1] != 1:
            return None
    try:
        singles = [run(items.whole(index)) for index in range(PROOF_ITEMS)]
        batches = [run(_stack(items, axes, range(size))) for size in (2, PROOF_ITEMS)]
    except RuntimeFailure:
        return None
    found: dict[str, int] = dict(axes)
    for tensor in signature.outputs:
        axis = _output_axis([answer[tensor.name] for answer in singles], [answer[tensor.name] for answer in batches])
        if axis is None:
            return None
        found[tensor.name] = axis
    return found


def _stack(items: Items, axes: Mapping[str, int], indices: Sequence[int]) -> dict[str, Array]:
    wholes = [items.whole(index) for index in indices]
    return {name: np.concatenate([whole[name] for whole in wholes], axis=axes[name]) for name in wholes[0]}


def _output_axis(singles: list[Array], batches: list[Array]) -> int | None:
    for axis in range(singles[0].ndim):
        sizes = [answer.shape[axis] if answer.ndim > axis else None for answer in (singles[0], *batches)]
        if sizes != [1, 2, PROOF_ITEMS]:
            continue
        if all(_alike(np.concatenate(singles[: batch.shape[axis]], axis=axis), batch) for batch in batches):
            return axis
    return None


def _alike(wanted: Array, found: Array) -> bool:
    profile = OutputProfile()
    profile.add(wanted)
    return within_noise(wanted, found, profile.noise())


def settled(signature: Signature, batch: Mapping[str, int] | None, answers: Sequence[Answers]) -> Signature:
    """The signature with proved batch axes, and output shapes as far as the answers bear them out."""

    def with_axis(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        axis = None if batch is None else batch[tensor.name]
        sizes = tuple(-1 if place == axis else size for place, size in enumerate(shape))
        return tensor.model_copy(update={"shape": sizes, "batch_axis": axis})

    return Signature(
        inputs=tuple(with_axis(tensor, tensor.shape) for tensor in signature.inputs),
        outputs=tuple(
            with_axis(tensor, _observed(tensor, [answer[tensor.name] for answer in answers]))
            for tensor in signature.outputs
        ),
    )


def _observed(tensor: Tensor, answers: list[Array]) -> tuple[int, ...]:
    """The declared shape where answers keep it; files are known to leave out or to misstate those of outputs."""
    rank = answers[0].ndim
    declared = tensor.shape if len(tensor.shape) == rank else (-1,) * rank
    return tuple(
        size if all(answer.ndim == rank and answer.shape[place] == size for answer in answers) else -1
        for place, size in enumerate(declared)
    )


def failure_of(error: Any) -> SourceError:
    """A source that its own runtime cannot load or run, said as a fault of the source."""
    if isinstance(error, FettleError) and error.reason in (
        Reason.UNSUPPORTED_OPERATOR,
        Reason.UNSUPPORTED_OPSET,
        Reason.UNSUPPORTED_MODEL,
    ):
        advice = ADVICE.get(error.reason, "")
        return SourceError(f"{error.message}{advice}", reason=error.reason)
    return SourceError(str(error), reason=Reason.SOURCE_CORRUPTED)
