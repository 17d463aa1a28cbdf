"""A picture as the model's only input, as `preprocess` of the evaluation data says."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fettle.api.data import PreprocessSpec
from fettle.api.signature import Tensor
from fettle.api.vocabulary import Color, Layout
from fettle.errors import DataError
from fettle.preprocess.picture import OPENED_BYTES, Picture, Room
from fettle.runtimes.base import Array

CHANNELS = {Color.RGB: 3, Color.BGR: 3, Color.GRAYSCALE: 1}
Size = tuple[int, int]  # width and height


def size_of(tensor: Tensor, spec: PreprocessSpec, where: str) -> Size:
    """The size of the model's input. Raises DataError if neither the model nor `spec` says it."""
    first = spec.layout is Layout.CHANNELS_FIRST
    height, width = tensor.shape[-2:] if first else tensor.shape[-3:-1]
    size = (spec.width or width, spec.height or height)
    if min(size) < 1:
        raise DataError(f"{where}: the model accepts images of any size: set preprocess.width and preprocess.height")
    return size


def takes_floats(tensor: Tensor) -> bool:
    """Whether the pixels are divided by their white."""
    return not tensor.dtype.startswith(("INT", "UINT"))


def item(picture: Picture, size: Size, tensor: Tensor, spec: PreprocessSpec, where: str) -> Array:
    """The picture as an array of three dimensions, in the order of `spec.layout`. `cast` converts it to the type of the input. Raises DataError."""
    pixels = np.asarray(_scaled(picture.image, size, spec.crop))
    pixels = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    if pixels.shape[2] < CHANNELS[spec.color]:  # grey of 16 bits
        pixels = np.repeat(pixels, CHANNELS[spec.color], axis=2)
    pixels = pixels[:, :, ::-1] if spec.color is Color.BGR else pixels
    values = _normalized(pixels, picture.white, tensor, spec, where)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if spec.layout is Layout.CHANNELS_FIRST else values)


def require_room(picture: Image.Image, size: Size, crop: float | None, room: Room, where: str) -> None:
    """Raises DataError for pictures that become huge when their shorter side is resized, such as a strip of 1 x 10000 pixels."""
    if crop is not None:
        width, height = _before_crop(picture, size, crop)
        room.require(width * height * OPENED_BYTES, f"{where}, scaled to {width} x {height} pixels")


def _scaled(picture: Image.Image, size: Size, crop: float | None) -> Image.Image:
    if crop is None:
        return picture.resize(size, Image.Resampling.BILINEAR)
    width, height = size
    larger = _before_crop(picture, size, crop)
    left, top = (larger[0] - width) // 2, (larger[1] - height) // 2
    return picture.resize(larger, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


def _before_crop(picture: Image.Image, size: Size, crop: float) -> Size:
    """Width and height that the picture is resized to before `size` is cropped from it."""
    width, height = size
    scale = max(width / crop / picture.width, height / crop / picture.height)
    return max(round(picture.width * scale), width), max(round(picture.height * scale), height)


def _normalized(pixels: Array, white: int, tensor: Tensor, spec: PreprocessSpec, where: str) -> Array:
    """Pixels as they are for an integer input; else (pixel / white - mean) / std. Raises DataError."""
    if not takes_floats(tensor):
        if spec.mean or spec.std:
            raise DataError(
                f"{where}: preprocess.mean and std require a floating-point input; {tensor.name} has type {tensor.dtype}"
            )
        if white > 255 and tensor.dtype in ("INT8", "UINT8"):
            raise DataError(
                f"{where} is a 16-bit image, but {tensor.name} has type {tensor.dtype}: convert it to 8 bits"
            )
        return np.rint(pixels).astype(np.int64) if white > 255 else pixels
    channels = CHANNELS[spec.color]
    for name, given in (("mean", spec.mean), ("std", spec.std)):
        if len(given) not in (0, 1, channels):
            raise DataError(
                f"{where}: preprocess.{name} has {len(given)} numbers, expected 1 or {channels} for {spec.color}"
            )
    if 0 in spec.std:
        raise DataError(f"{where}: preprocess.std must not be 0, because the pixels are divided by it")
    mean, std = np.array(spec.mean or (0,), np.float32), np.array(spec.std or (1,), np.float32)
    return ((pixels.astype(np.float32) / white - mean) / std).astype(np.float32)
