"""Engines of real models, built here without a GPU for the architectures of a T4, an A10 and an L4. What they answer needs one of those."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bench.gpu.engine_models import MODELS, Model, prepared
from bench.gpu.forms import FORMS, quantized
from onnx import numpy_helper

from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Precision
from fettle.errors import RuntimeFailure
from fettle.optimizer.steps.onnx_precision import in_precision
from fettle.runtimes import base, engine_build
from fettle.runtimes.engine import EngineRuntime
from fettle.runtimes.engine_build import EngineOptions, Profile
from fettle.runtimes.tensorrt_rtx import RUNTIME

INT8 = next(form for form in FORMS if form.name == "int8")
DIGITS = next(model for model in MODELS if model.name == "digits")
# Turing has no float32 products in this library: their builds end with that sentence. The others have none, or only convolutions.
PRODUCTS = {"digits", "magika", "ocr-direction", "ocr-lines", "orientation", "open-nsfw", "dnsmos", "dnsmos-noise"}
PRODUCTS |= {"tashkeel", "silero-ifless"}
REFUSED = {
    "nakdimon": (Reason.UNSUPPORTED_OPERATOR, "Loop model/bidirectional/forward_lstm"),
    "silero-vad": (Reason.UNSUPPORTED_MODEL, "Shape Error"),
}


def build(model: Model, folder: Path, architecture: str, entry: Path | None = None) -> engine_build.EngineNote:
    return RUNTIME.build(entry or model.file, folder / "model.rtx", architecture, model.profiles)


@pytest.mark.parametrize("architecture", ["sm75", "sm86", "sm89"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_real_model_becomes_an_engine_or_a_reason(model: Model, architecture: str, tmp_path: Path) -> None:
    refused = REFUSED.get(model.name)
    if architecture == "sm75" and model.name in PRODUCTS:
        refused = (Reason.UNSUPPORTED_MODEL, "FP32 GEMM is not supported")
    if refused is not None:
        with pytest.raises(RuntimeFailure, match=refused[1]) as failure:
            build(model, tmp_path, architecture)
        assert failure.value.reason == refused[0]
        assert not (tmp_path / "model.rtx").exists()
        return
    note = build(model, tmp_path, architecture)
    assert (tmp_path / "model.rtx").stat().st_size > model.file.stat().st_size / 4
    assert note == engine_build.read_note(tmp_path / "model.rtx")
    assert (note.architecture, note.library, note.version) == (
        architecture,
        "tensorrt-rtx-cu12",
        RUNTIME.library.version,
    )
    assert note.executed.f32 == note.executed.total > 0, "a float32 model is computed in float32"


# Layers that the library does not take in float16.
REFUSED_HALF = {"tashkeel": "GRU"}


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_turing_takes_in_float16_what_it_refuses_in_float32(name: str, tmp_path: Path) -> None:
    model = next(model for model in MODELS if model.name == name)
    cast = in_precision(model.file, tmp_path / "cast.onnx", Precision.FLOAT16)
    if name in REFUSED_HALF:
        with pytest.raises(RuntimeFailure, match=REFUSED_HALF[name]):
            build(model, tmp_path, "sm75", cast)
        return
    note = build(model, tmp_path, "sm75", cast)
    assert note.executed.f16 == note.executed.total > 0


BUILT = [model for model in MODELS if model.name not in REFUSED]


@pytest.mark.parametrize("model", BUILT, ids=lambda model: model.name)
def test_an_ampere_gpu_takes_a_real_model_in_bfloat16(model: Model, tmp_path: Path) -> None:
    cast = in_precision(model.file, tmp_path / "cast.onnx", Precision.BFLOAT16)
    executed = build(model, tmp_path, "sm80", cast).executed
    assert executed.bf16 + executed.f32 == executed.total
    # Transposed convolutions and recurrent layers keep float32.
    assert executed.f32 == 0 or model.name in ("ocr-pages", "tashkeel")


def test_a_real_model_with_channels_that_do_next_to_nothing_becomes_an_engine_in_int8(tmp_path: Path) -> None:
    """Their scales are 0 in float16, which the library refuses."""
    model = next(model for model in MODELS if model.name == "open-nsfw")
    entry = quantized(prepared(model, tmp_path), INT8, tmp_path / "int8")
    cast = in_precision(entry, tmp_path / "cast.onnx", INT8.precision)
    assert build(model, tmp_path, "sm89", cast).executed.int8 > 0


def test_what_is_said_of_an_engine_is_the_same_for_each_build_of_it(tmp_path: Path) -> None:
    notes = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        notes.append(build(DIGITS, tmp_path / name, "sm89"))
    assert notes[0] == notes[1]


@pytest.mark.parametrize(
    ("architecture", "profiles", "reason", "told"),
    [
        ("sm90", DIGITS.profiles, Reason.NODE_INCOMPATIBLE, r"builds for sm75, .*sm89, .*, not for sm90"),
        ("sm89", (), Reason.UNSUPPORTED_MODEL, r"the input 'image' has the shape \[-1, 1, 32, 32\]"),
    ],
    ids=["an architecture that the library does not know", "a size of which nothing says how far it varies"],
)
def test_what_cannot_be_built_is_said(
    architecture: str, profiles: Sequence[Profile], reason: Reason, told: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeFailure, match=told) as failure:
        RUNTIME.build(DIGITS.file, tmp_path / "model.rtx", architecture, profiles)
    assert failure.value.reason == reason


@pytest.mark.parametrize(
    "content", [b"", b"no protobuf at all", b"\x08\x08"], ids=["empty", "damaged", "nothing but a version"]
)
def test_a_damaged_file_ends_with_a_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(RuntimeFailure, match="tensorrt-rtx"):
        RUNTIME.build(tmp_path / "model.onnx", tmp_path / "model.rtx", "sm89", ())
    assert not (tmp_path / "model.rtx").exists()


def test_what_a_failed_build_left_is_not_freed_in_the_middle_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library calls the logger with a lock held, and its objects wait for that lock when they are freed: it would wait for ever."""
    plain = engine_build.error_log

    def collecting(trt: Any) -> Any:
        log = plain(trt)

        class Log(type(log)):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                if gc.isenabled():  # as may happen wherever Python runs
                    gc.collect()
                super().log(severity, message)

        return Log()

    often = gc.get_threshold()
    gc.set_threshold(0)  # garbage stays until then
    try:
        with pytest.raises(RuntimeFailure) as failure:
            # Refused once the library has made its objects.
            RUNTIME.build(DIGITS.file, tmp_path / "model.rtx", "sm89", ())
        cycle: list[object] = [failure.value]
        cycle.append(cycle)
        del failure, cycle
        monkeypatch.setattr(engine_build, "error_log", collecting)
        build(DIGITS, tmp_path, "sm89")
        assert gc.isenabled()
    finally:
        gc.set_threshold(*often)


