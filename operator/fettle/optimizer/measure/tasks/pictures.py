"""Which inputs of a model are pictures: what boxes and masks lie in."""

from __future__ import annotations

from dataclasses import dataclass

from fettle.api.signature import Signature

USUAL_CHANNELS = (1, 3, 4)  # grey, colour, and colour with transparency


@dataclass(frozen=True)
class PictureInput:
    """An input with the axes of a picture; -1 where a size varies."""

    height: int
    width: int
    channels: int


def pictures(signature: Signature) -> tuple[PictureInput, ...]:
    """Inputs of four axes: channels last where only that axis has as many as pictures have, first otherwise."""
    found = []
    for tensor in signature.inputs:
        if len(tensor.shape) == 4:
            _, first, _, last = tensor.shape
            channels_last = last in USUAL_CHANNELS and first not in USUAL_CHANNELS
            height, width = tensor.shape[1:3] if channels_last else tensor.shape[2:]
            found.append(PictureInput(height, width, last if channels_last else first))
    return tuple(found)
