"""The proof of a batch axis: several items in one run must get the same answers as each item alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.api.source import InputSpec
from fettle.api.text import quoted
from fettle.errors import RuntimeFailure, SourceError
from fettle.optimizer.data.items import Items
from fettle.optimizer.measure.agreement import OutputProfile, within_noise
from fettle.optimizer.onnx.inputs import Hint
from fettle.optimizer.sources.base import RunModel
from fettle.runtimes.base import Array, Arrays

BATCH_NAMES = frozenset({"n", "b", "batch", "batch_size", "batchsize", "bs", "none", "unk__batch", "num_samples"})
PROOF_ITEMS = 3
PROOF_MOST = 16  # where runs are quick: a model may look at its neighbours on few items only
QUICK_SECONDS = 0.05


def stacking_axes(signature: Signature, specs: Mapping[str, InputSpec], hints: Mapping[str, Hint]) -> dict[str, int]:
    """By input, the axis along which items would be stacked: N in `source.inputs`, else a dimension called batch, else a
    first dimension that varies or is 1. Nothing is proved here."""
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
    """The batch axis of every input and output, or None with the reason in words.

    `alone`: by input, the axis along which there can be one item only, because the model fails on two, or the rank of an answer depends on their
    number.
    """

    axes: Mapping[str, int] | None
    why_not: str = ""
    alone: Mapping[str, int] = field(default_factory=dict)


def prove_batch(run: RunModel, signature: Signature, axes: Mapping[str, int], items: Items) -> BatchProof:
    """Compare runs of two, three and (if that is quick) all items with single runs: answers must not depend on the other items of a batch."""
    for tensor in signature.inputs:
        axis = axes.get(tensor.name)
        if axis is None or tensor.shape[axis] != -1 or items.arrays[tensor.name].shape[axis + 1] != 1:
            return BatchProof(None, f"the input {tensor.name!r} has no dynamic dimension")
    if len(items) < PROOF_ITEMS:
        return BatchProof(None, "two different items are needed to verify it")
    try:
        start = time.perf_counter()
        singles = [run(items.whole(index)) for index in range(PROOF_ITEMS)]
        sizes = [2, PROOF_ITEMS]
        if time.perf_counter() - start < PROOF_ITEMS * QUICK_SECONDS and len(items) > PROOF_ITEMS:
            sizes.append(len(items))
            singles += [run(items.whole(index)) for index in range(PROOF_ITEMS, len(items))]
        batches = [run(_stack(items, axes, range(size))) for size in sizes]
    except RuntimeFailure as error:
        # Many items may need more memory than there is, and a run may fail by chance: neither says that the model takes one item only.
        only_one = _runs(run, items.whole(0)) and not _runs(run, _stack(items, axes, range(2)))
        why = f"the model does not run on several items at once ({quoted(error.message, 150)})"
        return BatchProof(None, why, axes if only_one else {})
    proved: dict[str, int] = dict(axes)
    for tensor in signature.outputs:
        alone, together = ([answer[tensor.name] for answer in runs] for runs in (singles, batches))
        axis = _output_axis(alone, together, sizes)
        if axis is None:
            why = f"the output {tensor.name!r} for several items differs from the outputs for each of them"
            ranks = {answer.ndim for answer in (*alone, *together)}
            return BatchProof(None, why, axes if len(ranks) > 1 else {})
        proved[tensor.name] = axis
    return BatchProof(proved)


def _runs(run: RunModel, given: Arrays) -> bool:
    try:
        run(given)
    except RuntimeFailure:
        return False
    return True


def _stack(items: Items, axes: Mapping[str, int], indices: Sequence[int]) -> dict[str, Array]:
    wholes = [items.whole(index) for index in indices]
    return {name: np.concatenate([whole[name] for whole in wholes], axis=axes[name]) for name in wholes[0]}


def _output_axis(singles: list[Array], batches: list[Array], sizes: list[int]) -> int | None:
    """The axis along which each output in `batches` holds the answers to its items, one after the other."""
    for axis in range(singles[0].ndim):
        lengths = [answer.shape[axis] if answer.ndim > axis else None for answer in (singles[0], *batches)]
        if lengths == [1, *sizes] and all(
            _joined(singles[:size], axis, batch) for size, batch in zip(sizes, batches, strict=True)
        ):
            return axis
    return None


def _joined(singles: list[Array], axis: int, batch: Array) -> bool:
    shapes = {answer.shape for answer in singles}
    return len(shapes) == 1 and _alike(np.concatenate(singles, axis=axis), batch)


def _alike(wanted: Array, answer: Array) -> bool:
    profile = OutputProfile()
    profile.add(wanted)
    return within_noise(wanted, answer, profile.noise())


def settled(signature: Signature, proof: BatchProof, answers: Sequence[Arrays]) -> Signature:
    """The signature with the proved batch axes, with 1 where there can be one item only, and with those dimensions of the output shapes that the
    answers confirm."""

    def with_axis(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        axis = None if proof.axes is None else proof.axes[tensor.name]
        fixed = proof.alone.get(tensor.name)
        sizes = tuple(-1 if place == axis else 1 if place == fixed else size for place, size in enumerate(shape))
        return tensor.model_copy(update={"shape": sizes, "batch_axis": axis})

    return Signature(
        inputs=tuple(with_axis(tensor, tensor.shape) for tensor in signature.inputs),
        outputs=tuple(
            with_axis(tensor, _observed(tensor, [answer[tensor.name] for answer in answers]))
            for tensor in signature.outputs
        ),
    )


def _observed(tensor: Tensor, answers: list[Array]) -> tuple[int, ...]:
    """The declared shape, corrected by the answers: some files omit or misstate the shapes of outputs."""
    rank = answers[0].ndim
    if any(answer.ndim != rank for answer in answers):
        shapes = " and ".join(str(list(answer.shape)) for answer in answers)
        message = f"the output {tensor.name!r} has a different number of dimensions from item to item ({shapes}), which cannot be served"
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    declared = tensor.shape if len(tensor.shape) == rank else (-1,) * rank
    return tuple(
        size if all(answer.ndim == rank and answer.shape[place] == size for answer in answers) else -1
        for place, size in enumerate(declared)
    )