def test_an_engine_is_not_loaded_without_a_gpu_and_the_reason_says_so(tmp_path: Path) -> None:
    build(DIGITS, tmp_path, "sm89")
    image = Tensor(name="image", dtype="FP32", shape=(-1, 1, 32, 32), batch_axis=0)
    logits = Tensor(name="logits", dtype="FP32", shape=(-1, 10), batch_axis=0)
    with pytest.raises(RuntimeFailure, match="this node has no NVIDIA GPU that the pod may use") as failure:
        RUNTIME.load(tmp_path / "model.rtx", base.RuntimeSettings(), Signature(inputs=(image,), outputs=(logits,)))
    assert failure.value.reason == Reason.NODE_INCOMPATIBLE


def test_the_runtime_is_found_by_its_name() -> None:
    runtime = base.get(RUNTIME.name)
    assert isinstance(runtime, EngineRuntime)
    assert {"sm75", "sm86", "sm89"} <= set(runtime.library.architectures())


# ------------------------------------------------------------------------------------------------- what a build may do and keep


def test_weights_of_which_two_in_four_are_0_become_an_engine_that_may_skip_them(tmp_path: Path) -> None:
    """Whether a GPU's sparse tensor cores pay is for its clock to say."""
    model = onnx.load(str(DIGITS.file))
    pruned = 0
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim == 4 and weights.shape[1] % 4 == 0:
            kept = np.zeros(weights.shape, weights.dtype)
            kept[:, 0::4], kept[:, 2::4] = weights[:, 0::4], weights[:, 2::4]
            tensor.CopyFrom(numpy_helper.from_array(kept, tensor.name))
            pruned += 1
    assert pruned
    onnx.save(model, str(tmp_path / "pruned.onnx"))
    cast = in_precision(tmp_path / "pruned.onnx", tmp_path / "cast.onnx", Precision.FLOAT16)
    note = RUNTIME.build(cast, tmp_path / "model.rtx", "sm86", DIGITS.profiles, EngineOptions(sparse=True))
    assert note.executed.f16 > 0
