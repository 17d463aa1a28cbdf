"""Items: read as they are, refused when they do not fit, split so that no item both calibrates and certifies."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.data import models
from tests.data.stored import arrays as arrays_in
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import CalibrationSpec, EvaluationSpec, GeneratedSpec
from fettle.api.labels import LabelForm
from fettle.api.reasons import Reason
from fettle.api.recipe import QuantizeStep, RecipeStep
from fettle.api.signature import Signature, Tensor
from fettle.api.task import BuildPlan, LossBound, StoredModel
from fettle.api.vocabulary import QuantizeMode, RuntimeName
from fettle.errors import DataError, FettleError, RuntimeFailure
from fettle.optimizer.data import generate
from fettle.optimizer.data.items import Items
from fettle.optimizer.data.split import split
from fettle.optimizer.onnx import inputs as onnx_inputs
from fettle.runtimes.base import Array
from fettle.store.cache import write_build

LABELS = np.arange(20) % 4


def evaluation(uri: str, **values: object) -> EvaluationSpec:
    return EvaluationSpec.model_validate({"uri": uri, **values})


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"picture": models.images(20)}, "no array for the inputs ['image'], found ['picture']"),
        ({"image": models.images(20)[:, :, :8]}, "expected the shape [items, 1, 16, 16], found [20, 1, 8, 16]"),
        (
            {"image": (models.images(20) * 255).astype("u1")},
            "expected FP32, found UINT8; convert it with the model's own",
        ),
        ({"image": models.images(20), "labels": LABELS[:5]}, "must have the same number of items, found"),
        ({"image": models.images(0)}, "contains no items"),
        ({"image": np.array([{}], dtype=object)}, "pickled object array"),
        ({"image": np.float32(1)}, "its first axis must be the items"),
    ],
)
def test_items_that_do_not_fit_are_refused_with_what_was_expected(
    bench: Workbench, arrays: dict[str, Array], words: str
) -> None:
    bench.put(models.dynamic_batch())
    error = bench.refused(evaluation=evaluation(bench.data("items", **arrays)))
    assert (error.reason, words in error.message) == (Reason.DATA_INVALID, True), error.message


def test_items_that_hold_nan_are_counted(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    images = models.images(20)
    images[3, 0, 0, 0], images[7] = np.nan, np.inf
    with pytest.raises(FettleError, match="2 of 20 items contain NaN or infinity, the first is item 3") as caught:
        bench.prepare(bench.task(evaluation=evaluation(bench.data("items", image=images))))
    assert caught.value.reason == Reason.DATA_INVALID


def test_data_that_is_not_there_is_not_found(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    for uri in ("pvc://claim/none.npz", "pvc://gone/none.npz"):
        error = bench.refused(evaluation=evaluation(uri))
        assert error.reason == Reason.DATA_NOT_FOUND


def test_of_data_that_is_not_there_the_names_beside_it_are_told(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    (bench.folder / "items.npz").write_bytes(b"1")
    told = bench.refused(evaluation=evaluation("pvc://claim/item.npz")).message
    assert told.startswith("pvc://claim/item.npz does not exist; its folder has items.npz"), told


def test_a_file_that_is_no_npz_is_refused(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    (bench.folder / "items.npz").write_text("csv,really")
    with pytest.raises(FettleError, match=r"is not a readable \.npz file") as caught:
        bench.prepare(bench.task(evaluation=evaluation("pvc://claim/items.npz")))
    assert caught.value.reason == Reason.DATA_INVALID


def test_labels_travel_with_their_items(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    images = models.images(20)
    uri = bench.data("items", image=images, classes=LABELS)
    report = bench.prepare(bench.task(evaluation=evaluation(uri, labelKey="classes", metric="Agreement")))
    stored = arrays_in(bench.store, report.items.sha256)
    assert report.items.labelled and not report.generated
    for image, label in zip(stored["image"], stored["labels"], strict=True):
        (place,) = np.nonzero((images == image).all(axis=(1, 2, 3)))[0]
        assert LABELS[place] == label


def test_a_label_key_that_names_nothing_is_refused(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    uri = bench.data("items", image=models.images(20))
    with pytest.raises(FettleError, match=r"no array 'classes' .*: add the labels, or remove labelKey") as caught:
        bench.prepare(bench.task(evaluation=evaluation(uri, labelKey="classes")))
    assert caught.value.reason == Reason.DATA_INVALID
    other = bench.data("others", image=models.images(20), y=np.arange(20))
    with pytest.raises(FettleError, match=r"no array 'classes' .*, found \['y'\]: set labelKey to the one"):
        bench.prepare(bench.task(evaluation=evaluation(other, labelKey="classes")))


@pytest.mark.parametrize("metric", ["F1", "MeanSquaredError", "CosineSimilarity"])
def test_a_metric_that_agreement_does_not_stand_in_for_needs_labels(bench: Workbench, metric: str) -> None:
    bench.put(models.dynamic_batch())
    uri = bench.data("items", image=models.images(20), label=LABELS)  # the default key is `labels`
    with pytest.raises(
        FettleError,
        match=rf"no array 'labels' .*, which {metric} requires, found \['label'\]: set labelKey, .* metric: Agreement",
    ) as caught:
        bench.prepare(bench.task(evaluation=evaluation(uri, metric=metric)))
    assert caught.value.reason == Reason.DATA_INVALID


@pytest.mark.parametrize(
    ("metric", "form"),
    [("MeanSquaredError", LabelForm.NUMBERS), ("CosineSimilarity", LabelForm.NUMBERS), ("Regression", LabelForm.TASK)],
)
def test_labels_under_another_key_are_read_as_the_metric_needs_them(
    bench: Workbench, metric: str, form: LabelForm
) -> None:
    entry, images = bench.put(models.dynamic_batch()), models.images(20)
    (answers,) = onnxruntime.InferenceSession(str(entry)).run(None, {"image": images})
    uri = bench.data("items", image=images, label=answers)
    report = bench.prepare(bench.task(evaluation=evaluation(uri, metric=metric, labelKey="label")))
    assert report.items.labelled
    assert report.labels is not None and report.labels.form is form


def test_unlabelled_items_are_judged_by_agreement_and_the_report_says_so(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    report = bench.prepare(bench.task(evaluation=evaluation(bench.data("items", image=models.images(20)))))
    assert not report.items.labelled
    assert any("compared with the original's answers" in note for note in report.notes)


@pytest.mark.parametrize(
    ("metric", "advice"),
    [("Auto", "set metric: Agreement"), ("Accuracy", "set metric: Agreement"), ("TopK", "leave the others out")],
)
def test_labels_under_another_key_are_not_passed_over(bench: Workbench, metric: str, advice: str) -> None:
    bench.put(models.dynamic_batch())
    uri = bench.data("items", image=models.images(20), y=LABELS, id=np.arange(20))
    with pytest.raises(
        FettleError, match=rf"no array 'labels' .*found \['id', 'y'\]: set labelKey .*, {advice}"
    ) as caught:
        bench.prepare(bench.task(evaluation=evaluation(uri, metric=metric)))
    assert caught.value.reason is Reason.DATA_INVALID


@pytest.mark.parametrize(
    "given", [{"metric": "Agreement"}, {"labelKey": "y", "metric": "CosineSimilarity"}], ids=["no labels", "labels"]
)
def test_columns_that_nobody_needs_are_noted_where_it_is_clear_what_judges(
    bench: Workbench, given: dict[str, str]
) -> None:
    entry, images = bench.put(models.dynamic_batch()), models.images(20)
    (scores,) = onnxruntime.InferenceSession(str(entry)).run(None, {"image": images})
    uri = bench.data("items", image=images, y=scores, id=np.arange(20))
    report = bench.prepare(bench.task(evaluation=evaluation(uri, **given)))
    assert report.items.labelled == ("labelKey" in given)
    assert any("neither inputs nor labels: ['id'" in note for note in report.notes)


def test_float64_items_become_float32_and_small_ints_become_large(bench: Workbench) -> None:
    bench.put(models.tokens())
    ids = np.random.default_rng(0).integers(0, 37, (10, 6)).astype(np.int32)
    uri = bench.data("items", input_ids=ids, attention_mask=np.ones((10, 6), np.uint8))
    report = bench.prepare(bench.task(evaluation=evaluation(uri)))
    assert arrays_in(bench.store, report.items.sha256)["input_ids"].dtype == np.int64
    bench.put(models.dynamic_batch())
    uri = bench.data("images", image=models.images(10).astype(np.float64))
    report = bench.prepare(bench.task(evaluation=evaluation(uri)))
    assert arrays_in(bench.store, report.items.sha256)["image"].dtype == np.float32


@pytest.mark.parametrize("name", ["fixed_batch", "dynamic_batch"])
@pytest.mark.parametrize("spread", [False, True])
def test_an_item_may_bring_its_batch_axis_or_not(bench: Workbench, name: str, spread: bool) -> None:
    bench.put(models.BY_NAME[name]())
    images = models.images(20)
    uri = bench.data("items", image=images[:, np.newaxis] if spread else images)
    report = bench.prepare(bench.task(evaluation=evaluation(uri)))
    shape = arrays_in(bench.store, report.items.sha256)["image"].shape
    assert shape == ((16, 1, 16, 16) if name == "dynamic_batch" else (16, 1, 1, 16, 16))


def test_items_lie_along_the_first_axis_even_where_the_batch_is_the_second(bench: Workbench) -> None:
    bench.put(models.recurrent())
    frames = np.random.default_rng(0).standard_normal((10, 5, 6)).astype(np.float32)
    report = bench.prepare(bench.task(evaluation=evaluation(bench.data("items", frames=frames))))
    assert report.signature.inputs[0].batch_axis == 1
    assert arrays_in(bench.store, report.items.sha256)["frames"].shape == (8, 5, 6)


def test_at_most_so_many_samples_are_used(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    uri = bench.data("items", image=models.images(20), labels=LABELS)
    calibrating = bench.data("more", image=models.images(9, seed=1))
    report = bench.prepare(
        bench.task(
            evaluation=evaluation(uri, maxSamples=5),
            calibration=CalibrationSpec(uri=calibrating, max_samples=3),
        )
    )
    assert report.items.items == 5
    assert report.calibration is not None and report.calibration.items == 3
    assert (arrays_in(bench.store, report.items.sha256)["image"] == models.images(20)[:5]).all()


def whole(*values: float) -> Items:
    return Items({"x": np.array(values, np.float32).reshape(-1, 1)}, np.arange(len(values)))


def values(items: Items | None) -> list[float]:
    return [] if items is None else sorted(items.arrays["x"].reshape(-1).tolist())


def test_items_in_both_sets_only_certify() -> None:
    found = split(whole(1, 2, 3), whole(3, 4))
    assert (values(found.calibration), values(found.evaluation)) == ([1, 2], [3, 4])
    assert "1 of 3 calibration items are also evaluation items" in found.notes[0]


def test_a_fifth_is_split_off_and_never_certifies() -> None:
    found = split(None, whole(*range(100)))
    assert found.calibration is not None and found.evaluation is not None
    assert (len(found.calibration), len(found.evaluation)) == (20, 80)
    assert not set(values(found.calibration)) & set(values(found.evaluation))


def test_the_split_does_not_depend_on_the_order_of_items() -> None:
    assert values(split(None, whole(*range(100))).calibration) == values(
        split(None, whole(*reversed(range(100)))).calibration
    )


def test_copies_of_an_item_go_the_same_way() -> None:
    found = split(None, whole(*(list(range(50)) * 2)))
    assert not set(values(found.calibration)) & set(values(found.evaluation))


def test_of_items_in_many_copies_a_fifth_of_the_different_ones_is_split_off() -> None:
    found = split(None, whole(*(list(range(30)) * 4)))
    assert (len(values(found.calibration)), len(values(found.evaluation))) == (24, 96)
    assert not set(values(found.calibration)) & set(values(found.evaluation))


def test_copies_of_a_few_items_are_not_split_and_the_note_says_how_few() -> None:
    found = split(None, whole(*[1, 2, 3] * 40))
    assert found.calibration is None
    assert found.notes[0] == "120 evaluation items (3 distinct) are too few to use a part of them for calibration"


def test_items_that_certify_several_times_are_told() -> None:
    told = "only 3 of the 120 evaluation items are distinct"
    for found in (split(None, whole(*[1, 2, 3] * 40)), split(whole(7, 8), whole(*[1, 2, 3] * 40))):
        assert any(told in note for note in found.notes)
    (note,) = split(None, whole(*range(100))).notes
    assert "different" not in note
    assert any("only 24 of the 96" in note for note in split(None, whole(*(list(range(30)) * 4))).notes)


def test_an_item_whose_answer_has_no_row_is_refused_with_what_to_write(bench: Workbench) -> None:
    x = np.abs(np.random.default_rng(0).standard_normal((60, 4))).astype(np.float32)
    x[40:] *= -1  # the first items have a row each, as a batch axis would
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], axes=[1], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["found"]),
        helper.make_node("Compress", ["x", "found"], ["y"], axis=0),
    ]
    tensors = [helper.make_tensor_value_info(*one) for one in (("x", 1, ["N", 4]), ("y", 1, ["M", 4]))]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], [numpy_helper.from_array(np.float32(0), "zero")])
    bench.put(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    evaluation = EvaluationSpec(uri=bench.data("items", x=x, labels=x.argmax(1)))
    with pytest.raises(RuntimeFailure, match=r"shapes \{'y': \[0, 4\]\}.*source\.inputs\[\]\.shape") as caught:
        bench.prepare(bench.task(evaluation=evaluation))
    assert caught.value.reason == Reason.OUTPUTS_INVALID


def test_too_few_items_are_not_split() -> None:
    found = split(None, whole(1, 2, 3))
    assert found.calibration is None
    assert values(found.evaluation) == [1, 2, 3]


def test_never_more_than_256_items_calibrate_unasked() -> None:
    found = split(None, whole(*range(2000)))
    assert found.calibration is not None and len(found.calibration) == 256


def test_calibration_items_alone_certify_nothing(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    uri = bench.data("items", image=models.images(20))
    report = bench.prepare(bench.task(calibration=CalibrationSpec(uri=uri)))
    assert report.generated
    assert report.calibration is not None and report.calibration.items == 20


def test_as_many_items_are_made_up_as_are_asked_for_and_none_calibrate_unless_they_may_certify(
    bench: Workbench,
) -> None:
    bench.put(models.dynamic_batch())
    report = bench.prepare(bench.task(generated=GeneratedSpec(samples=40)))
    assert (report.generated, report.items.items, report.calibration, report.screening) == (True, 40, None, None)


def test_how_often_a_loop_runs_is_never_made_up() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["before", "before"], ["after"])],
        "body",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [2]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [2]),
        ],
    )
    looping = models.model(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)],
        [models.tensor("times", [], TensorProto.INT64), models.tensor("x", [2])],
        [models.tensor("y", [2])],
    )
    signature = Signature(
        inputs=(Tensor(name="times", dtype="INT64", shape=()), Tensor(name="x", dtype="FP32", shape=(2,))),
        outputs=(Tensor(name="y", dtype="FP32", shape=(2,)),),
    )
    generator = generate.Generator(signature, onnx_inputs.hints(looping), {}, {}, 0)
    with pytest.raises(DataError, match=r"\['times'\] set the number of iterations of a loop.*value"):
        generate.find(generator, lambda inputs: inputs)


def test_items_that_are_made_up_to_calibrate_are_not_those_that_certify(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    task = bench.task(generated=GeneratedSpec(samples=300, allow_lossy=True), builds=[PLAN])
    report = bench.prepare(task)
    assert report.calibration is not None
    assert report.screening is not None
    assert (report.items.items, report.calibration.items, report.screening.items) == (300, 256, 32)
    certifying, calibrating = (
        arrays_in(bench.store, data)["image"] for data in (report.items.sha256, report.calibration.sha256)
    )
    assert not {one.tobytes() for one in certifying} & {one.tobytes() for one in calibrating}
    assert bench.prepare(task) == report, "asked again, the same items are made up"
    (bench.folder / "store/blobs" / report.calibration.sha256).unlink()
    assert bench.prepare(task).calibration == report.calibration
    assert bench.store.has_blob(report.calibration.sha256), "what was lost is made up again"


def mixed(max_drop: float) -> BuildPlan:
    bound = LossBound(max_loss=max_drop, refused=max_drop + 0.1)
    step = RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.MIXED))
    return BuildPlan(name="int8-mixed", family=RuntimeName.ONNXRUNTIME, steps=(step,), loss=bound)


def test_another_bound_of_what_may_be_lost_prepares_nothing_anew(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.put(models.dynamic_batch())
    given = evaluation(bench.data("items", image=models.images(60)))
    first = bench.prepare(bench.task(evaluation=given, builds=[mixed(0.01)]))
    caplog.set_level("INFO", "fettle")
    second = bench.prepare(bench.task(evaluation=given, builds=[mixed(0.02)]))
    assert "already prepared" in caplog.text
    assert second.builds[0].cache_key != first.builds[0].cache_key
    assert second.model_copy(update={"builds": first.builds}) == first


def test_the_screening_items_are_calibration_items_with_their_labels(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    given = {"image": models.images(50), "labels": np.arange(50)}
    calibration = CalibrationSpec(uri=bench.data("calibration", **given))
    report = bench.prepare(
        bench.task(calibration=calibration, evaluation=evaluation(bench.data("items", image=models.images(20, seed=5))))
    )
    assert report.screening is not None
    assert report.calibration is not None
    assert (report.screening.items, report.screening.labelled, report.calibration.labelled) == (32, True, False)
    screening = arrays_in(bench.store, report.screening.sha256)
    for image, label in zip(screening["image"], screening["labels"], strict=True):
        np.testing.assert_array_equal(image, given["image"][label])


# -------------------------------------------------------------------------------------------------------------- asked again

PLAN = BuildPlan(name="int8", family=RuntimeName.ONNXRUNTIME, steps=(RecipeStep(quantize=QuantizeStep()),))


def test_asked_again_it_answers_from_the_store_and_knows_newer_builds(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    task = bench.task(evaluation=evaluation(bench.data("items", image=models.images(20))), builds=[PLAN])
    first = bench.prepare(task)
    assert first.builds[0].built is None
    built: StoredModel = first.portable
    write_build(bench.store, first.builds[0].cache_key, built)
    again = bench.prepare(task)
    assert again.builds[0].built == built
    assert again.model_copy(update={"builds": ()}) == first.model_copy(update={"builds": ()})


@pytest.mark.parametrize(
    ("name", "shape"), [("fixed_batch", (12, 1, 16, 16)), ("whole_batch_output", (12, 4)), ("recurrent", (12, 5, 6))]
)
def test_asked_again_any_model_reads_its_items_the_same_way(
    bench: Workbench, name: str, shape: tuple[int, ...]
) -> None:
    bench.put(models.BY_NAME[name]())
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    feed = {{"fixed_batch": "image", "whole_batch_output": "x", "recurrent": "frames"}[name]: values}
    task = bench.task(evaluation=evaluation(bench.data("items", **feed)))
    assert bench.prepare(task) == bench.prepare(task)


def test_another_file_behind_the_same_address_is_prepared_anew(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    first = bench.prepare()
    bench.put(models.fixed_batch())
    assert bench.prepare().source.sha256 != first.source.sha256


def test_other_items_behind_the_same_address_are_read_anew(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    task = bench.task(evaluation=evaluation(bench.data("items", image=models.images(20))), builds=[PLAN])
    first = bench.prepare(task)
    bench.data("items", image=models.images(20, seed=99))
    second = bench.prepare(task)
    assert second.items != first.items
    assert second.builds[0].cache_key != first.builds[0].cache_key


def test_a_lost_blob_is_made_again(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    first = bench.prepare()
    root = bench.store.root.local
    assert root is not None
    (root / "blobs" / first.portable.files[0].sha256).unlink()
    assert bench.prepare().portable == first.portable
    assert bench.store.has_blob(first.portable.files[0].sha256)
