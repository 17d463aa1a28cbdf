"""A finished run as its tasks' answers lie in a store: what a report is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.constraints import AccuracyConstraint, Constraints, LatencyConstraint
from fettle.api.executed import Executed
from fettle.api.measured import AgreementStatus, Flips, Interval, Measurement, MetricValue, Percentiles, SpeedupStatus
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus, SourceStatus
from fettle.api.reasons import Reason
from fettle.api.recipe import QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.report import BuildReport, CpuClass, Distribution, MeasureReport, PrepareReport, Traits
from fettle.api.signature import Signature, Tensor
from fettle.api.task import CandidateVerdict, PublishTask, StoredModel
from fettle.api.vocabulary import (
    AgreementMode,
    Basis,
    CandidateState,
    Evidence,
    FormatName,
    Metric,
    Objective,
    RuntimeName,
)
from fettle.optimizer import publish
from fettle.store.manifest import DataRecord, Manifest, RecipeRecord, Tolerance, put_reference, write_artifact
from fettle.store.store import Store
from fettle.store.uris import Mounts

PREPARE, BUILD, MEASURE = "1" * 64, "2" * 64, "3" * 64
MACHINE = CpuClass(vendor="GenuineIntel", avx2=True, avx512=True, vnni=True)
SIGNATURE = Signature(
    inputs=(Tensor(name="images", dtype="FP32", shape=(-1, 1, 32, 32), batch_axis=0),),
    outputs=(Tensor(name="logits", dtype="FP32", shape=(-1, 10), batch_axis=0),),
)
HOSTILE = "answers <script>alert('x')</script> & worse"


def open_store(folder: Path) -> Store:
    """An empty store in a folder."""
    return Store.open(f"file://{folder}", Mounts(allow_files=True))


def timed(p50: float, runs: int = 620) -> tuple[Measurement, ...]:
    """Measurements of batch sizes 1 and 8."""

    def one(batch: int, middle: float) -> Measurement:
        return Measurement(
            batch_size=batch,
            latency_milliseconds=Percentiles(
                p50=middle, p90=middle * 1.08, p95=middle * 1.15, p99=middle * 1.4 if runs > 366 else None
            ),
            items_per_second=1000 * batch / middle,
            peak_memory_bytes=118_000_000,
            runs=runs,
            restarts=3,
        )

    return one(1, p50), one(8, p50 * 6.5)


def row(name: str, runtime: RuntimeName, p50: float, speedup: float, **changes: Any) -> CandidateStatus:
    """A measured row; exact unless `drop` says what it lost."""
    lost: Interval | None = changes.pop("drop", None)
    width = changes.pop("width", 0.02)
    values: dict[str, Any] = {
        "name": name,
        "target": "cpu",
        "runtime": runtime,
        "recipe": name.removesuffix("-" + runtime.value),
        "settings": RuntimeSettings(threads=1, graph_optimization=name != "original"),
        "state": CandidateState.MEASURED,
        "bytes": 4_810_000,
        "exact": lost is None,
        "evidence": Evidence.LABELS,
        "samples": 897,
        "accuracy": MetricValue(metric=Metric.ACCURACY, value=0.9755 - (lost.value if lost else 0)),
        "accuracy_drop": lost or Interval(value=0, low=0, high=0),
        "agreement": AgreementStatus(
            value=0.9967,
            low=0.99,
            high=0.999,
            mode=AgreementMode.TOP_ONE,
            variance_kept=0.9812,
            worst_channel="logits[:, 4]",
        ),
        "flips": Flips(worse=2, better=1) if lost else Flips(worse=0, better=0),
        "max_absolute_difference": 0.42 if lost else 3.8e-6,
        "speedup": SpeedupStatus(
            value=speedup, low=speedup * (1 - width), high=speedup * (1 + width), basis=Basis.SOURCE_RUNTIME
        ),
        "executed": Executed(int8=7, f32=1, total=8) if lost else Executed(f32=8, total=8),
        "measurements": timed(p50),
    }
    return CandidateStatus(**(values | changes))


def rows() -> tuple[CandidateStatus, ...]:
    """What a default plan finds on a small CNN."""
    ort, ov = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO
    small = Interval(value=0.0011, low=-0.0042, high=0.0073)
    return (
        row("original", ort, 10.4, 1.0, width=0.0),
        row("fp32-onnxruntime", ort, 9.9, 1.05),
        row("fp32-openvino", ov, 6.1, 1.70),
        row("fp32-static-shape-openvino", ov, 5.8, 1.79),
        row("bf16-openvino", ov, 1, 1).model_copy(
            update={
                "speedup": None,
                "measurements": (),
                "accuracy": None,
                "accuracy_drop": None,
                "exact": None,
                "state": CandidateState.REJECTED,
                "executed": None,
            }
        ),
        row("int8-nncf-openvino", ov, 2.6, 4.0, drop=small, bytes=1_290_000, artifact="4" * 64),
        row(
            "int8-qdq-onnxruntime",
            ort,
            3.3,
            3.15,
            drop=Interval(value=0.0033, low=-0.003, high=0.0121),
            bytes=1_310_000,
        ),
        row("int8-qdq-openvino", ov, 2.7, 3.85, drop=Interval(value=0.0033, low=-0.003, high=0.0121), bytes=1_310_000),
        row(
            "int8-transformer-openvino",
            ov,
            2.9,
            3.6,
            drop=Interval(value=0.052, low=0.036, high=0.071),
            bytes=1_290_000,
        ),
        row(
            "int8-dynamic-onnxruntime", ort, 42.0, 0.25, drop=Interval(value=0.35, low=0.31, high=0.39), bytes=1_250_000
        ),
    )


def spreads() -> tuple[Distribution, ...]:
    """How the runs of every timed candidate are spread: a long tail to the right."""
    medians = {one.name: one.measurements[0].latency_milliseconds.p50 for one in rows() if one.measurements}
    shares = np.linspace(0, 1, 101)
    shape = 0.95 + 0.1 * shares + 0.35 * shares**24
    return tuple(
        Distribution(
            candidate="" if name == "original" else name,
            batch_size=1,
            runs=620,
            milliseconds=tuple(float(f"{one:.4g}") for one in (p50 or 0) * shape),
        )
        for name, p50 in medians.items()
    )


def verdicts() -> tuple[CandidateVerdict, ...]:
    """What the choice said of them, and of one that was never built."""
    said: dict[str, tuple[CandidateState, Reason | None, str | None]] = {
        "bf16-openvino": (
            CandidateState.REJECTED,
            Reason.RECIPE_NOT_APPLICABLE,
            "this node's CPU does not compute BFloat16 in hardware; openvino would emulate it, which is slower",
        ),
        "int8-nncf-openvino": (CandidateState.SELECTED, None, None),
        "int8-transformer-openvino": (
            CandidateState.REJECTED,
            Reason.CONSTRAINTS_NOT_MET,
            "accuracy drop 0.052 [0.036, 0.071] must not exceed 0.02 at its upper end",
        ),
        "int8-dynamic-onnxruntime": (CandidateState.REJECTED, Reason.CONSTRAINTS_NOT_MET, HOSTILE),
    }
    passed = (
        CandidateState.MEASURED,
        Reason.NOT_PREFERRED,
        "int8-nncf-openvino is faster (p50 2.6 ms against 5.8 ms)",
    )
    found = [(one.name, said.get(one.name, passed)) for one in rows()]
    found.append(
        (
            "pruned-openvino",
            (CandidateState.REJECTED, Reason.CALIBRATION_TOO_SMALL, "static quantization requires calibration items"),
        )
    )
    slow = "its 1 s clock says p50 21 ms, 1.5 times the best's 2.6 ms and more"
    found.append(("slow-openvino", (CandidateState.REJECTED, Reason.PRUNED, slow)))
    return tuple(
        CandidateVerdict(target="cpu", candidate=name, state=state, reason=reason, message=message)
        for name, (state, reason, message) in found
    )


def publish_task(store: Store, **changes: Any) -> PublishTask:
    """The task of the last stage."""
    values: dict[str, Any] = {
        "store": store.uri,
        "namespace": "vision",
        "name": "digits",
        "generation": 3,
        "objective": Objective.LATENCY,
        "prepare": PREPARE,
        "builds": (BUILD,),
        "measures": (MEASURE,),
        "verdicts": verdicts(),
        "constraints": "accuracy drop <= 0.02, p99 <= 8 ms",
        "bounds": Constraints(
            accuracy=AccuracyConstraint(max_drop=0.02), latency=LatencyConstraint(max_milliseconds=8)
        ),
    }
    return PublishTask(**(values | changes))


def fill(store: Store, folder: Path) -> str:
    """Put the answers of a finished run into `store`; the digest of the winner's artifact."""
    model = _model(store, folder)
    items = store.put_data({"images": np.zeros((3, 1, 32, 32), np.float32), "labels": np.zeros(3, np.int64)})
    digest = write_artifact(store, _manifest(store, model))
    store.put_result(
        PREPARE,
        PrepareReport(
            source=SourceStatus(sha256="5" * 64, format=FormatName.ONNX, bytes=4_810_000),
            original=model,
            portable=model,
            portable_runtimes=(RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO),
            signature=SIGNATURE,
            traits=Traits(opset=17, convolutions=6),
            calibration=items.model_copy(update={"items": 200, "labelled": False}),
            items=items.model_copy(update={"items": 897}),
            notes=("2 initializers were dropped from the graph's inputs",),
        ),
    )
    store.put_result(
        BUILD,
        BuildReport(
            name="int8-nncf",
            cache_key="6" * 64,
            built=model,
            seconds=12.3,
            libraries={"nncf": "3.4.0", "openvino": "2026.4.1"},
        ),
    )
    found = tuple(one.model_copy(update={"artifact": digest}) if one.artifact else one for one in rows())
    store.put_result(
        MEASURE,
        MeasureReport(
            measured_on=MACHINE,
            baseline=BaselineStatus(
                target="cpu",
                runtime=RuntimeName.ONNXRUNTIME,
                bytes=4_810_000,
                accuracy=MetricValue(metric=Metric.ACCURACY, value=0.9755),
                measurements=timed(10.4),
            ),
            candidates=found,
            distributions=spreads(),
            seconds=84.2,
        ),
    )
    return digest


def published(store: Store) -> str:
    """The report's text."""
    report = publish.run(publish_task(store), store, Mounts())
    assert report.report_uri == f"{store.uri}/reports/vision/digits/3.html"
    return store.read_bytes("reports/vision/digits/3.html").decode()


def _model(store: Store, folder: Path) -> StoredModel:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"the content of a model")
    return store.put_model(folder, "model.onnx")


def _manifest(store: Store, model: StoredModel) -> Manifest:
    feed, answer = {"images": np.zeros((2, 1, 32, 32), np.float32)}, {"logits": np.zeros((2, 10), np.float32)}
    return Manifest(
        source_sha256="5" * 64,
        recipe=RecipeRecord(name="int8-nncf", steps=(RecipeStep(quantize=QuantizeStep()),), revisions=(1,)),
        data=DataRecord(calibration="7" * 64, evaluation="8" * 64),
        libraries={"nncf": "3.4.0", "openvino": "2026.4.1"},
        runtime=RuntimeName.OPENVINO,
        settings=RuntimeSettings(threads=1),
        signature=SIGNATURE,
        tolerances={"logits": Tolerance(rtol=0.01, atol=0.05)},
        requires=("vnni",),
        model=model,
        reference=put_reference(store, feed, answer),
    )
