"""Makes the models and the data of the digits example, and measures them.

    python examples/digits/train.py             # data, then all five models (some minutes on one core)
    python examples/digits/train.py --only data first
    python examples/digits/train.py --report    # accuracies, latencies and int8 losses of what lies here, as Markdown

The data are the 1,797 handwritten digits that scikit-learn ships (UCI "Optical Recognition of Handwritten Digits"):
8x8 pixels with 17 grey levels, 0 to 16, enlarged to 32x32 (bicubic, clamped) and rounded to 256 grey levels. They are
split once, stratified by label: 700 to train, 200 to calibrate quantization, 897 to evaluate. Every model has the input
`image`, float32 [N, 1, 32, 32] in [0, 1], and the output `logits`, float32 [N, 10].

The models play the parts of a rollout:

first     a plain CNN, trained briefly: what a team serves today.
better    the same CNN, trained well (augmentation, label smoothing, averaged weights): a canary that should win.
slow      `better`, averaged inside its graph over nine shifted copies of the image: right, but nine times the work.
failing   reads grey levels through a table with a row for each of 16 levels, [0, 1/16), ..., [15/16, 1): a fully white
          pixel, 1.0, has no row. Its team scaled their images by 17 (the number of levels) instead of 16 (the highest
          level), so none of theirs was ever white; 99 % of the images that clients send have a white pixel.
wrong     `better` of a team that labelled its digits by name, "zero" to "nine", and let its tools number the classes: they
          are in alphabetical order, "eight" first. As fast and as sure as `better`, and it never fails: its answers mean
          something else.

Needs numpy, torch, scikit-learn, onnx and onnxscript to make all this; onnxruntime, openvino, nncf and sympy
for the report. Seeds are fixed, but floating-point sums differ between CPUs and library versions, so another machine
gets models of the same quality, not of the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
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
MODELS = ("first", "better", "slow", "failing", "wrong")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
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
    """Grey levels [N, 8, 8] as float32 [N, 1, 32, 32], `white` becoming 1.0, in steps of 1/255 as 8 bits hold."""
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
    """`body` averaged over the image and eight copies of it shifted by `pixels`: same weights, nine times the work."""
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


HASTY = Training(epochs=6, rate=1e-3)
PLAIN = Training(epochs=14, rate=2e-3)
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
        mean, seconds = statistics.fmean(losses), time.perf_counter() - started
        print(f"  epoch {epoch + 1:2d}/{how.epochs}  loss {mean:.4f}  {seconds:.1f} s")
    return (averaged.module if how.average else model).eval()


def in_alphabetical_order(source: Path, target: Path) -> None:
    """The model of `source` with its classes in the order of their names, as training on labels of that order gives it."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(source)
    last = proto.graph.node[-1]
    order = [NAMES.index(name) for name in sorted(NAMES)]
    for part in proto.graph.initializer:
        if part.name in last.input[1:]:  # Gemm's weights [10, 64] and bias [10]
            part.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(part)[order], part.name))
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, target)


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
        "first": lambda: fit(digits_cnn(), load_splits()["train"], HASTY),
        "better": better,
        "slow": lambda: shifted_average(better()).eval(),
        "failing": lambda: fit(level_cnn(), load_splits(white=GREY_LEVELS + 1)["train"], PLAIN),
    }
    for name in names:
        print(name)
        if name == "wrong":
            in_alphabetical_order(out / "better" / "model.onnx", out / name / "model.onnx")
            continue
        torch.manual_seed(SEED)
        export(makers[name](), out / name / "model.onnx")


# -------------------------------------------------------------------------------------------------------------- report

Run = Callable[[Array], Array]  # images [N, 1, 32, 32] -> logits [N, 10]


def onnxruntime_session(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["logits"], {"image": image})[0]


def openvino_session(model: object) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda image: request.infer({"image": image})["logits"].copy()


def openvino_int8(path: Path, calibration: Array) -> Run:
    """NNCF's post-training quantization, default preset, on the IR."""
    import nncf
    import openvino

    items = [{"image": calibration[i : i + 1]} for i in range(len(calibration))]
    with contextlib.redirect_stdout(sys.stderr):  # its progress bar is not part of the report
        quantized = nncf.quantize(openvino.Core().read_model(path), nncf.Dataset(items), subset_size=len(items))
    return openvino_session(quantized)


def onnxruntime_int8(path: Path, calibration: Array) -> Run:
    """onnxruntime's static quantization: QDQ, activations U8, weights S8 per channel, MinMax."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Items(CalibrationDataReader):
        def __init__(self) -> None:
            self.items = iter(calibration)

        def get_next(self) -> dict[str, Array] | None:
            item = next(self.items, None)
            return None if item is None else {"image": item[None]}

    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(path, prepared)
        quantize_static(
            prepared,
            quantized,
            Items(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnxruntime_session(quantized)


def tango_upper(worse: int, better: int, n: int, alpha: float = 0.05) -> float:
    """Upper end of Tango's score interval (1998) of the drop in accuracy: `worse` and `better` flips among n pairs."""
    critical = statistics.NormalDist().inv_cdf(1 - alpha / 2)

    def z(drop: float) -> float:
        a = 2 * n
        b = -worse - better + (2 * n - worse + better) * drop
        c = -better * drop * (1 - drop)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        return (worse - better - n * drop) / math.sqrt(n * max(2 * q + drop * (1 - drop), 1e-300))

    low, high = (worse - better) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if z(middle) > -critical else (low, middle)
    return high


