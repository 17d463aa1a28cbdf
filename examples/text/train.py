"""Makes the model and the data of the text example: which of 22 languages is a message written in?

    python examples/text/train.py --wheels FOLDER    # some minutes on one core
    python examples/text/train.py --report           # accuracy of what lies here

The texts are the translated messages that two PyPI wheels ship (both BSD): Django's and Sphinx's. Bring them first:

    pip download --no-deps --dest FOLDER django==5.2.19 sphinx==9.0.4

A text is its UTF-8 bytes, `tokens` int64 [N, 96], 0 after its end; longer ones are cut. The split is by message: every
translation of one message goes the same way, so no evaluated text is the translation of a trained one. The network is an
embedding, one convolution over five bytes, the maximum over time, and a linear layer; numpy trains it, so nothing but
numpy and onnx is needed. Seeds are fixed; another machine gets a model of the same quality, not of the same bytes.
"""

from __future__ import annotations

import argparse
import gettext
import io
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

HERE = Path(__file__).resolve().parent
LANGUAGES = (
    "cs", "da", "de", "es", "et", "fi", "fr", "hr", "hu", "id", "it",
    "lt", "lv", "nb", "nl", "pl", "pt", "ro", "sk", "sl", "sv", "tr",
)  # fmt: skip
SEED = 20
LENGTH, SHORTEST = 96, 20  # bytes of a text that the model reads; shorter ones say too little
DIMENSION, WINDOW, CHANNELS = 32, 5, 384
CALIBRATION, EVALUATION = 0.1, 0.2  # shares of the messages; the rest trains
OPSET, IR_VERSION = 18, 10
Array = np.ndarray


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Split:
    """Texts as int64 [N, 96] bytes, and the index of their language in LANGUAGES, int64 [N]."""

    tokens: Array
    labels: Array

    def save(self, path: Path) -> None:
        np.savez_compressed(path, tokens=self.tokens, labels=self.labels)


