"""Which image a Job gets: the smallest that has all it needs; and what is refused where none has."""

from __future__ import annotations

import pytest
from tests.unit.plan.optimize.world import digest, make_spec, prepared

from fettle.api.data import DataSpec
from fettle.api.images import Image, ImageEntry, server_image
from fettle.api.optimizedmodel_status import SourceStatus
from fettle.api.reasons import Reason
from fettle.api.recipe import QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.source import FactorySpec, SourceSpec
from fettle.api.task import (
    BuildPlan,
    BuildTask,
    BuiltCandidate,
    CandidatePlan,
    MeasureTask,
    PrepareTask,
    StoredData,
    StoredModel,
)
from fettle.api.vocabulary import FormatName, RuntimeName
from fettle.plan.run.candidates import TargetPlan, plan_target, possible_builds
from fettle.plan.run.constraints import in_force
from fettle.plan.run.default_plan import ON_GPUS
from fettle.plan.run.images import image_of, measured_beside
from fettle.plan.run.planned import Finding
from fettle.settings import Settings

STORE = "pvc://store"
ONNX = StoredModel(format="ONNX", entry="model.onnx", files=())
NOTHING = Signature(inputs=(), outputs=())
AUTO, SCRIPT = FormatName.AUTO, FormatName.TORCH_SCRIPT
SOURCES = [
    ("pvc://models/model.onnx", AUTO, Image.OPTIMIZER),
    ("pvc://models/folder", AUTO, Image.OPTIMIZER),
    ("pvc://models/model.pt", AUTO, Image.OPTIMIZER_TORCH),
    ("pvc://models/MODEL.PT2", AUTO, Image.OPTIMIZER_TORCH),
    ("pvc://models/model.bin", SCRIPT, Image.OPTIMIZER_TORCH),
    ("pvc://models/model.pt", FormatName.ONNX, Image.OPTIMIZER),
    ("pvc://models/model.keras", AUTO, Image.OPTIMIZER_TENSORFLOW),
    ("pvc://models/model.tflite", AUTO, Image.OPTIMIZER_TENSORFLOW),
    ("pvc://models/saved/saved_model.pb", AUTO, Image.OPTIMIZER_TENSORFLOW),
    ("pvc://models/saved", FormatName.SAVED_MODEL, Image.OPTIMIZER_TENSORFLOW),
    ("pvc://models/graph.pb", AUTO, Image.OPTIMIZER_TENSORFLOW),
    ("pvc://models/folder", FormatName.FROZEN_GRAPH, Image.OPTIMIZER_TENSORFLOW),
    ("pvc://models/model.safetensors", AUTO, Image.OPTIMIZER_TRANSFORMERS),
    ("hf://org/name", FormatName.HUGGING_FACE, Image.OPTIMIZER_TRANSFORMERS),
    ("oci://registry/models/digits:v1", AUTO, Image.OPTIMIZER),
    ("oci://registry/models/digits:v1/model.pt2", AUTO, Image.OPTIMIZER_TORCH),
    ("mlflow://digits/3", AUTO, Image.OPTIMIZER_SKLEARN),
    ("mlflow://digits@champion", FormatName.KERAS, Image.OPTIMIZER_TENSORFLOW),
    ("pvc://models/model.skops", AUTO, Image.OPTIMIZER_SKLEARN),
    ("pvc://models/model.json", AUTO, Image.OPTIMIZER_SKLEARN),
    ("pvc://models/model.txt", AUTO, Image.OPTIMIZER_SKLEARN),
    ("pvc://models/model.cbm", AUTO, Image.OPTIMIZER_SKLEARN),
    ("pvc://models/registered", FormatName.MLFLOW, Image.OPTIMIZER_SKLEARN),
]


@pytest.mark.parametrize(("uri", "format", "image"), SOURCES)
def test_a_source_is_looked_at_with_what_its_format_needs(uri: str, format: FormatName, image: Image) -> None:
    task = PrepareTask(store=STORE, source=SourceSpec(uri=uri, format=format), data=DataSpec(), builds=())
    assert image_of(task) == image


def test_weights_are_looked_at_with_what_their_factory_needs() -> None:
    factory = FactorySpec(callable="nets:create", uri="pvc://models/nets.whl")
    for uri in ("pvc://models/weights.safetensors", "pvc://models/weights.bin", "pvc://models/folder"):
        source = SourceSpec(uri=uri, factory=factory)
        assert image_of(PrepareTask(store=STORE, source=source, data=DataSpec(), builds=())) == Image.OPTIMIZER_TORCH


def candidate(runtime: RuntimeName) -> BuiltCandidate:
    plan = CandidatePlan(name=runtime, recipe="float32", runtime=runtime, settings=RuntimeSettings())
    return BuiltCandidate(plan=plan, model=ONNX)


ORT, OPENVINO = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO
TORCHSCRIPT, LITERT = RuntimeName.TORCHSCRIPT, RuntimeName.LITERT


@pytest.mark.parametrize(
    ("baseline", "others", "image"),
    [
        (ORT, (OPENVINO,), Image.OPTIMIZER),
        (TORCHSCRIPT, (ORT, OPENVINO), Image.OPTIMIZER_TORCH),
        (ORT, (TORCHSCRIPT,), Image.OPTIMIZER_TORCH),
        (LITERT, (ORT, OPENVINO), Image.OPTIMIZER_TENSORFLOW),
        (ORT, (LITERT,), Image.OPTIMIZER_TENSORFLOW),
    ],
)
def test_a_target_is_measured_with_what_its_runtimes_need(
    baseline: RuntimeName, others: tuple[RuntimeName, ...], image: Image
) -> None:
    assert image_of(measure_task(baseline, *others)) == image


