"""Models that pass a state from one call to the next, recognized by the names of their inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection

from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.errors import SourceError


def states(signature: Signature, passed: Collection[str] = ()) -> list[tuple[str, str]]:
    """Pairs (input, output) that look like a state passed from call to call: `state` and `stateN`, `past…` and `present…`.

    `passed`: outputs that only return an input unchanged, and so carry nothing new to the next call.
    """
    outputs = {tensor.name: tensor for tensor in signature.outputs if tensor.name not in passed}
    pairs = []
    for tensor in signature.inputs:
        name = tensor.name
        after = [f"{name}{end}" for end in ("N", "n", "_n", "_next", "_out", "_new")]
        after += [f"{start}{name}" for start in ("new_", "next_", "out_")]
        after += [name.replace("past", "present", 1), name.replace("past_key_values", "present", 1)]
        successor = next((other for other in after if other != name and other in outputs), None)
        if (
            successor is not None
            and len(outputs[successor].shape) in (0, len(tensor.shape))
            and outputs[successor].dtype == tensor.dtype
        ):
            pairs.append((name, successor))
    # A state stands beside what the call is really about: `audio` -> `audio_out` alone is a filter.
    return pairs if len(pairs) < min(len(signature.inputs), len(outputs)) else []


def refuse_states(signature: Signature, passed: Collection[str] = ()) -> None:
    """Raises SourceError for a model with a state: it cannot be judged call by call, since its errors add up over a stream."""
    pairs = states(signature, passed)
    if pairs:
        given, made = pairs[0]
        message = (
            f"the output {made!r} looks like the next value of the input {given!r}: models that carry state from call to call are not "
            "supported; if each call is independent, rename the output, or set a constant value for the input in source.inputs"
        )
        raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
