"""A picture file as pixels of a known scale. Pictures whose values the library would change are refused by name.

The library that opens pictures clips and rounds silently; this module knows which of its conversions change values (docs/design/data.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fettle.api.text import percent
from fettle.api.vocabulary import Color
from fettle.errors import DataError
from fettle.preprocess.reading import readable
from fettle.runtimes.base import Array

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
EIGHT_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "YCbCr"})
OPENED_BYTES = 12  # per pixel while a picture is opened, turned, converted and scaled
NARROW = 16  # pixels: each row costs memory of its own, which in narrower pictures is more than that of its pixels
_TIFF_BITS, _TIFF_WHITE_IS_ZERO, _TIFF_FORMAT = 258, 262, 339
_REFUSED = {
    "CMYK": "is in CMYK, which cannot be converted to RGB without the printer's profile",
    "LAB": "is in CIELAB",
    "HSV": "is in HSV",
    "F": "holds floating-point numbers, whose white level is unknown",
    "I": "holds integers of 32 bits, whose white level is unknown",
}
_ADVICE = (
    "convert it to 8 bits per channel as the model's own preprocessing does, or provide the values in a file (.npz)"
)


class Room(Protocol):
    """Where pictures are opened, which has an end."""

    def require(self, size: int, where: str) -> None:
        """Raises DataError where `size` bytes more do not fit."""
        ...


@dataclass(frozen=True)
class Kinds:
    """Formats that are read, and what to do about a picture that cannot be: the last words of an error."""

    formats: tuple[str, ...] = FORMATS
    advice: str = _ADVICE

    def __str__(self) -> str:
        return f"image ({', '.join(self.formats)})"


FILES = Kinds()


@dataclass(frozen=True)
class Picture:
    """The pixels, upright and in the requested colours. `white` is the value of a white pixel: 255 or 65535."""

    image: Image.Image
    white: int


def opened(stream: IO[bytes], color: Color, room: Room, where: str, kinds: Kinds = FILES) -> Picture:
    """Open a picture. Raises DataError, which says what is wrong and what to do."""
    with readable(where, str(kinds)), _identified(stream, room, where, kinds) as image:
        room.require(
            max(image.width, NARROW) * image.height * OPENED_BYTES, f"{where}, {image.width} x {image.height} pixels"
        )
        _refuse(image, where, kinds)
        deep = image.mode in SIXTEEN_BITS or image.mode == "I"
        upright = ImageOps.exif_transpose(image)
        if deep:
            # As floats: resizing keeps what lies between two values, and no conversion clips at 255.
            numbers = np.asarray(upright).astype(np.float32)
            return Picture(Image.fromarray(numbers), 65535)
        return Picture(_solid(upright, where).convert("L" if color is Color.GRAYSCALE else "RGB"), 255)


def _identified(stream: IO[bytes], room: Room, where: str, kinds: Kinds) -> Image.Image:
    try:
        return Image.open(stream, formats=kinds.formats)
    except Image.DecompressionBombError:  # before anybody is told its size
        least = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        room.require(least * OPENED_BYTES, f"{where}, more than {least} pixels")
        raise
    except UnidentifiedImageError as error:  # whose words name an object in memory
        raise DataError(f"{where} is not a readable {kinds}: its format was not recognized") from error


def _refuse(image: Image.Image, where: str, kinds: Kinds) -> None:
    """Raises DataError for a picture whose values the library would change."""
    why = _REFUSED.get(image.mode)
    if image.mode == "I" and image.format == "PPM":  # scaled to 16 bits by the library
        why = None
    elif why is None and image.mode not in EIGHT_BITS | SIXTEEN_BITS:
        why = f"has pixels of mode {image.mode}"
    if image.format == "TIFF":
        why = why or _odd_tiff(image)
    if image.mode in EIGHT_BITS and _is_reduced(image):
        why = "has several channels with more than 8 bits per channel, of which the library keeps only 8"
    if image.mode in SIXTEEN_BITS and "transparency" in image.info:
        why = "has a transparent colour and 16 bits"
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's MPO: the picture, then its previews
        raise DataError(f"{where} contains {getattr(image, 'n_frames', 1)} images: save each in its own file")
    if why is not None:
        raise DataError(f"{where} {why}: {kinds.advice}")


def _is_reduced(image: Image.Image) -> bool:
    if image.format == "PPM":
        return any(isinstance(tile.args, tuple) and int(tile.args[1]) > 255 for tile in image.tile)  # type: ignore[attr-defined]
    if image.format in ("PNG", "TIFF"):
        return any(";16" in str(tile.args) for tile in image.tile)  # type: ignore[attr-defined]
    return False


def _odd_tiff(image: Image.Image) -> str | None:
    """A property of a TIFF's numbers that the library ignores; None if there is none."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = set(tags.get(_TIFF_BITS, (1,)))
    if set(tags.get(_TIFF_FORMAT, (1,))) != {1}:
        return "contains numbers other than unsigned integers"
    if max(bits) not in (1, 2, 4, 8, 16) or len(bits) > 1:
        return f"has {sorted(bits)} bits per channel"
    if image.mode in SIXTEEN_BITS and tags.get(_TIFF_WHITE_IS_ZERO) == 0:
        return "has 16 bits and white as zero"
    return None


def _solid(image: Image.Image, where: str) -> Image.Image:
    """Remove an alpha channel in which nothing is transparent. Raises DataError if something is."""
    if not image.has_transparency_data:
        return image
    whole = image.convert("RGBA")
    alpha: Array = np.asarray(whole.getchannel("A"))
    if alpha.min() < 255:
        share = float((alpha < 255).mean())
        message = f"{where} is transparent in {percent(share, 1)} of its pixels, whose colour is undefined: "
        raise DataError(message + "compose it with the background that the model was trained with")
    return whole.convert("RGB")