def predict(run: Run, image: Array) -> Array:
    return np.concatenate([run(image[i : i + 50]) for i in range(0, len(image), 50)]).argmax(1)


def milliseconds(runs: dict[str, Run], image: Array, rounds: int = 7, seconds: float = 0.3) -> dict[str, float]:
    """Median of single images, the runs taking turns: load from elsewhere then falls on all of them alike."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times, ends = [], time.perf_counter() + seconds
            while len(times) < 5 or time.perf_counter() < ends:
                started = time.perf_counter()
                run(image)
                times.append((time.perf_counter() - started) * 1000)
            found[name].append(statistics.median(times[2:]))
    return {name: statistics.median(values) for name, values in found.items()}


def cpu_class() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    telling = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    has = [flag for flag in telling if flag in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.machine())}; {', '.join(has) or 'no vector extensions known'}"


def failures(run: Run, image: Array) -> int:
    """How many of the images, one at a time, make the runtime raise."""
    count = 0
    for i in range(len(image)):
        try:
            run(image[i : i + 1])
        except Exception:  # noqa: BLE001 - each runtime raises its own; that it raises is what is counted
            count += 1
    return count


def forms(name: str, out: Path, calibration: Array) -> dict[str, Run]:
    path = out / name / "model.onnx"
    runs = {"onnxruntime fp32": onnxruntime_session(path)}
    if name == "failing":  # OpenVINO answers a missing row with zeros instead of an error
        return runs
    return runs | {
        "openvino fp32": openvino_session(path),
        "openvino int8": openvino_int8(path, calibration),
        "onnxruntime int8": onnxruntime_int8(path, calibration),
    }


def report(out: Path) -> None:
    """Prints Markdown: for each model and form its accuracy, flips against the fp32 source, proved drop, latency."""

    def load(path: Path) -> Split:
        with np.load(path) as file:
            return Split(file["image"], file["labels"])

    calibration, live = load(out / "calibration.npz"), load(out / "evaluation.npz")
    own = load(out / "failing" / "evaluation.npz")
    judged = [name for name in MODELS if name != "wrong"]  # whose forms are `better`'s
    runs = {(name, form): run for name in judged for form, run in forms(name, out, calibration.image).items()}
    times = milliseconds(runs, own.image[:1])
    print(f"CPU class: {cpu_class()}; one thread, one image, {len(live.labels)} evaluation images\n")
    print("| model | file | form | accuracy | flips worse / better | upper end of the drop, 1 ; 4 finalists | p50 |")
    print("|---|---|---|---|---|---|---|")
    for (name, form), run in runs.items():
        data = own if name == "failing" else live
        right = predict(run, data.image) == data.labels
        if form == "onnxruntime fp32":
            source = right
        worse, better, n = int((source & ~right).sum()), int((~source & right).sum()), len(right)
        drop = " ; ".join(f"{tango_upper(worse, better, n, 0.05 / m):.4f}" for m in (1, 4))
        size = f"{(out / name / 'model.onnx').stat().st_size / 1e6:.2f} MB"
        milli = times[name, form]
        print(f"| {name} | {size} | {form} | {right.mean():.4f} | {worse} / {better} | {drop} | {milli:.2f} ms |")
    run = runs["failing", "onnxruntime fp32"]
    print(f"\n`failing` raises for {failures(run, own.image)} of {len(own.labels)} images of its own evaluation")
    print(f"and for {failures(run, live.image)} of {len(live.labels)} images of evaluation.npz.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("data", *MODELS)
    add = parser.add_argument
    add("--out", type=Path, default=HERE, help="folder to write to or to report on (default: this folder)")
    add(
        "--only",
        nargs="+",
        choices=parts,
        default=parts,
        metavar="PART",
        help=f"parts to make: any of {', '.join(parts)}",
    )
    add("--threads", type=int, default=1, help="number of threads for training (default 1; the result depends on it)")
    add("--report", action="store_true", help="measure the existing models and print Markdown; train nothing")
    options = parser.parse_args()
    if options.report:
        os.environ.setdefault("NNCF_CI", "1")  # no telemetry
        return report(options.out)
    import torch

    torch.set_num_threads(options.threads)
    if "data" in options.only:
        write_data(options.out)
    return train([name for name in MODELS if name in options.only], options.out)


if __name__ == "__main__":
    sys.exit(main())
