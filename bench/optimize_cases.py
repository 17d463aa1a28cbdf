"""The models of `bench/optimize.py`, and the items each is calibrated, tuned and judged with. What a model is stands in `bench/model_catalog.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from bench import model_catalog, optimize_pictures
from bench import model_data as data
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Arrays = dict[str, np.ndarray]
ARABIC = "من في على هذا كان إلى عن مع كل بعد يوم بيت كتاب مدينة شمس قمر ماء طريق رجل امرأة ولد مدرسة سوق بحر جبل"


@dataclass(frozen=True)
class OptimizeCase:
    """`items` makes that many, all different; its second argument is the folder that wheels are unpacked in.

    `metric`: in the place of the catalog's. `count`: items in all, of which a third is held out. `own`: a model that the catalog does not have.
    """

    name: str
    items: Callable[[int, Path], Arrays]
    metric: str = ""
    count: int = 192
    own: model_catalog.Case | None = None

    @property
    def model(self) -> model_catalog.Case:
        """The model and where it comes from."""
        return self.own or model_catalog.CASES[self.name]

    @property
    def judged_by(self) -> str:
        """The metric."""
        return self.metric or self.model.metric


def _turned(images: np.ndarray, quarters: int) -> np.ndarray:
    """Every picture turned by another number of `quarters`: a model that finds the direction must have several to find."""
    return np.stack([np.rot90(image, number * quarters) for number, image in enumerate(images)])


def _tashkeel(count: int, _: Path) -> Arrays:
    """Sentences of common words in another order each, as numbers of letters."""
    random = np.random.default_rng(13)
    sentences = (" ".join(random.permutation(ARABIC.split())) for _ in range(count))
    chars = np.array([[1 + ord(letter) % 29 for letter in sentence[:48]] for sentence in sentences], np.int64)
    return {"char_inputs": chars, "diac_inputs": np.zeros_like(chars), "input_lengths": np.full(count, 48, np.int64)}


def _open_nsfw(count: int, work: Path) -> Arrays:
    """Half of them with people, whose skin is what the score rises with; it stays far from a half on all of them."""
    half = optimize_pictures.people(224, count // 2, work)
    pictures = np.concatenate([half, data.photographs(224, count - len(half))])
    return {"input:0": pictures[..., ::-1] - np.array([104, 117, 123], np.float32)}


def _table(count: int, _: Path) -> Arrays:
    """Measurements of tumours, the first `count` of 569."""
    return {"x": load_breast_cancer().data[:count].astype(np.float32)}


def _perceptron(_: Path, folder: Path) -> Path:
    """A perceptron with two hidden layers, trained on that table by scikit-learn, and converted as its users would."""
    table = load_breast_cancer()
    layers = MLPClassifier((512, 512), max_iter=60, random_state=1)
    fitted = make_pipeline(StandardScaler(), layers).fit(table.data, table.target)
    path = folder / "model.onnx"
    onnx.save(to_onnx(fitted, initial_types=[("x", FloatTensorType([None, 30]))], options={"zipmap": False}), path)
    return path


TABLE = model_catalog.Case(
    "tabular", "scikit-learn, one row a patient", write=_perceptron, items=lambda: _table(569, Path()), max_drop=0.05
)

CASES: tuple[OptimizeCase, ...] = (
    OptimizeCase("magika", lambda n, _: {"bytes": data.file_starts(n)}, count=300),
    OptimizeCase("ocr-lines", lambda n, _: {"x": data.planes(data.lines(320, 48, n), 127.5, 127.5)}),
    OptimizeCase("ocr-pages", lambda n, _: {"x": data.planes(data.pages(320, n), 127.5, 127.5)}),
    OptimizeCase("ocr-direction", lambda n, _: {"x": data.planes(_turned(data.lines(192, 48, n), 2), 127.5, 127.5)}),
    OptimizeCase("orientation", lambda n, _: {"x": data.planes(_turned(data.pages(224, n), 1), 120.0, 58.0)}),
    OptimizeCase("captcha-boxes", lambda n, _: {"images": data.captchas(416, n).transpose(0, 3, 1, 2).copy()}),
    OptimizeCase("captcha-slider", lambda n, _: {"images": data.planes(optimize_pictures.puzzles(640, n))},
                 count=120, metric="Detection"),
    OptimizeCase("nudenet", lambda n, work: {"images": data.planes(optimize_pictures.people(320, n, work))},
                 metric="Detection"),
    OptimizeCase("open-nsfw", _open_nsfw, metric="Regression"),
    OptimizeCase("basic-pitch", lambda n, _: {"serving_default_input_2:0": data.speech(22050, 43844, n)[..., np.newaxis]}),
    OptimizeCase("dnsmos", lambda n, _: {"input_1": data.speech(16000, 144160, n)}),
    OptimizeCase("tashkeel", _tashkeel),
    OptimizeCase("tabular", _table, count=569, own=TABLE),
    OptimizeCase("torch-resemblyzer", lambda n, _: {"mels": data.mels(16000, 160, n, 40)}, metric="Embedding"),
    OptimizeCase("torch-crepe-tiny", lambda n, _: {"x": data.speech(16000, 1024, n)}, count=300),
    OptimizeCase("torch-crepe-full", lambda n, _: {"x": data.speech(16000, 1024, n)}),
    OptimizeCase("torch-fcpe", lambda n, _: {"x": np.log(data.mels(16000, 128, n, 128) + 1e-5)}),
)  # fmt: skip
BY_NAME = {case.name: case for case in CASES}
