"""The original's answers, against which every form of the model is held; and the proof of a batch axis."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.optimizedmodel import InputSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.text import quoted
from fettle.api.vocabulary import RuntimeName
from fettle.errors import FettleError, RuntimeFailure, SourceError
from fettle.optimizer.data.files import Array
from fettle.optimizer.data.items import Items
from fettle.optimizer.measure.agreement import OutputProfile, within_noise
from fettle.optimizer.onnx import model
from fettle.optimizer.onnx.inputs import Hint
from fettle.runtimes import base, cpu
from fettle.store.comparison import has_nan

Answers = Mapping[str, Array]
Run = Callable[[Answers], Answers]
BATCH_NAMES = frozenset({"n", "b", "batch", "batch_size", "batchsize", "bs", "none", "unk__batch", "num_samples"})
PROOF_ITEMS = 3
PROOF_MOST = 16  # where runs are quick: a model may look at its neighbours on few items only
QUICK_SECONDS = 0.05
SLOW_SECONDS = 0.5  # a run that takes longer is made less often
ADVICE = {Reason.UNSUPPORTED_OPSET: f"; export it again with an opset of at most {model.READABLE_OPSET}"}


def session(path: Path, signature: Signature | None = None, graph_optimization: bool = True) -> base.Session:
    """A session of the portable form's own runtime, for checks. Raises RuntimeFailure."""
    settings = RuntimeSettings(threads=cpu.usable_cores(), graph_optimization=graph_optimization)
    return base.get(RuntimeName.ONNXRUNTIME).load(path, settings, signature)


@dataclass(frozen=True)
class Subject:
    """The original as it is asked: its boundary, what is known of the values that its inputs take, and a function that runs it."""

    signature: Signature
    hints: Mapping[str, Hint]
    run: Run


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


def states(signature: Signature, passed: Collection[str] = ()) -> list[tuple[str, str]]:
    """Pairs (input, output) that look like a state handed from call to call: `state` and `stateN`, `past…` and `present…`.

    `passed`: outputs that only pass an input on; nothing of theirs is new in the next call.
    """
    outputs = {tensor.name: tensor for tensor in signature.outputs if tensor.name not in passed}
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


def refuse_states(signature: Signature, passed: Collection[str] = ()) -> None:
    """A model that carries a state from call to call cannot be judged call by call: what is wrong adds up over a stream. Raises SourceError."""
    found = states(signature, passed)
    if found:
        given, made = found[0]
        message = (
            f"the output {made!r} looks like the next value of the input {given!r}: models that carry a state from call to call are not "
            "supported; to have each call judged by itself, rename the output, or freeze the input with a value in source.inputs"
        )
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)


# --------------------------------------------------------------------------------------------------------------- batch axes


def stacking_axes(signature: Signature, specs: Mapping[str, InputSpec], hints: Mapping[str, Hint]) -> dict[str, int]:
    """Axis along which items of each input would be stacked, as its names suggest: N in `source.inputs`, a dimension
    called batch, else a first dimension that varies or is 1. Nothing is proved here."""
    axes = {
        tensor.name: _suggested(tensor, specs.get(tensor.name), hints.get(tensor.name)) for tensor in signature.inputs
    }
    return {name: axis for name, axis in axes.items() if axis is not None}


def _suggested(tensor: Tensor, spec: InputSpec | None, hint: Hint | None) -> int | None:
    given = [str(size) for size in spec.shape] if spec is not None and spec.shape is not None else None
    if given is not None and "N" in given:
        return given.index("N")
    # In a file an N may be the number of anything; it means the batch only where no dimension before it does.
    for axis, name in enumerate(given or (hint.dimensions if hint is not None else ())):
        if name.lower() in BATCH_NAMES and tensor.shape[axis] == -1:
            return axis
    return 0 if tensor.shape and tensor.shape[0] in (-1, 1) else None


@dataclass(frozen=True)
class BatchProof:
    """Batch axis of every input and output, or None and, for a person, why there is none."""

    axes: Mapping[str, int] | None
    why_not: str = ""


def prove_batch(run: Run, signature: Signature, axes: Mapping[str, int], items: Items) -> BatchProof:
    """Hold runs of two, of three and, where that is quick, of all items against single runs: outputs must follow, neighbours not matter."""
    for tensor in signature.inputs:
        axis = axes.get(tensor.name)
        if axis is None or tensor.shape[axis] != -1 or items.arrays[tensor.name].shape[axis + 1] != 1:
            return BatchProof(None, f"the input {tensor.name!r} has no dimension of varying size that could be one")
    if len(items) < PROOF_ITEMS:
        return BatchProof(None, "there are no two different items to try it with")
    try:
        start = time.perf_counter()
        singles = [run(items.whole(index)) for index in range(PROOF_ITEMS)]
        sizes = [2, PROOF_ITEMS]
        if time.perf_counter() - start < PROOF_ITEMS * QUICK_SECONDS and len(items) > PROOF_ITEMS:
            sizes.append(len(items))
            singles += [run(items.whole(index)) for index in range(PROOF_ITEMS, len(items))]
        batches = [run(_stack(items, axes, range(size))) for size in sizes]
    except RuntimeFailure as error:
        return BatchProof(None, f"the model does not run on several items at once ({quoted(error.message, 150)})")
    found: dict[str, int] = dict(axes)
    for tensor in signature.outputs:
        alone, together = ([answer[tensor.name] for answer in runs] for runs in (singles, batches))
        axis = _output_axis(alone, together, sizes)
        if axis is None:
            return BatchProof(
                None, f"the output {tensor.name!r} of several items is not that of each of them, one after the other"
            )
        found[tensor.name] = axis
    return BatchProof(found)


def _stack(items: Items, axes: Mapping[str, int], indices: Sequence[int]) -> dict[str, Array]:
    wholes = [items.whole(index) for index in indices]
    return {name: np.concatenate([whole[name] for whole in wholes], axis=axes[name]) for name in wholes[0]}


def _output_axis(singles: list[Array], batches: list[Array], sizes: list[int]) -> int | None:
    """The axis along which each of `batches` is the answers to that many single items, one after the other."""
    for axis in range(singles[0].ndim):
        found = [answer.shape[axis] if answer.ndim > axis else None for answer in (singles[0], *batches)]
        if found == [1, *sizes] and all(
            _joined(singles[:size], axis, batch) for size, batch in zip(sizes, batches, strict=True)
        ):
            return axis
    return None


def _joined(singles: list[Array], axis: int, batch: Array) -> bool:
    shapes = {answer.shape for answer in singles}
    return len(shapes) == 1 and _alike(np.concatenate(singles, axis=axis), batch)


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
    if any(answer.ndim != rank for answer in answers):
        shapes = " and ".join(str(list(answer.shape)) for answer in answers)
        message = f"the output {tensor.name!r} has another number of dimensions from item to item ({shapes}), which cannot be served"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
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