def measure_task(baseline: RuntimeName, *others: RuntimeName) -> MeasureTask:
    return MeasureTask(
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


def test_a_build_starts_from_onnx_and_needs_no_pytorch() -> None:
    plan = BuildPlan(name="int8-openvino", family=OPENVINO, steps=(RecipeStep(quantize=QuantizeStep()),))
    task = BuildTask(store=STORE, plan=plan, cache_key="0" * 64, portable=ONNX, signature=NOTHING)
    assert image_of(task) == Image.OPTIMIZER


def test_every_image_has_a_setting() -> None:
    settings = Settings()
    assert len({settings.image(image) for image in Image}) == len(Image)


def test_each_runtime_is_served_with_what_it_needs_and_no_more() -> None:
    served = {name: server_image(name) for name in RuntimeName}
    slim = {ORT: Image.SERVER, OPENVINO: Image.SERVER, LITERT: Image.SERVER_LITERT}
    slim |= dict.fromkeys((TORCHSCRIPT, RuntimeName.INDUCTOR), Image.SERVER_TORCH)
    slim |= {RuntimeName.TORCHSCRIPT_CUDA: Image.SERVER_GPU_TORCH}
    assert served == slim | dict.fromkeys(ON_GPUS, Image.SERVER_GPU)


def images(*rows: tuple[Image, set[str]]) -> tuple[ImageEntry, ...]:
    """Images of Jobs with these libraries beside those that all have."""
    return tuple(ImageEntry(image, frozenset({"numpy", "onnx", *libraries})) for image, libraries in rows)


# Two frameworks that exclude each other, as PyTorch and TensorRT's would: OpenVINO stands for the other one.
APART = images(
    (Image.OPTIMIZER, {"onnxruntime"}),
    (Image.OPTIMIZER_TORCH, {"onnxruntime", "onnxscript", "torch"}),
    (Image.SERVER_TORCH, {"onnxruntime", "nncf", "openvino"}),
)
TOGETHER = (*APART, *images((Image.SERVER, {"onnxruntime", "onnxscript", "torch", "nncf", "openvino"})))


@pytest.mark.parametrize(
    ("rows", "baseline", "others", "image"),
    [
        (APART, ORT, (), Image.OPTIMIZER),
        (APART, ORT, (OPENVINO,), Image.SERVER_TORCH),
        (APART, TORCHSCRIPT, (ORT,), Image.OPTIMIZER_TORCH),
        (TOGETHER, ORT, (OPENVINO,), Image.SERVER_TORCH),
        (TOGETHER, TORCHSCRIPT, (OPENVINO,), Image.SERVER),
        (TOGETHER, ORT, (TORCHSCRIPT, OPENVINO), Image.SERVER),
    ],
)
def test_the_smallest_image_that_has_every_runtime_of_the_task_is_taken(
    monkeypatch: pytest.MonkeyPatch,
    rows: tuple[ImageEntry, ...],
    baseline: RuntimeName,
    others: tuple[RuntimeName, ...],
    image: Image,
) -> None:
    monkeypatch.setattr("fettle.api.images.IMAGES", rows)
    assert image_of(measure_task(baseline, *others)) == image


def planned(format: FormatName, *runtimes: RuntimeName) -> TargetPlan:
    """The default plan of a target with these runtimes for a source of that format, which all of them load."""
    spec = make_spec(targets=[{"name": "cpu", "runtimes": list(runtimes)}])
    source = SourceStatus(sha256=digest("source"), format=format, bytes=1000)
    report = prepared(possible_builds(spec), portable_runtimes=(ORT, OPENVINO, TORCHSCRIPT))
    return plan_target(spec, spec.targets[0], report.model_copy(update={"source": source}), in_force(spec))


@pytest.mark.parametrize(
    ("format", "runtimes", "rows", "refused", "message"),
    [
        (
            SCRIPT,
            (ORT, OPENVINO),
            APART,
            OPENVINO,
            "no image has openvino together with torchscript, which runs the original (TorchScript) that every candidate is timed "
            "against: provide the source as ONNX",
        ),
        (
            SCRIPT,
            (ORT, OPENVINO),
            APART[:2],
            OPENVINO,
            "no image has openvino together with torchscript, which runs the original (TorchScript) that every candidate is timed "
            "against: remove openvino from the target's runtimes",
        ),
        (
            FormatName.ONNX,
            (ORT, OPENVINO, TORCHSCRIPT),
            APART,
            TORCHSCRIPT,
            "no image has torchscript together with openvino, and all candidates of a target are timed in one Job: put torchscript into a "
            "target of its own",
        ),
    ],
)
def test_a_runtime_that_no_image_measures_beside_the_others_is_refused_with_what_would_do(
    monkeypatch: pytest.MonkeyPatch,
    format: FormatName,
    runtimes: tuple[RuntimeName, ...],
    rows: tuple[ImageEntry, ...],
    refused: RuntimeName,
    message: str,
) -> None:
    monkeypatch.setattr("fettle.api.images.IMAGES", rows)
    plan = planned(format, *runtimes)
    refusals = {row.refusal for row in plan.candidates if row.plan.runtime == refused and row.build is None}
    assert refusals == {Finding(Reason.RECIPE_NOT_APPLICABLE, message)}
    tried = [row.plan.runtime for row in plan.candidates if row.refusal is None]
    assert ORT in tried, "and the rest of the target goes on"
    assert image_of(measure_task(plan.baseline.runtime, *tried)) in {row.image for row in rows}


def test_a_published_artifact_that_the_job_has_no_runtime_for_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rows, measured in ((TOGETHER, True), (APART, False)):
        monkeypatch.setattr("fettle.api.images.IMAGES", rows)
        plan = planned(SCRIPT, ORT, OPENVINO)
        assert measured_beside(OPENVINO, plan.candidates, plan.baseline.runtime) == measured
