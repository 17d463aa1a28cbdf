"""Evaluation data for `bench/models.py`: rendered text, speech from espeak-ng, photographs, files, tokens. All seeded: the same items each time."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import tempfile
import wave
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.signal import resample_poly
from sklearn.datasets import load_breast_cancer, load_sample_images

SENTENCES = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "She sells sea shells by the shore while the tide is coming in.",
    "A model that answers fast but wrong is of no use to anybody.",
    "Please call me back on Monday morning, shortly after nine.",
    "Rain is expected in the west, with strong winds towards evening.",
    "Twelve boxes of oranges were delivered to the wrong address.",
)
WORDS = (
    "invoice",
    "total",
    "42.50",
    "Kubernetes",
    "street",
    "March",
    "2026",
    "paid",
    "order",
    "No. 7",
    "tax",
    "Fettle",
)
ARABIC_WORDS = "من في على هذا كان إلى عن مع كل بعد يوم بيت كتاب مدينة شمس قمر ماء طريق رجل امرأة ولد مدرسة سوق بحر جبل"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Pillow's own: no font of this machine is needed


def lines(width: int, height: int, count: int, seed: int = 1) -> np.ndarray:
    """Lines of printed text, `[count, height, width]`, 0 to 255."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        image = Image.new("L", (width, height), int(random.integers(190, 256)))
        text = " ".join(random.choice(WORDS, 3))
        place = (int(random.integers(2, 12)), int(random.integers(0, height // 5)))
        ImageDraw.Draw(image).text(place, text, fill=int(random.integers(0, 90)), font=_font(int(height * 0.6)))
        made.append(np.asarray(image, np.float32) + random.normal(0, 6, (height, width)).astype(np.float32))
    return np.clip(np.stack(made), 0, 255)


def pages(size: int, count: int, seed: int = 2) -> np.ndarray:
    """Pages with lines of text here and there, `[count, size, size]`, 0 to 255."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        image = Image.new("L", (size, size), int(random.integers(200, 256)))
        draw = ImageDraw.Draw(image)
        for _ in range(int(random.integers(3, 9))):
            place = (int(random.integers(0, size // 2)), int(random.integers(0, size - 30)))
            text = str(random.choice(SENTENCES))
            draw.text(place, text, fill=int(random.integers(0, 100)), font=_font(int(random.integers(10, 28))))
        made.append(np.asarray(image, np.float32))
    return np.stack(made)


def photographs(size: int, count: int, seed: int = 3) -> np.ndarray:
    """Crops of scikit-learn's two photographs, flipped and resized, `[count, size, size, 3]`, 0 to 255."""
    random = np.random.default_rng(seed)
    wholes = [Image.fromarray(one) for one in load_sample_images().images]
    made = []
    for number in range(count):
        whole = wholes[number % len(wholes)]
        side = int(random.integers(120, min(whole.size)))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in whole.size)
        crop = whole.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
        array = np.asarray(crop, np.float32)
        made.append(array[:, ::-1] if random.random() < 0.5 else array)
    return np.stack(made)


def captchas(size: int, count: int, seed: int = 6) -> np.ndarray:
    """Photographs with three to six large letters, each turned and somewhere else, `[count, size, size, 3]`, 0 to 255."""
    random = np.random.default_rng(seed)
    made = []
    for background in photographs(size, count, seed):
        image = Image.fromarray(background.astype(np.uint8)).convert("RGBA")
        places = random.permutation(9)[: int(random.integers(3, 7))]
        for place in places:
            side = size // 6
            letter = Image.new("RGBA", (side, side))
            colour = (*random.integers(0, 256, 3).tolist(), 255)
            text = chr(int(random.integers(ord("A"), ord("Z") + 1)))
            ImageDraw.Draw(letter).text((side / 2, side / 2), text, colour, _font(int(side * 0.8)), anchor="mm")
            turned = letter.rotate(float(random.uniform(-40, 40)), Image.Resampling.BICUBIC)
            left, top = (int(cell * size / 3 + random.integers(0, size // 6)) for cell in divmod(int(place), 3))
            image.alpha_composite(turned, (left, top))
        made.append(np.asarray(image.convert("RGB"), np.float32))
    return np.stack(made)


def codes(width: int, height: int, count: int, seed: int = 8) -> np.ndarray:
    """Codes to be typed off: four to six letters and digits, each turned and of another size, `[count, height, width]`, 0 to 255."""
    random = np.random.default_rng(seed)
    signs = [*"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghkmnpqrstuvwxyz23456789"]
    made = []
    for _ in range(count):
        image = Image.new("L", (width, height), int(random.integers(190, 256)))
        chosen = random.choice(signs, int(random.integers(4, 7)))
        step = width / (len(chosen) + 1)
        for place, sign in enumerate(chosen):
            mask = Image.new("L", (height, height))
            font = _font(int(height * random.uniform(0.55, 0.75)))
            ImageDraw.Draw(mask).text((height / 2, height / 2), sign, 255, font, anchor="mm")
            turned = mask.rotate(float(random.uniform(-25, 25)), Image.Resampling.BICUBIC)
            left = int(step * (place + 1) - height / 2)
            image.paste(int(random.integers(0, 90)), (left, int(random.integers(-4, 5))), turned)
        made.append(np.asarray(image, np.float32) + random.normal(0, 6, (height, width)).astype(np.float32))
    return np.clip(np.stack(made), 0, 255)


def planes(images: np.ndarray, mean: float = 0.0, scale: float = 255.0) -> np.ndarray:
    """Images `[items, height, width(, 3)]` as `[items, 3, height, width]`, `(x - mean) / scale`."""
    coloured = images if images.ndim == 4 else np.repeat(images[..., np.newaxis], 3, axis=3)
    return np.ascontiguousarray((coloured.transpose(0, 3, 1, 2) - mean) / scale, dtype=np.float32)


def speech(rate: int, samples: int, count: int, seed: int = 4) -> np.ndarray:
    """Spoken sentences with noise of different strength, `[count, samples]` at `rate` Hz, -1 to 1. Needs espeak-ng."""
    random = np.random.default_rng(seed)
    spoken = cycle(_spoken(rate))
    made = []
    for _ in range(count):
        signal = np.concatenate(list(islice(spoken, 1 + samples // rate)))
        signal = np.tile(signal, 1 + samples // len(signal))[:samples]
        noise = random.standard_normal(samples) * 10 ** random.uniform(-4, -1)
        made.append(np.clip(np.roll(signal, int(random.integers(samples))) * random.uniform(0.3, 1) + noise, -1, 1))
    return np.stack(made).astype(np.float32)


def mels(rate: int, frames: int, count: int, bands: int) -> np.ndarray:
    """Energy of speech in bands of the mel scale, 25 ms every 10 ms, `[count, frames, bands]`."""
    step, width = rate // 100, rate // 40
    spoken = speech(rate, step * frames + width, count)
    windows = np.lib.stride_tricks.sliding_window_view(spoken, width, axis=1)[:, ::step][:, :frames]
    power = np.abs(np.fft.rfft(windows * np.hanning(width), axis=2)) ** 2
    return np.asarray(power @ mel_filters(rate, width, bands), np.float32)


def mel_filters(rate: int, width: int, bands: int) -> np.ndarray:
    """From the frequencies of a window of `width` samples to bands of the mel scale, `[width // 2 + 1, bands]`."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 1400), bands + 2) / 2595) - 1)
    places = np.fft.rfftfreq(width, 1 / rate)[:, np.newaxis]
    rising = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    filters: np.ndarray = np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])
    return filters


def _spoken(rate: int) -> list[np.ndarray]:
    if shutil.which("espeak-ng") is None:
        raise RuntimeError("espeak-ng, which speaks the sentences, is not installed: apt-get install espeak-ng")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, sentence in enumerate(SENTENCES):
            path = Path(folder) / f"{number}.wav"
            voice = ("en", "en-us", "en+f3")[number % 3]
            subprocess.run(["espeak-ng", "-v", voice, "-w", str(path), sentence], check=True)
            with wave.open(str(path)) as file:
                signal = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
                found.append(resample_poly(signal, rate, file.getframerate()))
    return found


def file_starts(count: int, seed: int = 5) -> np.ndarray:
    """First and last 1024 bytes of files of the Python installation, `[count, 2048]`; 256 where there is none."""
    random = np.random.default_rng(seed)
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    paths += sorted(Path(sysconfig.get_paths()["purelib"]).glob("*/*"))
    wanted = [path for path in paths if path.is_file() and path.stat().st_size > 8]
    made = np.full((count, 2048), 256, np.int32)
    for row, index in zip(made, random.permutation(len(wanted)), strict=False):
        content = np.frombuffer(wanted[index].read_bytes(), np.uint8)
        head, tail = content[:1024], content[-1024:]
        row[: len(head)] = head
        row[2048 - len(tail) :] = tail
    return made


def letters(length: int, count: int, last: int, seed: int = 6) -> np.ndarray:
    """Numbers of letters, `[count, length]`, each below `last`: common Arabic words in another order each, as far as a model's own numbering is not
    known."""
    random = np.random.default_rng(seed)
    made = (" ".join(random.permutation(ARABIC_WORDS.split())) for _ in range(count))
    return np.array([[1 + ord(letter) % (last - 1) for letter in text[:length]] for text in made], np.int64)


def patients(count: int) -> np.ndarray:
    """Measurements of tumours, the first `count` of 569, `[count, 30]`."""
    return np.asarray(load_breast_cancer().data[:count], np.float32)