def translations(wheels: Path) -> dict[str, dict[str, str]]:
    """For each English message its translations by language, from the .mo catalogs of all wheels in a folder."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                language = Path(name).parts[-3] if name.endswith(".mo") else ""
                if language not in LANGUAGES:
                    continue
                catalog = gettext.GNUTranslations(io.BytesIO(archive.read(name)))._catalog  # type: ignore[attr-defined]
                for key, text in catalog.items():
                    message = key[0] if isinstance(key, tuple) else key
                    if message and text and text != message:
                        found[message].setdefault(language, text)
    return found


def encode(text: str) -> Array:
    """The bytes of a text as the model reads them: int64 [96], 0 after the end."""
    tokens = np.zeros(LENGTH, np.int64)
    data = np.frombuffer(text.encode()[:LENGTH], np.uint8)
    tokens[: len(data)] = data
    return tokens


def splits(wheels: Path) -> dict[str, Split]:
    """Train, calibration and evaluation; a text that two languages share is in none."""
    found = translations(wheels)
    spoken: dict[str, set[str]] = defaultdict(set)
    for texts in found.values():
        for language, text in texts.items():
            spoken[text].add(language)
    seen: set[str] = set()
    parts: dict[str, list[tuple[str, str]]] = {"calibration": [], "evaluation": [], "train": []}
    messages = sorted(found)
    draws = np.random.default_rng(SEED).permutation(len(messages)) / len(messages)
    for message, draw in zip(messages, draws, strict=True):
        part = "calibration" if draw < CALIBRATION else "evaluation" if draw < CALIBRATION + EVALUATION else "train"
        for language, text in sorted(found[message].items()):
            if len(spoken[text]) == 1 and text not in seen and len(text.encode()) >= SHORTEST:
                seen.add(text)
                parts[part].append((language, text))
    return {
        name: Split(
            np.stack([encode(text) for _, text in rows]),
            np.array([LANGUAGES.index(language) for language, _ in rows], np.int64),
        )
        for name, rows in parts.items()
    }


# ------------------------------------------------------------------------------------------------------------ training

Weights = dict[str, Array]


def start(random: np.random.Generator) -> Weights:
    """Weights before training."""
    fan = WINDOW * DIMENSION

    def draw(scale: float, *shape: int) -> Array:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    return {
        "embedding": draw(0.5, 256, DIMENSION),
        "filters": draw((2 / fan) ** 0.5, fan, CHANNELS),
        "filters_bias": np.zeros(CHANNELS, np.float32),
        "linear": draw(CHANNELS**-0.5, CHANNELS, len(LANGUAGES)),
        "linear_bias": np.zeros(len(LANGUAGES), np.float32),
    }


def features(weights: Weights, tokens: Array) -> tuple[Array, Array]:
    """The largest answer of each filter over time, [N, CHANNELS], and the first byte of the window that gave it."""
    embedded = weights["embedding"][tokens]
    windows = sliding_window_view(embedded, WINDOW, axis=1).transpose(0, 1, 3, 2)  # [N, time, WINDOW, DIMENSION]
    answers = windows.reshape(*windows.shape[:2], -1) @ weights["filters"]
    where = answers.argmax(1)
    return np.take_along_axis(answers, where[:, None], 1)[:, 0] + weights["filters_bias"], where


def gradients(weights: Weights, tokens: Array, labels: Array, keep: Array) -> tuple[float, Weights]:
    """Mean cross-entropy of a batch and its gradient; `keep` is the dropout mask [N, CHANNELS]."""
    largest, where = features(weights, tokens)
    hidden = np.maximum(largest, 0) * keep
    logits = hidden @ weights["linear"] + weights["linear_bias"]
    logits -= logits.max(1, keepdims=True)
    chances = np.exp(logits)
    chances /= chances.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -float(np.log(chances[rows, labels] + 1e-9).mean())
    chances[rows, labels] -= 1
    chances /= len(labels)
    back = (chances @ weights["linear"].T) * keep * (largest > 0)
    # Only the window that a filter answered most to is felt: gather its bytes instead of going over all windows.
    bytes_of = tokens[rows[:, None, None], where[:, :, None] + np.arange(WINDOW)]  # [N, CHANNELS, WINDOW]
    felt = weights["embedding"][bytes_of].reshape(*where.shape, -1)
    spread = back[:, :, None] * weights["filters"].T[None]
    embedding = np.zeros_like(weights["embedding"])
    np.add.at(embedding, bytes_of.reshape(-1), spread.reshape(-1, DIMENSION))
    return loss, {
        "embedding": embedding,
        "filters": np.einsum("nc,ncf->fc", back, felt, optimize=True),
        "filters_bias": back.sum(0),
        "linear": hidden.T @ chances,
        "linear_bias": chances.sum(0),
    }


def batches(count: int, size: int, random: np.random.Generator) -> Iterator[Array]:
    order = random.permutation(count)
    yield from (order[first : first + size] for first in range(0, count - size + 1, size))


def fit(split: Split, epochs: int = 10, rate: float = 2e-3, size: int = 64, dropout: float = 0.3) -> Weights:
    """Adam with a rate that falls to zero."""
    random = np.random.default_rng(SEED)
    weights = start(random)
    mean = {name: np.zeros_like(value) for name, value in weights.items()}
    square = {name: np.zeros_like(value) for name, value in weights.items()}
    total, step = epochs * (len(split.labels) // size), 0
    for epoch in range(epochs):
        started, losses = time.perf_counter(), []
        for index in batches(len(split.labels), size, random):
            step += 1
            keep = (random.random((size, CHANNELS)) > dropout).astype(np.float32) / (1 - dropout)
            loss, slope = gradients(weights, split.tokens[index], split.labels[index], keep)
            losses.append(loss)
            for name, value in weights.items():
                mean[name] += 0.1 * (slope[name] - mean[name])
                square[name] += 0.001 * (slope[name] ** 2 - square[name])
                there = mean[name] / (1 - 0.9**step), np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8
                value -= rate * (1 - step / (total + 1)) * there[0] / there[1]
        print(f"  epoch {epoch + 1:2d}/{epochs}  loss {np.mean(losses):.4f}  {time.perf_counter() - started:.1f} s")
    return weights


def export(weights: Weights, path: Path) -> None:
    """One ONNX file: input `tokens` int64 [N, 96], output `logits` float32 [N, 22]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    filters = weights["filters"].reshape(WINDOW, DIMENSION, CHANNELS).transpose(2, 1, 0)
    tensors = {**weights, "filters": np.ascontiguousarray(filters)}
    node = helper.make_node
    nodes = [
        node("Gather", ["embedding", "tokens"], ["embedded"]),
        node("Transpose", ["embedded"], ["channels_first"], perm=[0, 2, 1]),
        node("Conv", ["channels_first", "filters", "filters_bias"], ["answers"], kernel_shape=[WINDOW]),
        node("Relu", ["answers"], ["positive"]),
        node("GlobalMaxPool", ["positive"], ["largest"]),
        node("Flatten", ["largest"], ["hidden"]),
        node("Gemm", ["hidden", "linear", "linear_bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "language",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", LENGTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LANGUAGES)])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


# -------------------------------------------------------------------------------------------------------------- report


def report() -> None:
    """Accuracy on the evaluation texts, all and per language, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(HERE / "evaluation.npz") as file:
        tokens, labels = file["tokens"], file["labels"]
    right = session.run(["logits"], {"tokens": tokens})[0].argmax(1) == labels
    print(f"accuracy {right.mean():.4f} on {len(labels)} texts")
    each = (f"{name} {right[labels == index].mean():.2f}" for index, name in enumerate(LANGUAGES))
    print(", ".join(each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder with the two wheels")
    parser.add_argument("--report", action="store_true", help="evaluate the existing model; train nothing")
    options = parser.parse_args()
    if not options.report:
        if options.wheels is None or not list(options.wheels.glob("*.whl")):
            parser.error("--wheels: a folder with Django's and Sphinx's wheels is needed (see above)")
        parts = splits(options.wheels)
        print(", ".join(f"{name} {len(split.labels)}" for name, split in parts.items()))
        parts["calibration"].save(HERE / "calibration.npz")
        parts["evaluation"].save(HERE / "evaluation.npz")
        export(fit(parts["train"]), HERE / "model.onnx")
    report()


if __name__ == "__main__":
    sys.exit(main())
