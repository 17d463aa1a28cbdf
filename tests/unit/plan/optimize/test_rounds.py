"""The second round: what is tried only because a first answer asks for it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.plan.choose.figures import row
from tests.unit.plan.optimize.world import World, fails, failure, make_spec

from fettle.api.optimizedmodel_status import AgreementStatus, CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.report import Traits
from fettle.api.task import MeasureTask
from fettle.api.vocabulary import AgreementMode, CandidateState, Evidence

TRANSFORMER = Traits(opset=17, transformer=True, matmul_time_share=0.8, p50_milliseconds=6.0)


def test_the_other_preset_is_tried_when_the_first_misses_accuracy() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.2), "int8-transformer-openvino": (2.5, 0.001)})
    world.settle()
    assert "build int8-transformer-openvino" in world.labels("build")
    assert world.labels("measure") == ["measure cpu", "measure cpu"]
    (artifact,) = world.status.artifacts
    assert artifact.candidate == "int8-transformer-openvino"


def test_on_a_transformer_the_presets_change_places() -> None:
    world = World(prepare={"traits": TRANSFORMER}, speeds={"int8-transformer-openvino": (3.0, 0.2)})
    world.settle()
    builds = world.labels("build")
    assert "build int8-transformer-openvino" in builds
    assert "build int8-core-onnxruntime" in builds
    assert builds[-1] == "build int8-openvino"


def test_the_second_round_measures_only_what_is_new() -> None:
    world = World(speeds={"int8-onnxruntime": (3.0, 0.2)})
    world.settle()
    first, second = [task.task for task in world.started if isinstance(task.task, MeasureTask)]
    assert [candidate.plan.name for candidate in second.candidates] == [
        "int8-mixed-onnxruntime",
        "int8-core-onnxruntime",
    ]
    assert first.alpha == second.alpha
    assert first.baseline == second.baseline


def test_the_second_round_certifies_what_the_first_left_of_the_error() -> None:
    world = World(speeds={"int8-onnxruntime": (3.0, 0.2)}, certified=3)
    world.settle()
    first, second = [task.task for task in world.started if isinstance(task.task, MeasureTask)]
    assert (first.places, second.places) == (3, 1)


def test_items_that_certify_one_candidate_certify_none_in_a_second_round() -> None:
    spec = make_spec(constraints={"accuracy": {"maxDrop": 0.01}})
    world = World(spec, prepare={"items": 400}, speeds={"int8-onnxruntime": (3.0, 0.2)}, certified=1)
    world.settle()
    found = world.rows()["int8-core-onnxruntime"]
    assert (found.state, found.reason) == (CandidateState.REJECTED, Reason.PRUNED)
    assert found.message == "400 items certify no further lossy candidate"


def test_what_was_sorted_out_for_its_speed_has_no_second_round() -> None:
    slow = row("int8-onnxruntime", None, state=CandidateState.REJECTED, reason=Reason.PRUNED, message="slower")
    world = World(rows_instead={"int8-onnxruntime": slow})
    world.settle()
    assert (
        world.rows()["int8-core-onnxruntime"].message == "only tried if int8-onnxruntime misses the accuracy constraint"
    )


def test_what_the_screening_items_sort_out_has_a_second_round() -> None:
    ruined = row("int8-onnxruntime", None, (0.3, 0.1, 0.5), state=CandidateState.REJECTED, reason=Reason.PRUNED)
    world = World(rows_instead={"int8-onnxruntime": ruined})
    world.settle()
    assert "build int8-core-onnxruntime" in world.labels("build")


def agreement(kept: float | None) -> AgreementStatus:
    """Numbers of which three items in ten agree, and so much of their variance is left."""
    found = AgreementStatus(value=0.3, low=0.2, high=0.4, mode=AgreementMode.ELEMENTWISE)
    return found.model_copy(update={"variance_kept": kept, "worst_channel": None if kept is None else "y"})


HOPELESS = [
    (
        "slower than the original, and it loses too much",
        row("int8-onnxruntime", 0.7, 0.2),
        "int8-onnxruntime is not faster than the original (p50 8.57 ms against 6 ms)",
    ),
    (
        "numbers that are far off",
        row("int8-onnxruntime", 3.0, (0.7, 0.6, 0.8)).model_copy(
            update={
                "agreement": agreement(0.6),
                "evidence": Evidence.AGREEMENT,
            }
        ),
        "int8-onnxruntime agrees on 30% of the items and keeps 60% of the variance in y",
    ),
]


@pytest.mark.parametrize(("what", "first", "why"), HOPELESS, ids=[case[0] for case in HOPELESS])
def test_a_variation_of_what_cannot_pass_is_neither_built_nor_measured(
    what: str, first: CandidateStatus, why: str
) -> None:
    world = World(rows_instead={"int8-onnxruntime": first})
    world.settle()
    assert "build int8-core-onnxruntime" not in world.labels("build")
    assert world.rows()["int8-core-onnxruntime"].message == f"{why}: a variation of it would not pass either"


def test_where_size_counts_a_variation_of_what_is_slow_is_tried() -> None:
    spec = make_spec(objective="Size")
    world = World(spec, rows_instead={"int8-onnxruntime": row("int8-onnxruntime", 0.7, 0.2)})
    world.settle()
    assert "build int8-core-onnxruntime" in world.labels("build")


def off(kept: float | None) -> CandidateStatus:
    """A first round's row that is fast, and off by what is missing of the variance."""
    update = {"agreement": agreement(kept), "evidence": Evidence.AGREEMENT}
    return row("int8-onnxruntime", 3.0, (0.7, 0.6, 0.8)).model_copy(update=update)


