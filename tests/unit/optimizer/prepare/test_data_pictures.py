"""Picture files of every kind: their pixels are what was meant, or the file is named with what it is."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fettle.api.reasons import Reason
from fettle.api.vocabulary import Color
from fettle.errors import DataError
from fettle.optimizer.data.columns import Room
from fettle.preprocess.picture import opened
from fettle.runtimes.base import Array

RAMP = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
GREY = (RAMP >> 8).astype(np.uint8)
COLOR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def of(array: Array, mode: str | None = None) -> Image.Image:
    return Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)


def png(kind: int, depth: int, rows: bytes, width: int = 2, height: int = 2) -> bytes:
    """A PNG of two by two pixels that the library itself cannot write."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pgm(most: int, values: Array) -> bytes:
    return b"P5 %d %d %d\n" % (values.shape[1], values.shape[0], most) + values.astype(">u2").tobytes()


def paletted(transparent: int | None = None) -> bytes:
    image = Image.new("P", (8, 6))
    image.putpalette([*(255, 0, 0), *(0, 255, 0), *(0, 0, 255)])
    image.putdata([1] * 48)
    return saved(image, transparency=transparent) if transparent is not None else saved(image)


def with_alpha(array: Array, alpha: int) -> bytes:
    image = Image.fromarray(array)
    image.putalpha(alpha)
    return saved(image)


def read(content: bytes, color: Color = Color.RGB) -> tuple[Array, int]:
    """Pixels and what is white among them."""
    picture = opened(io.BytesIO(content), color, Room(1 << 30), "here")
    return np.asarray(picture.image), picture.white


GREEN = np.zeros((6, 8, 3), np.uint8) + np.array([0, 255, 0], np.uint8)


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (saved(of(COLOR)), COLOR),
        (saved(of(COLOR), "TIFF"), COLOR),
        (saved(of(COLOR), "BMP"), COLOR),
        (saved(of(COLOR), "PPM"), COLOR),
        (saved(of(COLOR), "WEBP", lossless=True), COLOR),
        (saved(of(COLOR), "TIFF", compression="tiff_lzw"), COLOR),
        (saved(of(GREY)), np.stack([GREY] * 3, axis=2)),
        (saved(of(GREY > 99)), np.stack([np.where(GREY > 99, 255, 0)] * 3, axis=2)),
        (paletted(), GREEN),
        (paletted(transparent=2), GREEN),
        (with_alpha(COLOR, 255), COLOR),
        (with_alpha(GREY, 255), np.stack([GREY] * 3, axis=2)),
        (png(0, 2, b"\x00\x10\x00\xb0"), np.array([[0, 85], [170, 255]])[:, :, None].repeat(3, 2)),
    ],
)
def test_pictures_of_eight_bits_have_the_pixels_that_were_saved(content: bytes, pixels: Array) -> None:
    found, white = read(content)
    assert white == 255
    assert (found == pixels).all()


@pytest.mark.parametrize(
    "content",
    [
        saved(of(RAMP)),
        saved(of(RAMP), "TIFF"),
        saved(of(RAMP), "TIFF", compression="tiff_lzw"),
        saved(Image.frombytes("I;16B", (8, 6), RAMP.astype(">u2").tobytes()), "TIFF"),
        pgm(65535, RAMP),
    ],
)
def test_pictures_of_sixteen_bits_keep_all_of_them(content: bytes) -> None:
    found, white = read(content)
    assert white == 65535
    assert (found == RAMP).all()


def test_a_picture_of_sixteen_bits_is_turned_as_its_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    found, _ = read(saved(of(RAMP), exif=exif))
    assert (found == RAMP[::-1, ::-1]).all()


def test_grey_is_the_luma_of_a_colour() -> None:
    found, _ = read(saved(of(COLOR)), Color.GRAYSCALE)
    luma = COLOR.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(found - luma).max() <= 1


BOMB = png(0, 8, b"", width=60_000, height=60_000)
ANIMATED = [of(GREY), of(255 - GREY)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png(2, 16, b"\x00" + b"\x12\x34" * 6 + b"\x00" + b"\x12\x34" * 6), "more than 8 bits per channel"),
        (png(6, 16, b"\x00" + b"\xff\xff" * 8 + b"\x00" + b"\xff\xff" * 8), "more than 8 bits per channel"),
        (png(4, 16, b"\x00" + b"\xff\xff" * 4 + b"\x00" + b"\xff\xff" * 4), "more than 8 bits per channel"),
        (b"P6 1 1 65535\n" + b"\x12\x34" * 3, "more than 8 bits per channel"),
        (with_alpha(COLOR, 128), "is transparent in 100.0 % of its pixels"),
        (with_alpha(GREY, 0), "compose it with the background"),
        (paletted(transparent=1), "is transparent in 100.0 %"),
        (saved(of(COLOR, "CMYK"), "JPEG"), "is in CMYK"),
        (saved(of(COLOR, "CMYK"), "TIFF"), "is in CMYK"),
        (saved(of(COLOR, "LAB"), "TIFF"), "is in CIELAB"),
        (saved(of(GREY.astype(np.float32)), "TIFF"), "floating-point numbers"),
        (saved(of(RAMP.astype(np.int32)), "TIFF"), "integers of 32 bits"),
        (saved(ANIMATED[0], "GIF", save_all=True, append_images=ANIMATED[1:]), "contains 2 images"),
        (saved(ANIMATED[0], "TIFF", save_all=True, append_images=ANIMATED[1:]), "contains 2 images"),
        (saved(ANIMATED[0], "PNG", save_all=True, append_images=ANIMATED[1:]), "contains 2 images"),
        (saved(of(RAMP), "TIFF", tiffinfo={262: 0}), "white as zero"),
        (saved(of(COLOR))[:-40], "is not a readable image"),
        (saved(of(COLOR), "JPEG")[:300], "is not a readable image"),
        (b"", "is not a readable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a readable image (BMP, GIF, JPEG, PNG"),
        (BOMB, "here"),
        (png(0, 8, b"", width=12_000, height=12_000), "12000 x 12000 pixels: the items need more than"),
    ],
)
def test_pictures_that_would_be_read_as_something_else_are_refused_by_name(content: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(content)
    assert caught.value.reason == Reason.DATA_INVALID
    assert caught.value.message.startswith("here") and words in caught.value.message
