"""Makes the models and the data of the digits example, and measures them.

    python examples/digits/train.py             # data, then all four models (some minutes on one core)
    python examples/digits/train.py --only data first
    python examples/digits/train.py --report    # accuracies, latencies and int8 losses of what lies here, as Markdown

The data are the 1,797 handwritten digits that scikit-learn ships (UCI "Optical Recognition of Handwritten Digits"),
8x8 pixels with 17 grey levels 0..16, enlarged to 32x32 (bicubic, clamped) and rounded to 256 grey levels. They are split
once, stratified by label: 700 to train, 200 to calibrate quantization, 897 to evaluate. Every model has the input `image`,
float32 [N, 1, 32, 32] in [0, 1], and the output `logits`, float32 [N, 10].

The models play the parts of a rollout:

first     a plain CNN, trained briefly: what a team serves today.
better    the same CNN, trained well (augmentation, label smoothing, averaged weights): a canary that should win.
slow      `better`, averaged inside its graph over nine shifted copies of the image: right, but nine times the work.
failing   reads grey levels through a table with a row for each of 16 levels, [0, 1/16), ..., [15/16, 1): a fully white
          pixel, 1.0, has no row. Its team scaled their images by 17 (the number of levels) instead of 16 (the highest
          level), so none of theirs was ever white; 99 % of the images that clients send have a white pixel.

Needs numpy and scikit-learn for the data; torch, onnx and onnxscript to train; onnxruntime, openvino, nncf and sympy
for the report. Seeds are fixed, but floating-point sums differ between CPUs and library versions, so another machine
gets models of the same quality, not of the same bytes.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

HERE = Path(__file__).resolve().parent
MODELS = ("first", "better", "slow", "failing")
SEED = 20
SIDE = 32  # pixels
GREY_LEVELS = 16  # the highest grey level of the source; there are 17, 0 counts
TRAIN, CALIBRATION = 700, 200  # items; the other 897 evaluate
OPSET, IR_VERSION = 18, 10
Array = np.ndarray


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Split:
    """Images float32 [N, 1, 32, 32] in [0, 1] and their labels int64 [N]."""

    image: Array
    labels: Array

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, image=self.image, labels=self.labels)


def enlarge(images: Array, white: int) -> Array:
    """8x8 grey levels [N, 8, 8] as float32 [N, 1, 32, 32], `white` becoming 1.0, in steps of 1/255 as an 8-bit image has."""
    import torch
    from torch.nn.functional import interpolate

    levels = torch.from_numpy(images).float()[:, None]
    large = interpolate(levels, size=(SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, GREY_LEVELS)
    return (large * 255 / white).round().div(255).numpy().astype(np.float32)


def load_splits(white: int = GREY_LEVELS) -> dict[str, Split]:
    """The three disjoint splits; the same items in each whatever `white` is."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    image, labels = enlarge(digits.images, white), digits.target.astype(np.int64)
    everything = np.arange(len(labels))
    train, rest = train_test_split(everything, train_size=TRAIN, stratify=labels, random_state=SEED)
    calibration, evaluation = train_test_split(rest, train_size=CALIBRATION, stratify=labels[rest], random_state=SEED)
    if len(np.unique(image.reshape(len(image), -1), axis=0)) != len(image):
        raise ValueError("two images are the same: the splits would not be disjoint")
    parts = {"train": train, "calibration": calibration, "evaluation": evaluation}
    return {name: Split(image[index], labels[index]) for name, index in parts.items()}


def write_data(out: Path) -> None:
    splits = load_splits()
    splits["calibration"].save(out / "calibration.npz")
    splits["evaluation"].save(out / "evaluation.npz")
    load_splits(white=GREY_LEVELS + 1)["evaluation"].save(out / "failing" / "evaluation.npz")


