"""Sound as models that judge calls take it: the features that speechmos computes from recordings of 16 kHz. All seeded: the same items each time."""

from __future__ import annotations

import numpy as np
from bench.model_data import mel_filters, speech

RATE, WINDOW, HOP = 16000, 512, 256
BANDS = 160
PACKET = 320  # samples: 20 ms
MARKS = 20  # frames of ones and of zeros each, which say that both sides talk


def calls(frames: int, count: int, seed: int = 8) -> np.ndarray:
    """Far end, microphone and what a canceller leaves of its echo, in decibels of mel bands, `[count, 3, frames, 160]`, -1 to 1.

    How loud the echo is, how much of it is left, and how much of the near end is lost with it, differ from item to item.
    """
    random = np.random.default_rng(seed)
    far, near = np.split(speech(RATE, HOP * (frames - 2 * MARKS - 1) + WINDOW + 1, 2 * count, seed), 2)
    marks = np.repeat([1.0, 0.0], MARKS)[:, np.newaxis] * np.ones(BANDS)
    made = []
    for far_end, near_end in zip(far, near, strict=True):
        echo = np.roll(far_end, RATE // 10) * random.uniform(0.05, 0.8)
        left = random.uniform(0.3, 1) * near_end + random.uniform(0, 1) * echo
        made.append([np.concatenate([_decibels(one), marks]) for one in (far_end, near_end + echo, left)])
    return np.array(made, np.float32)


def lost_packets(frames: int, count: int, seed: int = 9) -> np.ndarray:
    """Logarithm of the power of speech of which up to two packets in five are silence, `[count, 1, frames, 257]`."""
    random = np.random.default_rng(seed)
    made = []
    for signal in speech(RATE, HOP * (frames - 1) + WINDOW, count, seed):
        lost = random.random(len(signal) // PACKET + 1) < random.uniform(0, 0.4)
        heard = np.where(np.repeat(lost, PACKET)[: len(signal)], 0, signal)
        made.append([np.log(np.maximum(_power(heard, np.hamming(WINDOW + 1)[:-1]), 1e-12)) / 20])
    return np.array(made, np.float32)


def _decibels(signal: np.ndarray) -> np.ndarray:
    """Mel bands in decibels below the loudest, from -80 to 0 as -1 to 1."""
    bands = _power(signal, np.hanning(WINDOW + 1)) @ mel_filters(RATE, WINDOW + 1, BANDS)
    decibels = 10 * np.log10(np.maximum(bands / bands.max(), 1e-8))
    return np.asarray((decibels + 40) / 40)


def _power(signal: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Power by frame and frequency."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, len(window))[::HOP]
    return np.asarray(np.abs(np.fft.rfft(frames * window, axis=1)) ** 2)
