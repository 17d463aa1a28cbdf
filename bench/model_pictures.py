"""Pictures in which detectors of `bench/model_catalog.py` find something. Seeded: the same each time; none is kept in the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bench import model_data as data
from bench.wheels import unpack
from PIL import Image, ImageDraw, ImageEnhance

PHOTOGRAPHS = "scikit-image==0.26.0"  # astronaut.png: NASA, public domain; camera.png: CC0 (skimage/data/README.txt)
PEOPLE = ("astronaut.png", "camera.png")


def people(size: int, count: int, work: Path, seed: int = 11) -> np.ndarray:
    """Portraits, cut, flipped, lit and set differently before photographs without people, `[count, size, size, 3]`, 0 to 255."""
    random = np.random.default_rng(seed)
    folder = unpack((PHOTOGRAPHS,), work) / "skimage" / "data"
    wholes = [Image.open(folder / name).convert("RGB") for name in PEOPLE]
    made = []
    for number, background in enumerate(data.photographs(size, count, seed)):
        # Two of three are the astronaut: the photographer shows his face from the side only.
        portrait = _portrait(wholes[number % 3 == 2], size, random)
        image = Image.fromarray(background.astype(np.uint8))
        left, top = (int(random.integers(0, size - extent + 1)) for extent in portrait.size)
        image.paste(portrait, (left, top))
        made.append(np.asarray(image, np.float32))
    return np.stack(made)


def _portrait(whole: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Most of a picture, at half to all of `size`."""
    width, height = whole.size
    left, top = (int(random.uniform(0, 0.15) * extent) for extent in (width, height))
    cut = whole.crop((left, top, width - int(random.uniform(0, 0.15) * width), height))
    scale = size * random.uniform(0.5, 1) / max(cut.size)
    sized = cut.resize((int(cut.width * scale), int(cut.height * scale)), Image.Resampling.BILINEAR)
    lit = ImageEnhance.Brightness(sized).enhance(random.uniform(0.7, 1.3))
    return lit.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else lit


def puzzles(size: int, count: int, seed: int = 12) -> np.ndarray:
    """Slider captchas: a photograph of two by one with a dark gap and the piece that fits it, on grey, `[count, size, size, 3]`, 0 to 255."""
    random = np.random.default_rng(seed)
    made = []
    for background in data.photographs(size, count, seed):
        photograph = Image.fromarray(background.astype(np.uint8)).resize((size, size // 2), Image.Resampling.BILINEAR)
        side = int(random.integers(size // 8, size // 6))
        top = int(random.integers(0, size // 2 - side))
        gap = int(random.integers(2 * side, size - side))
        shape = _piece(side, random)
        piece = photograph.crop((gap, top, gap + side, top + side))
        dark = ImageEnhance.Brightness(piece).enhance(random.uniform(0.3, 0.6))
        photograph.paste(dark, (gap, top), shape)
        photograph.paste(piece, (int(random.integers(0, side // 2)), top), shape)
        image = Image.new("RGB", (size, size), (114, 114, 114))  # as the model's own package fills up
        image.paste(photograph, (0, size // 4))
        made.append(np.asarray(image, np.float32))
    return np.stack(made)


def _piece(side: int, random: np.random.Generator) -> Image.Image:
    """The mask of a jigsaw piece: a square with two knobs."""
    mask = Image.new("L", (side, side))
    draw, knob = ImageDraw.Draw(mask), side // 5
    draw.rectangle((knob, knob, side - 1 - knob, side - 1 - knob), fill=255)
    for horizontal in (True, False):
        at = 0 if random.random() < 0.5 else side - 2 * knob
        left, top = (side // 2 - knob, at) if horizontal else (at, side // 2 - knob)
        draw.ellipse((left, top, left + 2 * knob, top + 2 * knob), fill=255)
    return mask
