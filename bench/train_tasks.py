"""Real tasks for `bench/train.py`: data that wheels ship or espeak-ng speaks, and nets that learn them in a minute on two cores."""

from __future__ import annotations

import subprocess
import tempfile
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fettle.store.arrays import Array

TEXTS = Path(__file__).parents[1] / "examples" / "text" / "evaluation.npz"
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SEED = 20
ORT, OPENVINO = ("onnxruntime",), ("openvino",)
NOISE = 15 / 255  # standard deviation of what a photograph is to be cleaned of


@dataclass(frozen=True)
class Task:
    """`items`: inputs by name, the first axis items, and `labels`. `net`: a module that is to learn them in `epochs`, with the learning rate `rate`.

    `max_drop`: of the metric. `train`: parameters of every recipe that trains.
    """

    name: str
    input: str
    items: Callable[[], dict[str, Array]]
    net: Callable[[], nn.Module]
    epochs: int
    max_drop: float
    recipes: tuple[str, ...]
    runtimes: tuple[str, ...] = ORT
    metric: str = "Accuracy"
    rate: float = 2e-3
    batch: int = 64
    train: Mapping[str, Any] = field(default_factory=lambda: {"epochs": 20, "patience": 6})


def digits() -> dict[str, Array]:
    """1,797 handwritten digits (scikit-learn's), enlarged to 32x32."""
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.from_numpy(data.images).float()[:, None] / 16
    large = nn.functional.interpolate(small, size=(32, 32), mode="bicubic", align_corners=False).clamp(0, 1)
    return {"input": large.numpy().astype(np.float32), "labels": data.target.astype(np.int64)}


def tumours() -> dict[str, Array]:
    """569 biopsies of 30 numbers (scikit-learn's breast cancer data), standardized."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    values = (data.data - data.data.mean(0)) / data.data.std(0)
    return {"input": values.astype(np.float32), "labels": data.target.astype(np.int64)}


def texts() -> dict[str, Array]:
    """Messages in 22 languages, as bytes (examples/text)."""
    with np.load(TEXTS) as held:
        return {"tokens": held["tokens"], "labels": held["labels"]}


def photographs() -> dict[str, Array]:
    """884 tiles of two color photographs (scikit-learn's), `[items, 3, 24, 24]`, with Gaussian noise; labels are the tiles without it."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(SEED)
    tiles = np.concatenate([_tiles(whole, 24) for whole in load_sample_images().images])
    clean = tiles.transpose(0, 3, 1, 2).astype(np.float32) / 255
    noisy = clean + NOISE * random.standard_normal(clean.shape)
    return {"input": noisy.astype(np.float32), "labels": clean}


def _tiles(whole: Array, size: int) -> Array:
    rows, columns = whole.shape[0] // size, whole.shape[1] // size
    cut = whole[: rows * size, : columns * size].reshape(rows, size, columns, size, 3)
    return cut.swapaxes(1, 2).reshape(-1, size, size, 3)


def words() -> dict[str, Array]:
    """Spoken commands with noise, `[items, 1, 40, 49]`: the energy of 40 bands every 20 ms. Needs espeak-ng."""
    random = np.random.default_rng(SEED)
    spoken = [(label, signal) for label, word in enumerate(WORDS) for signal in _spoken(word)]
    images, labels = [], []
    for _ in range(2500):
        label, signal = spoken[random.integers(len(spoken))]
        heard = np.zeros(16000)
        start = random.integers(0, max(16000 - len(signal), 1))
        cut = signal[: 16000 - start] * random.uniform(0.3, 1)
        heard[start : start + len(cut)] += cut
        heard += random.standard_normal(16000) * 10 ** random.uniform(-3, -1.3)
        images.append(_bands(heard))
        labels.append(label)
    return {"input": np.stack(images)[:, None].astype(np.float32), "labels": np.array(labels, np.int64)}


def _spoken(word: str) -> list[Array]:
    found = []
    voices = [f"{accent}{kind}" for accent in ("en", "en-us", "en-gb-scotland") for kind in ("", "+f2", "+f4", "+m3")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        for number, voice in enumerate(voices):
            speed, pitch = 120 + 15 * (number % 5), 35 + 10 * (number % 4)
            command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path), word]
            subprocess.run(command, check=True)
            with wave.open(str(path)) as file:
                signal = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
                places = np.arange(0, len(signal), file.getframerate() / 16000)
                found.append(np.interp(places, np.arange(len(signal)), signal))
    return found


def _bands(heard: Array) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(heard, 640)[::320][:49]
    power = np.abs(np.fft.rfft(windows * np.hanning(640), axis=1)) ** 2
    edges = np.unique(np.geomspace(2, 320, 80).astype(int))
    edges = edges[np.linspace(0, len(edges) - 1, 41).astype(int)]
    sums = np.add.reduceat(power, edges[:-1], axis=1)
    return np.log(sums.T + 1e-3)