MAY_PASS = [
    ("few items agree, but every number is nearly right", {}, off(0.99)),
    ("nothing tells how far numbers are off", {}, off(None)),
    (
        "slower, which is allowed",
        {"constraints": {"accuracy": {"maxDrop": 0.02}, "speedup": {"min": 0.5}}},
        row("int8-onnxruntime", 0.7, 0.2),
    ),
    (
        "single runs take longer, but more items are answered in a second",
        {"objective": "Throughput", "search": {"maxCandidates": 64}},
        row("int8-onnxruntime", 3.0, 0.2, percentiles={"p50": 20.0}),
    ),
]


@pytest.mark.parametrize(("what", "spec", "first"), MAY_PASS, ids=[case[0] for case in MAY_PASS])
def test_a_variation_of_what_misses_accuracy_is_tried_where_it_may_pass(
    what: str, spec: dict[str, Any], first: CandidateStatus
) -> None:
    world = World(make_spec(**spec), rows_instead={"int8-onnxruntime": first})
    world.settle()
    assert "build int8-core-onnxruntime" in world.labels("build")


def test_what_is_not_needed_says_so() -> None:
    world = World()
    world.settle()
    found = world.rows()["int8-core-onnxruntime"]
    assert (found.state, found.reason) == (CandidateState.REJECTED, Reason.PRUNED)
    assert found.message == "only tried if int8-onnxruntime misses the accuracy constraint"


def test_a_preset_that_cannot_be_built_asks_for_the_other() -> None:
    broken = failure(Reason.JOB_FAILED, "the quantizer raised")
    world = World(answer=fails("build", broken, "build int8-openvino"))
    world.settle()
    assert "build int8-transformer-openvino" in world.labels("build")


def test_without_evaluation_data_nothing_asks_for_a_second_round() -> None:
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


def test_a_second_round_that_fails_leaves_the_first_one_standing() -> None:
    broken = failure(Reason.NODE_LOST, "gone")
    world = World(speeds={"int8-openvino": (3.0, 0.2), "int8-onnxruntime": (2.0, 0.001)})
    second: list[str] = []

    def answer(request):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if request.stage == "measure":
            second.append(request.task_hash)
        return broken if request.stage == "measure" and request.task_hash != second[0] else None

    world.answer = answer
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    assert world.rows()["int8-transformer-openvino"].reason == Reason.NODE_LOST
