"""A picture as the inputs of a request, made by the code that made the evaluation items. Only servers of models that take pictures import this.

Pictures of strangers are bounded in three ways before they take memory or time: by their pixels, which a file of a few bytes can have without
end; by the scans of a JPEG, of which each goes through all pixels again; and by the seconds of CPU that reading the file takes.
"""

from __future__ import annotations

import io
import time

import numpy as np

from fettle.api.data import PreprocessSpec
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.preprocess.cast import cast
from fettle.preprocess.item import item, require_room, size_of
from fettle.preprocess.picture import OPENED_BYTES, Kinds, opened
from fettle.runtimes.base import Array
from fettle.server.checks import invalid, require_shape
from fettle.server.request import Code, RequestError

WHERE = "the image"
FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG"}
MOST_SCANS = 100  # progressive ones have about ten
MOST_CPU_SECONDS = 5.0
_SCAN = b"\xff\xda"  # in a scan itself, a zero follows each 255
_ADVICE = "send it with 8 bits per channel in RGB or grey, or send the values as a tensor"


class _TooLarge(DataError):
    """More pixels than are taken."""


class _Pixels:
    """The room of one picture."""

    def __init__(self, most: int) -> None:
        self._most = most

    def require(self, size: int, where: str) -> None:
        """Raises _TooLarge."""
        if size > self._most * OPENED_BYTES:
            limit = f"the limit is {self._most} (FETTLE_SERVER_MAX_IMAGE_PIXELS)"
            raise _TooLarge(f"{where}: {limit}; send it scaled down")


class _Timed(io.BytesIO):
    """A file that is read for so many seconds of this thread's CPU. Decoders ask for the next part every few milliseconds."""

    def __init__(self, body: bytes | bytearray, seconds: float) -> None:
        super().__init__(body)
        self._seconds, self._until = seconds, time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises DataError when the time is over."""
        if time.thread_time() > self._until:
            raise DataError(
                f"{WHERE} takes more than {self._seconds:g} s of CPU to decode: save it again, without metadata"
            )
        return super().read(size)


class Pictures:
    """Makes the only input of a model of a picture."""

    def __init__(self, signature: Signature, spec: PreprocessSpec) -> None:
        """Raises DataError if the model has no input for a picture."""
        (self._tensor,) = signature.inputs
        self._spec = spec
        self._size = size_of(self._tensor, spec, "the artifact's preprocess")

    def inputs(self, body: bytes | bytearray, kind: str, most_pixels: int) -> dict[str, Array]:
        """The input of one item. `kind`: a key of FORMATS. Raises RequestError INVALID, TOO_LARGE."""
        try:
            array = self._item(body, FORMATS[kind], _Pixels(most_pixels))
        except _TooLarge as error:
            raise RequestError(Code.TOO_LARGE, error.message) from error
        except DataError as error:
            raise invalid(error.message) from error
        require_shape(self._tensor, self._tensor.dtype, array.shape)
        return {self._tensor.name: array}

    def _item(self, body: bytes | bytearray, name: str, room: _Pixels) -> Array:
        if name == "JPEG" and body.count(_SCAN) > MOST_SCANS:
            raise DataError(f"{WHERE} has more than {MOST_SCANS} scans: save it again as a baseline JPEG")
        spec, tensor = self._spec, self._tensor
        picture = opened(_Timed(body, MOST_CPU_SECONDS), spec.color, room, WHERE, Kinds((name,), _ADVICE))
        require_room(picture.image, self._size, spec.crop, room, WHERE)
        pixels = cast(tensor.dtype, item(picture, self._size, tensor, spec, WHERE), WHERE)
        return pixels if pixels.ndim == len(tensor.shape) else np.expand_dims(pixels, tensor.batch_axis or 0)