class Residual(nn.Module):
    """Two convolutions around which the input goes too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the same shape."""
        return torch.relu(x + self.path(x))


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def residual_net(width: int = 64) -> nn.Module:
    """[N, 1, H, W] -> [N, 10]: ResNet-style, `width` channels and twice as many after half of its blocks."""
    return nn.Sequential(
        _down(1, width),
        Residual(width),
        Residual(width),
        _down(width, 2 * width),
        Residual(2 * width),
        Residual(2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(2 * width, 10),
    )


def dense_net() -> nn.Module:
    """[N, 30] -> [N, 2]."""
    return nn.Sequential(nn.Linear(30, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 2))


def cleaning_net() -> nn.Module:
    """[N, 3, H, W] -> the same without noise: plain convolutions without normalization, as in SRCNN."""
    widths = (3, 24, 24, 24, 24, 24, 24, 3)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layer = nn.Conv2d(inputs, outputs, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Reader(nn.Module):
    """Bytes of a message -> its language."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 64)
        self.first = nn.Conv1d(64, 256, 5, padding=2)
        self.second = nn.Conv1d(256, 256, 3, padding=1)
        self.head = nn.Linear(256, 22)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [N, 96] -> [N, 22]"""
        found = torch.relu(self.first(self.table(tokens).transpose(1, 2)))
        scores: torch.Tensor = self.head(torch.relu(self.second(found)).amax(2))
        return scores


class Attention(nn.Module):
    """Attention of a sequence to itself, around which it goes too, and dense layers for each of its places."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.behind = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads = nn.MultiheadAttention(width, heads, batch_first=True)
        self.wide = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the same shape."""
        given = self.before(x)
        x = x + self.heads(given, given, given, need_weights=False)[0]
        mixed: torch.Tensor = x + self.wide(self.behind(x))
        return mixed


class Attending(nn.Module):
    """Bytes of a message -> its language, by attention between groups of five bytes."""

    def __init__(self, width: int = 64, heads: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 32)
        self.enter = nn.Conv1d(32, width, 5, padding=2)
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(2)))
        self.head = nn.Linear(width, 22)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [N, 96] -> [N, 22]"""
        found = torch.relu(self.enter(self.table(tokens).transpose(1, 2)))
        scores: torch.Tensor = self.head(self.blocks(found.transpose(1, 2)).amax(1))
        return scores


PLAIN = "float32"  # the recipe that only converts: what others gain in the same runtime refers to it
RECIPES: dict[str, list[dict[str, Any]]] = {
    PLAIN: [{"optimizeGraph": {}}],
    "pruned": [{"prune": {"ratio": 0.5}}],
    "pruned-twice-as-fast": [{"prune": {"targetSpeedup": 2}}],
    "chain": [{"prune": {"ratio": 0.5}}, {"distill": {"temperature": 2}}, {"quantize": {"mode": "Static"}}],
    "low-rank": [{"lowRank": {"rank": 0.4}}],
    "low-rank-by-energy": [{"lowRank": {"energy": 0.95}}],
    "separable": [{"replace": {}}],
    "narrow": [{"distill": {"student": {"width": 0.5}, "temperature": 2}}],
    "shallow": [{"distill": {"student": {"depth": 0.5}, "temperature": 2}}],
    "narrow-by-features": [{"distill": {"student": {"width": 0.5}, "temperature": 2, "features": {}}}],
    "without-blocks": [{"prune": {"unit": "Blocks", "ratio": 0.5}}],
    "without-heads": [{"prune": {"unit": "Heads", "ratio": 0.5}}],
    "magnitude": [{"prune": {"method": "Magnitude", "sparsity": 0.8}}],
    "two-of-four": [{"prune": {"method": "NM"}}],
    "int8": [{"quantize": {"mode": "Static"}}],
    "int8-aware": [{"quantize": {"mode": "Aware"}}],
}
OF_RESIDUAL = (PLAIN, "pruned", "pruned-twice-as-fast", "without-blocks", "chain", "int8")
OF_SOUND = (PLAIN, "separable", "narrow", "narrow-by-features", "low-rank")
OF_TEXT = (PLAIN, "pruned", "low-rank", "chain", "int8")
OF_ATTENTION = (PLAIN, "without-heads", "without-blocks", "shallow")
OF_NUMBERS = (PLAIN, "low-rank-by-energy", "magnitude", "two-of-four", "int8")
OF_PHOTOGRAPHS = (PLAIN, "int8", "int8-aware")
TASKS = {
    task.name: task
    for task in (
        Task("tumours", "input", tumours, dense_net, 40, 0.05, OF_NUMBERS, train={"epochs": 60, "patience": 20}),
        Task("digits", "input", digits, residual_net, 12, 0.02, OF_RESIDUAL, runtimes=OPENVINO),
        Task(
            "photographs",
            "input",
            photographs,
            cleaning_net,
            40,
            0.00005,  # where pixels are 0 to 1: about a tenth of what the net itself leaves
            OF_PHOTOGRAPHS,
            metric="MeanSquaredError",
            batch=32,
            train={"epochs": 20, "batchSize": 32},
        ),
        Task("languages", "tokens", texts, Reader, 10, 0.02, OF_TEXT),
        Task("messages", "tokens", texts, Attending, 20, 0.02, OF_ATTENTION, train={"epochs": 10, "patience": 5}),
        Task(
            "words", "input", words, partial(residual_net, 32), 10, 0.02, OF_SOUND, train={"epochs": 10, "patience": 5}
        ),
    )
}
LOSSES = {"Accuracy": nn.functional.cross_entropy, "MeanSquaredError": nn.functional.mse_loss}


def learned(task: Task, items: dict[str, Array]) -> nn.Module:
    """The net after its training on `items`."""
    torch.manual_seed(SEED)
    module, labels, loss = task.net(), torch.from_numpy(items["labels"]), LOSSES[task.metric]
    inputs = torch.from_numpy(items[task.input])
    optimizer = torch.optim.AdamW(module.parameters(), lr=task.rate, weight_decay=1e-2)
    steps = task.epochs * -(-len(labels) // task.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.rate, total_steps=steps)
    for _ in range(task.epochs):
        for places in torch.randperm(len(labels)).split(task.batch):
            optimizer.zero_grad()
            loss(module(inputs[places]), labels[places]).backward()
            optimizer.step()
            schedule.step()
    return module.eval()