# -------------------------------------------------------------------------------------------------------------- models


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def digits_cnn(inputs: int = 1) -> nn.Sequential:
    """[N, inputs, 32, 32] -> logits [N, 10]: 0.4 G multiply-adds an image, nearly all at full resolution."""
    from torch import nn

    return nn.Sequential(
        convolution(inputs, 64),
        *(convolution(64, 64) for _ in range(11)),
        convolution(64, 64, stride=2),
        convolution(64, 64, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def level_cnn() -> nn.Module:
    """The CNN behind a table of grey levels: index floor(16 x) has 16 rows for x in [0, 1), and none for x = 1."""
    import torch
    from torch import nn

    class LevelCNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(GREY_LEVELS, 4)
            self.body = digits_cnn(inputs=4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            level = (image * GREY_LEVELS).floor().long().squeeze(1)
            return self.body(self.table(level).permute(0, 3, 1, 2).contiguous())

    return LevelCNN()


def shifted_average(body: nn.Module, pixels: int = 1) -> nn.Module:
    """`body` averaged over the image and its eight copies shifted by `pixels`: the same weights, nine times the work."""
    import torch
    from torch import nn
    from torch.nn.functional import pad

    class ShiftedAverage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            wide = pad(image, (pixels,) * 4)
            offsets = (0, pixels, 2 * pixels)
            copies = [wide[:, :, y : y + SIDE, x : x + SIDE] for y in offsets for x in offsets]
            return self.body(torch.cat(copies)).reshape(len(copies), -1, 10).mean(0)

    return ShiftedAverage()


# ------------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Training:
    epochs: int
    rate: float
    augment: bool = False
    smoothing: float = 0.0
    average: float = 0.0  # decay of the averaged weights, 0 = none
    batch: int = 50


PLAIN = Training(epochs=9, rate=1e-3)
CAREFUL = Training(epochs=40, rate=3e-3, augment=True, smoothing=0.05, average=0.98)


def shake(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image turned up to 0.2 rad, scaled and sheared up to 12 %, moved up to 2.5 pixels; stays within [0, max]."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    def uniform(reach: float) -> torch.Tensor:
        return (torch.rand(len(image), generator=generator) * 2 - 1) * reach

    turn, scale, shear = uniform(0.2), 1 + uniform(0.12), uniform(0.12)
    move = 2.5 * 2 / SIDE
    rows = [
        torch.stack([scale * turn.cos(), -turn.sin() + shear, uniform(move)], 1),
        torch.stack([turn.sin(), scale * turn.cos(), uniform(move)], 1),
    ]
    grid = affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False)
    return grid_sample(image, grid, align_corners=False)


def batches(split: Split, how: Training, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    import torch

    image, labels = torch.from_numpy(split.image), torch.from_numpy(split.labels)
    order = torch.randperm(len(labels), generator=generator)
    for index in order.split(how.batch):
        yield (shake(image[index], generator) if how.augment else image[index]), labels[index]


def fit(model: nn.Module, split: Split, how: Training) -> nn.Module:
    """Trains in bfloat16 where the CPU has it fast; returns the model, or its averaged copy, ready to export."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=how.rate, weight_decay=1e-2)
    steps = how.epochs * math.ceil(len(split.labels) / how.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.rate, total_steps=steps)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(how.average), use_buffers=True)
    model.to(memory_format=torch.channels_last).train()
    for epoch in range(how.epochs):
        started, losses = time.perf_counter(), []
        for image, labels in batches(split, how, generator):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = cross_entropy(model(image), labels, label_smoothing=how.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
            losses.append(loss.item())
        print(f"  epoch {epoch + 1:2d}/{how.epochs}  loss {statistics.fmean(losses):.4f}  {time.perf_counter() - started:.1f} s")
    return (averaged.module if how.average else model).eval()


def export(model: nn.Module, path: Path) -> None:
    """One file, dynamic batch N, none of the exporter's notes (they name folders of this machine)."""
    import onnx
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nothing here uses
    example = torch.zeros(2, 1, SIDE, SIDE)
    program = torch.onnx.export(
        model.to(memory_format=torch.contiguous_format),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    graph = proto.graph
    del proto.metadata_props[:], graph.metadata_props[:], graph.value_info[:], proto.functions[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        del part.metadata_props[:]
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
    proto.graph.name = "digits"
    onnx.checker.check_model(proto, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, path)


def train(names: list[str], out: Path) -> None:
    import torch

    trained: dict[str, nn.Module] = {}

    def better() -> nn.Module:
        if "better" not in trained:
            trained["better"] = fit(digits_cnn(), load_splits()["train"], CAREFUL)
        return trained["better"]

    makers: dict[str, Callable[[], nn.Module]] = {
        "first": lambda: fit(digits_cnn(), load_splits()["train"], PLAIN),
        "better": better,
        "slow": lambda: shifted_average(better()).eval(),
        "failing": lambda: fit(level_cnn(), load_splits(white=GREY_LEVELS + 1)["train"], PLAIN),
    }
    for name in names:
        print(name)
        torch.manual_seed(SEED)
        export(makers[name](), out / name / "model.onnx")
