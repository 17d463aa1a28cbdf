"""What is tried, on which model, with which data, and what is refused before any work."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from tests.unit.plan.optimize.world import OPENVINO, ORT, digest, make_spec, prepared, stored

from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport, Traits
from fettle.api.task import StoredData
from fettle.api.vocabulary import Basis, Precision, QuantizePreset, RuntimeName
from fettle.plan.run.candidates import ROWS_LIMIT, TargetPlan, plan_target, possible_builds
from fettle.plan.run.constraints import in_force
from fettle.plan.run.planned import PlannedCandidate


def plan(spec: OptimizedModelSpec | None = None, report: PrepareReport | None = None, **facts: Any) -> TargetPlan:
    """The rows of the first target."""
    spec = spec or make_spec()
    report = report or prepared(possible_builds(spec), **facts)
    return plan_target(spec, spec.targets[0], report, in_force(spec))


def tried(found: TargetPlan) -> list[str]:
    """Names that nothing speaks against before any work."""
    return [row.name for row in found.candidates if row.refusal is None]


def refused(found: TargetPlan) -> dict[str, Reason]:
    """Names that are refused, and why."""
    return {row.name: row.refusal.reason for row in found.candidates if row.refusal is not None}


def named(found: TargetPlan, name: str) -> PlannedCandidate:
    """A row."""
    return next(row for row in found.candidates if row.name == name)


def traits(**fields: Any) -> Traits:
    """A net of 6 ms without attention."""
    return Traits(**{"opset": 17, "p50_milliseconds": 6.0, **fields})


ALWAYS = [
    "original",
    "float32-onnxruntime",
    "float32-openvino",
    "float32-openvino-static",
    "bfloat16-openvino",
    "bfloat16-openvino-static",
    "float16-openvino",
    "float16-openvino-static",
    "bfloat16-mixed-openvino-static",
    "int8-openvino",
    "int8-openvino-static",
    "int8-openvino-bfloat16",
    "int8-mixed-openvino",
    "int8-mixed-openvino-static",
    "int8-mixed-openvino-bfloat16",
    "int8-onnxruntime",
    "int8-onnxruntime-in-openvino",
    "int8-mixed-onnxruntime",
]
LEARNING: dict[str, Any] = {"data": {"evaluation": {"uri": "pvc://m/e.npz"}, "training": {"uri": "pvc://m/t.npz"}}}
LEARNED: dict[str, Any] = {"training": StoredData(sha256=digest("training"), items=800, labelled=True)}
TRAINED = [
    f"{recipe}-{runtime}"
    for recipe in ("int8-aware", "pruned", "pruned-int8")
    for runtime in ("onnxruntime", "openvino")
]
PLANS: list[tuple[str, dict[str, Any], dict[str, Any], list[str], list[str]]] = [
    ("a convolutional net gets the whole plan, cheapest first", {}, {}, ALWAYS, []),
    ("a quick net is tried with one thread too", {}, {"traits": traits(p50_milliseconds=0.4)},
     ["float32-onnxruntime-1thread", "float32-openvino-1thread"], ["bfloat16-mixed-openvino-static"]),
    ("one thread is not tried twice", {"targets": [{"name": "cpu", "threads": 1}]}, {"traits": traits(p50_milliseconds=0.4)},
     [], ["float32-onnxruntime-1thread"]),
    ("a transformer gets NNCF's transformer preset and only its products in int8", {}, {"traits": traits(transformer=True)},
     ["int8-transformer-openvino", "int8-transformer-mixed-openvino", "int8-core-onnxruntime"],
     ["int8-openvino", "int8-mixed-openvino", "int8-dynamic-onnxruntime"]),
    ("dynamic int8 is tried where products are half of the work", {}, {"traits": traits(matmul_time_share=0.5)},
     ["int8-dynamic-onnxruntime"], []),
    ("dynamic int8 is not tried on convolutions", {}, {"traits": traits(matmul_time_share=0.49)}, [], ["int8-dynamic-onnxruntime"]),
    ("weights alone are not quantized in a model that fits into a cache", {}, {"traits": traits(matmul_time_share=0.9)}, [],
     ["int8-weights-onnxruntime", "int8-weights-openvino"]),
    ("LSTM layers are quantized dynamically where they are half of the work", {}, {"traits": traits(lstm_time_share=0.5)},
     ["int8-lstm-onnxruntime"], ["int8-dynamic-onnxruntime"]),
    ("LSTM layers that take little time stay as they are", {}, {"traits": traits(lstm_time_share=0.49)}, [], ["int8-lstm-onnxruntime"]),
    ("a quantized source is dequantized before it is quantized again", {}, {"traits": traits(quantized=True)},
     ["float32-openvino", "bfloat16-openvino", "dequantized-onnxruntime", "dequantized-openvino", "requantized-openvino", "requantized-onnxruntime"],
     ["int8-openvino", "int8-onnxruntime", "int8-onnxruntime-in-openvino", "bfloat16-mixed-openvino-static"]),
    ("what is not quantized is not dequantized", {}, {}, [], ["dequantized-onnxruntime", "requantized-openvino"]),
    ("a static shape is not tried where several batch sizes are served", {"targets": [{"name": "cpu", "batchSizes": [1, 8]}]}, {},
     ["float32-openvino", "bfloat16-mixed-openvino"],
     ["float32-openvino-static", "int8-openvino-static", "bfloat16-openvino-static", "bfloat16-mixed-openvino-static"]),
    ("a static shape is not tried on a model that takes no batch", {}, {"batchable": False}, [], ["float32-openvino-static"]),
    ("only runtimes that may serve are tried, the original's included", {"targets": [{"name": "cpu", "runtimes": ["openvino"]}]}, {},
     ["float32-openvino", "int8-onnxruntime-in-openvino"], ["original", "float32-onnxruntime", "int8-onnxruntime"]),
    ("training data add int8 that is trained for, half of the work pruned away, and int8 of that", LEARNING, LEARNED, TRAINED, []),
    ("what came quantized is not trained", LEARNING, {**LEARNED, "traits": traits(quantized=True)}, [], TRAINED),
    ("without training data nothing is trained", {}, {}, [], TRAINED),
    ("without any data nothing is quantized that needs it", {"data": {}}, {"generated": True, "calibration": None},
     ["float32-openvino", "bfloat16-openvino"], ["int8-openvino", "int8-onnxruntime"]),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "fields", "facts", "among", "not_among"), PLANS, ids=[line[0] for line in PLANS])
def test_the_default_plan(
    sentence: str, fields: dict[str, Any], facts: dict[str, Any], among: list[str], not_among: list[str]
) -> None:
    found = tried(plan(make_spec(**fields), **facts))
    assert [name for name in found if name in among] == among
    assert not set(found) & set(not_among)


@pytest.mark.parametrize(
    ("share", "size", "among"), [(0.5, 4 << 20, True), (0.49, 4 << 20, False), (0.5, (4 << 20) - 1, False)]
)
def test_weights_alone_are_quantized_where_products_of_a_large_model_are_the_work(
    share: float, size: int, among: bool
) -> None:
    spec = make_spec()
    report = prepared(possible_builds(spec), traits=traits(matmul_time_share=share), calibration=None)
    found = tried(plan(spec, report.model_copy(update={"portable": stored("portable", size)})))
    names = {"int8-weights-onnxruntime", "int8-weights-openvino"}
    assert set(found) & names == (names if among else set()), "without calibration items"


def test_the_plan_of_a_convolutional_net_is_exactly_this() -> None:
    found = plan()
    assert tried(found) == ALWAYS
    assert refused(found) == {}


@pytest.mark.parametrize(("deadline", "seconds"), [(600, 100), (3600, 600), (86_400, 1800)])
def test_a_training_that_nobody_asked_for_takes_a_sixth_of_the_deadline_at_most(deadline: int, seconds: int) -> None:
    found = plan(make_spec(**LEARNING, search={"deadlineSeconds": deadline}), **LEARNED)
    for name in TRAINED:
        build = named(found, name).build
        assert build is not None and build.training is not None
        assert build.training.spec.deadline_seconds == seconds
    pruned = named(found, "pruned-int8-openvino").steps[0].prune
    assert pruned is not None and pruned.target_speedup == 2


def test_training_for_int8_that_nobody_asked_for_is_skipped_where_int8_loses_less_than_half_of_what_it_may() -> None:
    found = plan(make_spec(**LEARNING, constraints={"accuracy": {"maxDrop": 0.04}}), **LEARNED)
    trainings = {name: named(found, name).build for name in TRAINED}
    tolerated = {name: build.training.tolerated for name, build in trainings.items() if build and build.training}
    assert tolerated == {name: 0.02 if "aware" in name else None for name in TRAINED}


def test_training_for_int8_that_a_recipe_asks_for_is_never_skipped() -> None:
    recipes = [{"name": "own", "steps": [{"quantize": {"mode": "Aware"}}]}]
    build = named(plan(make_spec(**LEARNING, recipes=recipes), **LEARNED), "own-onnxruntime").build
    assert build is not None and build.training is not None
    assert build.training.tolerated is None


def test_settings_say_what_sets_a_row_apart() -> None:
    found = plan(traits=traits(p50_milliseconds=0.4))
    settings = {row.name: row.plan.settings for row in found.candidates}
    assert not settings["original"].graph_optimization
    assert settings["float32-onnxruntime"].threads == 2
    assert settings["float32-onnxruntime-1thread"].threads == 1
    assert settings["float32-openvino-static"].batch_size == 1
    assert settings["bfloat16-openvino"].precision == Precision.BFLOAT16
    assert settings["int8-openvino-bfloat16"].precision == Precision.BFLOAT16


def test_the_same_file_serves_candidates_that_differ_in_settings_only() -> None:
    found = plan()
    assert named(found, "int8-openvino").build == named(found, "int8-openvino-bfloat16").build
    assert named(found, "int8-onnxruntime").build == named(found, "int8-onnxruntime-in-openvino").build
    preset = named(plan(traits=traits(transformer=True)), "int8-transformer-openvino").steps[0].quantize
    assert preset is not None
    assert preset.preset == QuantizePreset.TRANSFORMER


def test_a_runtime_that_cannot_load_the_model_is_one_row_that_says_so() -> None:
    found = plan(portable_runtimes=(ORT,), notes=("openvino: no rule for TreeEnsembleClassifier",))
    assert refused(found) == {"float32-openvino": Reason.UNSUPPORTED_MODEL}
    refusal = named(found, "float32-openvino").refusal
    assert refusal is not None
    assert "TreeEnsembleClassifier" in refusal.message
    assert tried(found) == ["original", "float32-onnxruntime", "int8-onnxruntime", "int8-mixed-onnxruntime"]


def test_for_a_source_that_cannot_be_timed_its_portable_form_is_baseline_and_candidate() -> None:
    spec = make_spec()
    report = prepared(possible_builds(spec)).model_copy(update={"basis": Basis.PORTABLE_FORM})
    found = plan(spec, report)
    assert tried(found)[0] == "original"
    assert named(found, "original").plan == found.baseline
    assert not found.baseline.untouched


def test_every_build_of_any_plan_was_asked_for_in_prepare() -> None:
    specs: list[dict[str, Any]] = [{}, {"targets": [{"name": "a", "runtimes": ["openvino"]}]}, {"data": {}}]
    for fields in specs:
        spec = make_spec(**fields)
        asked = {build.name: build for build in possible_builds(spec)}
        for transformer, quantized in product((False, True), repeat=2):
            facts = traits(transformer=transformer, quantized=quantized, matmul_time_share=1.0)
            calibration = None if fields.get("data") == {} else 200
            report = prepared(asked.values(), traits=facts, calibration=calibration)
            for row in plan(spec, report).candidates:
                if row.build is not None and row.refusal is None:
                    assert asked[row.build.name] == row.build


def test_the_cheapest_come_through_a_cut() -> None:
    found = plan(make_spec(search={"maxCandidates": 4}))
    assert tried(found) == ALWAYS[:4]
    assert set(refused(found).values()) == {Reason.PRUNED}
    refusal = named(found, "int8-openvino").refusal
    assert refusal is not None
    assert "search.maxCandidates is 4" in refusal.message


def test_layers_are_not_chosen_by_what_they_lose_where_nothing_lossy_may_be_published() -> None:
    found = plan(make_spec(data=CALIBRATION), generated=True)
    assert "int8-openvino" in tried(found), "what data would be worth can be seen"
    refusal = named(found, "int8-mixed-openvino").refusal
    assert refusal is not None
    assert refusal.reason == Reason.EVALUATION_DATA_MISSING
    assert "set data.evaluation" in refusal.message


def test_many_targets_never_outgrow_status() -> None:
    targets = [{"name": f"t{number}"} for number in range(8)]
    spec = make_spec(targets=targets, search={"maxCandidates": 64})
    assert (len(plan(spec).candidates) + 1) * 8 <= ROWS_LIMIT  # and the published artifact of each


def test_explicit_recipes_are_tried_in_every_runtime_of_the_target() -> None:
    recipes = [
        {"name": "plain", "steps": []},
        {"name": "small", "steps": [{"quantize": {"mode": "Static"}}]},
        {"name": "half", "precision": "BFloat16"},
        {"name": "dyn", "steps": [{"quantize": {"mode": "Dynamic"}}]},
    ]
    found = plan(make_spec(recipes=recipes))
    assert tried(found) == [
        "original",
        "plain-onnxruntime",
        "plain-openvino",
        "small-onnxruntime",
        "small-openvino",
        "half-openvino",
        "dyn-onnxruntime",
    ]
    assert refused(found) == {
        "half-onnxruntime": Reason.RECIPE_NOT_APPLICABLE,
        "dyn-openvino": Reason.RECIPE_NOT_APPLICABLE,
    }
    assert named(found, "small-openvino").family == RuntimeName.OPENVINO


@pytest.mark.parametrize("second", ["Static", "WeightOnlyInt4"])
def test_a_recipe_quantizes_once(second: str) -> None:
    steps = [{"quantize": {"mode": mode}} for mode in ("WeightOnly", second)]
    found = plan(make_spec(recipes=[{"name": "twice", "steps": steps}]))
    assert set(refused(found).values()) == {Reason.RECIPE_NOT_APPLICABLE}
    refusal = named(found, "twice-openvino").refusal
    assert refusal is not None and "recipe twice quantizes twice: keep only one" in refusal.message


def test_layers_stay_in_float32_only_beside_others_in_bfloat16() -> None:
    steps = [{"quantize": {"mode": "BFloat16"}}]
    recipes = [{"name": "right", "steps": steps, "precision": "BFloat16"}, {"name": "wrong", "steps": steps}]
    found = plan(make_spec(recipes=recipes, targets=[{"name": "cpu", "runtimes": ["openvino"]}]))
    assert tried(found) == ["right-openvino"]
    refusal = named(found, "wrong-openvino").refusal
    assert refusal is not None and "set its precision to BFloat16" in refusal.message


CALIBRATION = {"calibration": {"uri": "pvc://m/c.npz"}}
EVALUATION = {"evaluation": {"uri": "pvc://m/e.npz"}}
REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any], Reason, list[str]]] = [
    ("quantizing what is quantized", {}, {"traits": traits(quantized=True)}, Reason.RECIPE_NOT_APPLICABLE,
     ["already quantized", "put the step dequantize first"]),
    ("calibrating on nothing", {}, {"calibration": None, "items": 4}, Reason.CALIBRATION_TOO_SMALL,
     ["needs 10 calibration items or more, found 0, split off from 4 evaluation items", "set data.calibration"]),
    ("calibrating on what a small evaluation can spare", {}, {"calibration": 9, "items": 38}, Reason.CALIBRATION_TOO_SMALL,
     ["found 9, split off from 47 evaluation items", "at least 50 distinct items in data.evaluation"]),
    ("calibrating on three given items", {"data": {**CALIBRATION, **EVALUATION}}, {"calibration": 3}, Reason.CALIBRATION_TOO_SMALL,
     ["10 calibration items or more, found 3 that are not evaluation items too: provide more of them in data.calibration"]),
    ("calibrating on evaluation's items", {"data": {**CALIBRATION, **EVALUATION}}, {"calibration": None}, Reason.CALIBRATION_TOO_SMALL,
     ["found 0 that are not evaluation items too"]),
    ("calibrating on three items alone", {"data": CALIBRATION}, {"calibration": 3, "generated": True}, Reason.CALIBRATION_TOO_SMALL,
     ["found 3: provide more of them in data.calibration"]),
    ("calibrating on nine that were made up", {"data": {"generated": {"samples": 9, "allowLossy": True}}},
     {"calibration": 9, "generated": True, "items": 9}, Reason.CALIBRATION_TOO_SMALL, ["found 9 generated ones: raise data.generated.samples"]),
    ("a runtime that cannot load the model", {}, {"portable_runtimes": (OPENVINO,)}, Reason.UNSUPPORTED_MODEL, ["onnxruntime"]),
    ("proving more than the items can", {"constraints": {"accuracy": {"maxDrop": 0.01}}}, {"items": 100},
     Reason.EVALUATION_TOO_SMALL, ["100 evaluation items", "0.01", "381 are needed"]),
    ("proving that nothing is lost", {"constraints": {"accuracy": {"maxDrop": 0}}}, {}, Reason.EVALUATION_TOO_SMALL, ["no number of items"]),
    ("a bootstrap over too few items",
     {"data": {"evaluation": {"uri": "pvc://m/e.npz", "metric": "F1"}}}, {"items": 29}, Reason.EVALUATION_TOO_SMALL, ["30 are needed"]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "fields", "facts", "reason", "words"), REFUSALS, ids=[line[0] for line in REFUSALS])
def test_refused_before_any_work(
    what: str, fields: dict[str, Any], facts: dict[str, Any], reason: Reason, words: list[str]
) -> None:
    recipes = [{"name": "small", "steps": [{"quantize": {"mode": "Static"}}]}]
    targets = [{"name": "cpu", "runtimes": ["onnxruntime"]}]
    found = plan(make_spec(recipes=recipes, targets=targets, **fields), **facts)
    assert refused(found) == {"small-onnxruntime": reason}
    assert tried(found) == ["original"]
    refusal = named(found, "small-onnxruntime").refusal
    assert refusal is not None
    for word in words:
        assert word in refusal.message


@pytest.mark.parametrize("metric", ["Detection", "Segmentation", "Text", "Embedding"])
def test_only_items_with_something_to_find_prove_what_a_task_lost(metric: str) -> None:
    spec = make_spec(
        data={"evaluation": {"uri": "pvc://m/e.npz", "metric": metric}}, constraints={"accuracy": {"maxDrop": 0.05}}
    )
    for informative, enough in ((900, True), (73, True), (72, False), (3, False)):
        report = prepared(possible_builds(spec)).model_copy(update={"metric": metric, "informative": informative})
        refusal = named(plan(spec, report), "int8-onnxruntime").refusal
        assert (refusal is None) == enough
        if refusal is not None:
            assert (
                f"{informative} evaluation items that contain something to find (of 900) cannot prove"
                in refusal.message
            )
            assert "73 are needed" in refusal.message


def test_only_what_calibrates_is_refused_for_too_few_items_to_do_so() -> None:
    found = plan(calibration=9, traits=traits(matmul_time_share=1.0))
    assert set(refused(found).values()) == {Reason.CALIBRATION_TOO_SMALL}
    assert all(row.refusal is not None for row in found.candidates if row.quantizes and "dynamic" not in row.name)
    assert tried(found) == [*ALWAYS[:8], "int8-dynamic-onnxruntime"]
    assert refused(plan(calibration=10)) == {}


def test_with_objective_throughput_each_row_is_also_tried_with_a_stream_per_thread() -> None:
    found = plan(make_spec(objective="Throughput", search={"maxCandidates": 64}))
    settings = {row.name: (row.plan.settings.threads, row.plan.settings.streams) for row in found.candidates}
    assert settings["int8-openvino"] == (2, 1)
    assert settings["int8-openvino-2streams"] == (1, 2)
    assert named(found, "int8-openvino-2streams").build == named(found, "int8-openvino").build, (
        "the same file serves both"
    )
    assert "original-2streams" not in settings
    one = plan(make_spec(objective="Throughput", targets=[{"name": "cpu"}]))
    assert not [row.name for row in one.candidates if "streams" in row.name]


ALLOWED = {"data": {"generated": {"samples": 400, "allowLossy": True}}}


def test_made_up_items_certify_where_that_is_asked_for_and_they_are_enough() -> None:
    found = plan(make_spec(**ALLOWED), generated=True, items=400)
    assert "int8-openvino" in tried(found)
    few = plan(make_spec(**ALLOWED), generated=True, items=64)
    refusal = named(few, "int8-openvino").refusal
    assert refusal is not None
    assert refusal.reason == Reason.EVALUATION_TOO_SMALL
    assert "64 generated items" in refusal.message
    assert "(data.generated.samples)" in refusal.message


def test_exact_candidates_go_on_where_items_are_too_few() -> None:
    found = plan(items=50)
    assert tried(found) == ["original", "float32-onnxruntime", "float32-openvino", "float32-openvino-static"]
    assert set(refused(found).values()) == {Reason.EVALUATION_TOO_SMALL}


PLACES: list[tuple[str, dict[str, Any], float, int, int]] = [
    ("four at most, however many are planned", {}, 0.02, 900, 4),
    ("only lossy candidates share the error", {"calibration": None}, 0.02, 900, 4),
    ("one place where nothing planned is lossy", {"portable_runtimes": (ORT,), "calibration": None}, 0.02, 900, 1),
    ("no more than the items can prove: all four", {}, 0.01, 618, 4),
    ("no more than the items can prove: three", {}, 0.01, 617, 3),
    ("no more than the items can prove: one", {}, 0.01, 381, 1),
]


@pytest.mark.parametrize(("sentence", "facts", "max_drop", "items", "places"), PLACES, ids=[line[0] for line in PLACES])
def test_the_error_is_shared_among_as_many_lossy_finalists_as_the_items_can_prove(
    sentence: str, facts: dict[str, Any], max_drop: float, items: int, places: int
) -> None:
    found = plan(make_spec(constraints={"accuracy": {"maxDrop": max_drop}}), items=items, **facts)
    assert found.places == places
    assert found.alpha == pytest.approx(0.05 / places)


def test_in_an_exhaustive_search_every_lossy_candidate_takes_its_share_of_the_error() -> None:
    found = plan(make_spec(search={"strategy": "Exhaustive"}))
    lossy = sum(row.lossy and row.refusal is None for row in found.candidates)
    assert lossy > 4
    assert found.places == lossy
    assert found.alpha == pytest.approx(0.05 / lossy)


@pytest.mark.parametrize(("unsure", "labelled", "places"), [("Count", False, 4), ("Skip", False, 1), ("Skip", True, 4)])
def test_items_that_may_not_count_in_the_agreement_prove_fewer_lossy_finalists(
    unsure: str, labelled: bool, places: int
) -> None:
    data = {"evaluation": {"uri": "pvc://models/evaluation.npz", "agreement": {"unsure": unsure}}}
    assert plan(make_spec(data=data), labelled=labelled, items=400).places == places
