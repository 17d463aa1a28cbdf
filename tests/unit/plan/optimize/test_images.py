"""Which image a Job gets: PyTorch is pulled only where it is needed."""

from __future__ import annotations

import pytest

from fettle.api import catalog
from fettle.api.catalog import Image
from fettle.api.optimizedmodel import DataSpec, SourceSpec
from fettle.api.recipe import QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.task import (
    BuildPlan,
    BuildTask,
    CandidatePlan,
    MeasureCandidate,
    MeasureTask,
    PrepareTask,
    StoredData,
    StoredModel,
)
from fettle.api.vocabulary import RuntimeName, SourceFormat
from fettle.plan.run.tasks import image_of
from fettle.settings import Settings

STORE = "pvc://store"
ONNX = StoredModel(format="ONNX", entry="model.onnx", files=())
NOTHING = Signature(inputs=(), outputs=())
AUTO, SCRIPT = SourceFormat.AUTO, SourceFormat.TORCH_SCRIPT
SOURCES = [
    ("pvc://models/model.onnx", AUTO, Image.OPTIMIZER),
    ("pvc://models/folder", AUTO, Image.OPTIMIZER),
    ("pvc://models/model.pt", AUTO, Image.OPTIMIZER_TORCH),
    ("pvc://models/MODEL.PT2", AUTO, Image.OPTIMIZER_TORCH),
    ("pvc://models/model.bin", SCRIPT, Image.OPTIMIZER_TORCH),
    ("pvc://models/model.pt", SourceFormat.ONNX, Image.OPTIMIZER),
]


@pytest.mark.parametrize(("uri", "format", "image"), SOURCES)
def test_a_source_is_looked_at_with_what_its_format_needs(uri: str, format: SourceFormat, image: Image) -> None:
    task = PrepareTask(store=STORE, source=SourceSpec(uri=uri, format=format), data=DataSpec(), builds=())
    assert image_of(task) == image


def candidate(runtime: RuntimeName) -> MeasureCandidate:
    plan = CandidatePlan(name=runtime, recipe="float32", runtime=runtime, settings=RuntimeSettings())
    return MeasureCandidate(plan=plan, model=ONNX)


ORT, OPENVINO, TORCHSCRIPT = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO, RuntimeName.TORCHSCRIPT


@pytest.mark.parametrize(
    ("baseline", "others", "image"),
    [
        (ORT, (OPENVINO,), Image.OPTIMIZER),
        (TORCHSCRIPT, (ORT, OPENVINO), Image.OPTIMIZER_TORCH),
        (ORT, (TORCHSCRIPT,), Image.OPTIMIZER_TORCH),
    ],
)
def test_a_target_is_measured_with_what_its_runtimes_need(
    baseline: RuntimeName, others: tuple[RuntimeName, ...], image: Image
) -> None:
    task = MeasureTask(
        store=STORE,
        target="cpu",
        threads=1,
        batch_sizes=(1,),
        source_sha256="0" * 64,
        signature=NOTHING,
        baseline=candidate(baseline),
        candidates=tuple(map(candidate, others)),
        items=StoredData(sha256="0" * 64, items=1),
        generated=False,
        alpha=0.05,
    )
    assert image_of(task) == image


def test_a_build_starts_from_onnx_and_needs_no_pytorch() -> None:
    plan = BuildPlan(name="int8-openvino", family=OPENVINO, steps=(RecipeStep(quantize=QuantizeStep()),))
    task = BuildTask(store=STORE, plan=plan, cache_key="0" * 64, portable=ONNX, signature=NOTHING)
    assert image_of(task) == Image.OPTIMIZER


def test_every_image_has_a_setting() -> None:
    settings = Settings()
    assert len({settings.image(image) for image in Image}) == len(Image)


def test_only_torchscript_is_served_with_pytorch() -> None:
    served = {entry.runtime: entry.server_image for entry in catalog.RUNTIMES}
    assert served == {ORT: Image.SERVER, OPENVINO: Image.SERVER, TORCHSCRIPT: Image.SERVER_TORCH}
