"""What a run makes of lossy candidates: which it builds, which it measures, which it may publish."""

from __future__ import annotations

from tests.unit.plan.optimize.world import World, fails, failure, make_spec, stored

from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, Traits
from fettle.api.task import BuildTask, MeasureTask
from fettle.api.vocabulary import CandidateState
from fettle.plan.run.state import TaskRequest

TRANSFORMER = Traits(opset=17, transformer=True, matmul_time_share=0.8, p50_milliseconds=6.0)


def test_one_measurement_times_int8_throughout_beside_int8_where_it_holds() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.2), "int8-mixed-openvino": (2.5, 0.001)})
    world.settle()
    assert world.labels("measure") == ["measure cpu"]
    (artifact,) = world.status.artifacts
    assert artifact.candidate == "int8-mixed-openvino"
    assert world.rows()["int8-openvino"].reason == Reason.CONSTRAINTS_NOT_MET


def test_a_transformer_is_quantized_with_the_preset_for_transformers() -> None:
    world = World(prepare={"traits": TRANSFORMER})
    world.settle()
    assert world.labels("build") == [
        "build bfloat16-mixed-openvino",
        "build int8-transformer-openvino",
        "build int8-transformer-mixed-openvino",
        "build int8-onnxruntime",
        "build int8-mixed-onnxruntime",
        "build int8-core-onnxruntime",
        "build int8-dynamic-onnxruntime",
    ]


def test_a_build_that_fails_stops_no_other() -> None:
    broken = failure(Reason.JOB_FAILED, "the quantizer raised")
    world = World(answer=fails("build", broken, "build int8-openvino"), speeds={"int8-mixed-openvino": (2.5, 0.001)})
    world.settle()
    assert world.rows()["int8-openvino"].reason == Reason.JOB_FAILED
    assert world.status.artifacts[0].candidate == "int8-mixed-openvino"


def test_two_recipes_that_come_to_the_same_file_are_measured_once() -> None:
    """Where no layer has to stay in floating point, ONNX Runtime's mixed int8 is its int8."""

    def alike(request: TaskRequest) -> BuildReport | None:
        task = request.task
        if not isinstance(task, BuildTask) or not task.plan.name.endswith("onnxruntime"):
            return None
        return BuildReport(name=task.plan.name, cache_key=task.cache_key, built=stored("the same", 300))

    world = World(answer=alike, speeds={"int8-onnxruntime": (3.0, 0.001)})
    world.settle()
    (measure,) = [request.task for request in world.started if isinstance(request.task, MeasureTask)]
    names = [candidate.plan.name for candidate in measure.candidates]
    assert "int8-onnxruntime" in names
    assert "int8-mixed-onnxruntime" not in names
    twin = world.rows()["int8-mixed-onnxruntime"]
    assert (twin.state, twin.reason) == (CandidateState.REJECTED, Reason.PRUNED)
    assert twin.message == "not measured: file and settings are identical to those of int8-onnxruntime"
    assert world.status.artifacts[0].candidate == "int8-onnxruntime"


def test_without_evaluation_data_what_is_lossy_shows_its_speed_and_is_not_published() -> None:
    spec = make_spec(data={"calibration": {"uri": "pvc://models/c.npz"}})
    world = World(spec, prepare={"generated": True}, speeds={"int8-openvino": (3.0, 0.5)})
    world.settle()
    assert world.labels("measure") == ["measure cpu"]
    assert world.rows()["int8-openvino"].reason == Reason.EVALUATION_DATA_MISSING
    assert world.rows()["int8-openvino"].speedup is not None, "what data would be worth can be seen"
    assert world.ready.reason == Reason.PUBLISHED


def test_made_up_items_publish_what_is_lossy_only_where_that_is_asked_for() -> None:
    for allowed, winner in ((False, "float32"), (True, "int8-openvino")):
        spec = make_spec(data={"generated": {"samples": 900, "allowLossy": allowed}})
        facts = {"generated": True, "calibration": 256 if allowed else None}
        world = World(spec, speeds={"int8-openvino": (3.0, 0.001)}, prepare=facts)
        world.settle()
        assert world.status.artifacts[0].candidate.startswith(winner)
        measure = next(task.task for task in world.started if isinstance(task.task, MeasureTask))
        assert measure.allow_lossy == allowed
