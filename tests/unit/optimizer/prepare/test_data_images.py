"""A folder of pictures: scaled, normalized and labelled as `preprocess` says; what is no picture is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image
from tests.data import models
from tests.data.stored import arrays as arrays_in
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import CalibrationSpec, DataSpec, EvaluationSpec
from fettle.api.reasons import Reason
from fettle.errors import FettleError
from fettle.runtimes.base import Array

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(bench: Workbench, name: str, color: Any, size: tuple[int, int] = (32, 32)) -> None:
    """A picture of one color, at `photos/NAME`."""
    path = bench.folder / "photos" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if isinstance(color, tuple) else "L", size, color).save(path)


def put_identity(bench: Workbench, *shape: int | str, kind: int = TensorProto.FLOAT) -> None:
    """A model that answers the picture it is given."""
    nodes = [helper.make_node("Identity", ["image"], ["same"])]
    ends = [[models.tensor(name, list(shape), kind)] for name in ("image", "same")]
    bench.put(models.model(nodes, *ends))


def items(bench: Workbench, **preprocess: Any) -> dict[str, Array]:
    """What preparing reads of `photos`. Few items prove no batch axis, and are stored with a dimension of 1 for it."""
    spec = {"uri": "pvc://claim/photos", "metric": "Agreement", **({"preprocess": preprocess} if preprocess else {})}
    report = bench.prepare(bench.task(evaluation=EvaluationSpec.model_validate(spec)))
    stored = arrays_in(bench.store, report.items.sha256)
    return {name: array[:, 0] if array.ndim == 5 else array for name, array in stored.items()}


def refused(bench: Workbench, uri: str = "pvc://claim/photos", **preprocess: Any) -> FettleError:
    spec = {"uri": uri, **({"preprocess": preprocess} if preprocess else {})}
    return bench.refused(evaluation=EvaluationSpec.model_validate(spec))


def test_sub_folders_are_classes_by_the_order_of_their_names(bench: Workbench) -> None:
    put_identity(bench, "N", 3, 8, 8)
    for number in range(2):
        picture(bench, f"zebra/{number}.png", BLUE)
        picture(bench, f"ape/{number}.jpg", (250 + number, 0, 0))
    (bench.folder / "photos/ape/.hidden").write_text("not a picture")
    stored = items(bench)
    assert stored["image"].shape == (4, 3, 8, 8) and stored["image"].dtype == np.float32
    assert sorted(stored["labels"].tolist()) == [0, 0, 1, 1]
    for image, label in zip(stored["image"], stored["labels"], strict=True):
        assert (image[2].mean() > 0.9) == (label == 1), "blue zebras"


def test_folders_that_are_called_by_numbers_come_in_the_order_of_those(bench: Workbench) -> None:
    put_identity(bench, "N", 3, 8, 8)
    for number in (0, 2, 10):
        picture(bench, f"{number}/a.png", (number * 20, 0, 0))
    stored = items(bench)
    order = stored["labels"][np.argsort(stored["image"][:, 0, 0, 0])]
    assert order.tolist() == [0, 1, 2]


@pytest.mark.parametrize("numbers", [("0", "1", "3"), ("5", "6", "7"), ("1", "01", "2")])
def test_numbers_that_are_not_the_places_of_their_folders_are_refused_as_labels(
    bench: Workbench, numbers: tuple[str, ...]
) -> None:
    put_identity(bench, "N", 3, 8, 8)
    for number in numbers:
        picture(bench, f"{number}/a.png", RED)
    error = refused(bench)
    assert "expected 0 or 1 and up without a gap" in error.message and "data.evaluation.classes" in error.message
    assert len(items(bench)["image"]) == 3, "judged by agreement, nobody asks for their numbers"


def test_folders_of_other_classes_than_those_of_evaluation_are_refused_as_labels_to_train_on(bench: Workbench) -> None:
    put_identity(bench, "N", 3, 8, 8)
    for place, name in enumerate(("ape", "fox", "zebra")):
        picture(bench, f"evaluation/{name}/a.png", (place, 0, 0))
    for place, name in enumerate(("fox", "zebra")):
        picture(bench, f"training/{name}/b.png", (0, place, 0))

    def labelled(**classes: Any) -> bool:
        evaluation = {"uri": "pvc://claim/photos/evaluation", "metric": "Agreement", **classes}
        data = {"evaluation": evaluation, "training": {"uri": "pvc://claim/photos/training"}}
        report = bench.prepare(bench.task().model_copy(update={"data": DataSpec.model_validate(data)}))
        return report.training is not None and report.training.labelled

    told = r"photos/training has 2 folders of classes, .*photos/evaluation has 3, and only one of them has \['ape'\]: "
    with pytest.raises(FettleError, match=told):
        labelled()
    assert labelled(classes=["ape", "fox", "zebra"]), "a name says which class it is"
    picture(bench, "training/ape/b.png", BLUE)
    assert labelled()


def test_with_the_order_of_the_classes_a_folder_is_known_by_its_name(bench: Workbench) -> None:
    put_identity(bench, "N", 3, 8, 8)
    for name in ("ape", "zebra"):
        picture(bench, f"{name}/a.png", BLUE)
    spec = {"uri": "pvc://claim/photos", "metric": "Agreement", "classes": ["zebra", "ape"]}
    report = bench.prepare(bench.task(evaluation=EvaluationSpec.model_validate(spec)))
    assert sorted(arrays_in(bench.store, report.items.sha256)["labels"].tolist()) == ["ape", "zebra"]


def test_classes_come_in_turn_where_only_some_items_are_asked_for(bench: Workbench) -> None:
    put_identity(bench, "N", 3, 8, 8)
    for number in range(6):
        picture(bench, f"a/{number}.png", (number, 0, 0))
        picture(bench, f"b/{number}.png", (0, number + 1, 0))
    spec = EvaluationSpec.model_validate({"uri": "pvc://claim/photos", "maxSamples": 4, "metric": "Agreement"})
    report = bench.prepare(bench.task(evaluation=spec))
    assert sorted(arrays_in(bench.store, report.items.sha256)["labels"].tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("preprocess", "first_pixel"),
    [
        ({}, [1, 0, 0]),
        ({"color": "BGR"}, [0, 0, 1]),
        ({"mean": [0.5], "std": [0.25]}, [2, -2, -2]),
        ({"mean": [1, 0, 0], "std": [1, 1, 0.5]}, [0, 0, 0]),
        ({"std": [1 / 255]}, [255, 0, 0]),
    ],
)
def test_pixels_are_normalized_as_asked(bench: Workbench, preprocess: dict[str, Any], first_pixel: list[float]) -> None:
    put_identity(bench, "N", 3, 4, 4)
    picture(bench, "one.png", RED)
    assert items(bench, **preprocess)["image"][0, :, 0, 0] == pytest.approx(first_pixel, abs=1e-4)


def test_integer_inputs_get_pixels_as_they_are_in_the_layout_asked_for(bench: Workbench) -> None:
    put_identity(bench, "N", 4, 6, 1, kind=TensorProto.UINT8)
    picture(bench, "one.png", 77)
    stored = items(bench, layout="NHWC", color="Grayscale")["image"]
    assert stored.shape == (1, 4, 6, 1) and (stored == 77).all()


def deep(bench: Workbench, name: str, value: int) -> None:
    """A grey picture of 16 bits."""
    path = bench.folder / "photos" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 5), value, np.uint16)).save(path)


@pytest.mark.parametrize(("color", "channels"), [("Grayscale", 1), ("RGB", 3), ("BGR", 3)])
def test_pixels_of_sixteen_bits_are_scaled_by_their_own_white(bench: Workbench, color: str, channels: int) -> None:
    put_identity(bench, "N", channels, 4, 4)
    deep(bench, "one.png", 1000)
    found = items(bench, color=color)["image"]
    assert found.shape == (1, channels, 4, 4)
    assert found == pytest.approx(1000 / 65535, abs=1e-7)


def test_integer_inputs_take_pixels_of_sixteen_bits_only_where_they_fit_and_alone(bench: Workbench) -> None:
    deep(bench, "one.png", 1000)
    put_identity(bench, "N", 1, 4, 4, kind=TensorProto.UINT16)
    assert (items(bench, color="Grayscale")["image"] == 1000).all()
    put_identity(bench, "N", 1, 4, 4, kind=TensorProto.UINT8)
    assert "one.png is a 16-bit image, but image has type UINT8" in refused(bench, color="Grayscale").message
    put_identity(bench, "N", 1, 4, 4, kind=TensorProto.INT32)
    picture(bench, "two.png", 7)
    assert "two.png: 8-bit and 16-bit images are mixed" in refused(bench, color="Grayscale").message


def test_files_beside_the_folders_of_classes_are_said_not_to_be_used(bench: Workbench) -> None:
    put_identity(bench, "N", 3, 8, 8)
    picture(bench, "ape/one.png", RED)
    picture(bench, "stray.png", RED)
    picture(bench, "ape/young/two.png", RED)
    spec = EvaluationSpec.model_validate({"uri": "pvc://claim/photos", "metric": "Agreement"})
    report = bench.prepare(bench.task(evaluation=spec))
    assert [note for note in report.notes if "neither inputs nor labels: ['ape/young', 'stray.png']" in note]


def test_a_crop_keeps_the_middle_and_a_stretch_keeps_everything(bench: Workbench) -> None:
    put_identity(bench, "N", 3, 10, 10)
    wide = Image.new("RGB", (40, 10), BLUE)
    wide.paste(RED, (15, 0, 25, 10))
    (bench.folder / "photos").mkdir()
    wide.save(bench.folder / "photos/wide.png")
    assert items(bench, crop=1)["image"][0, 0].mean() > 0.95
    assert items(bench)["image"][0, 0].mean() < 0.35


def test_a_picture_is_turned_as_its_camera_says(bench: Workbench) -> None:
    put_identity(bench, "N", 3, 4, 2)
    picture(bench, "x.png", RED)
    made = Image.new("RGB", (4, 2), BLUE)
    made.paste(RED, (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    made.save(bench.folder / "photos/x.png", exif=exif)
    assert items(bench)["image"][0, 0, 0].min() > 0.9, "its left half is now on top"


def test_pictures_calibrate_too(bench: Workbench) -> None:
    put_identity(bench, "N", 3, 8, 8)
    for number in range(5):
        picture(bench, f"{number}.png", (number, 0, 0))
    report = bench.prepare(bench.task(calibration=CalibrationSpec(uri="pvc://claim/photos")))
    assert report.calibration is not None
    assert (report.calibration.items, report.calibration.labelled) == (5, False)


@pytest.mark.parametrize(
    ("preprocess", "words"),
    [
        ({"mean": [0.1, 0.2]}, "preprocess.mean has 2 numbers, expected 1 or 3 for RGB"),
        ({"std": [0]}, "must not be 0"),
        ({"width": 9, "height": 9}, "expected the shape [items, 3, 8, 8], found [1, 3, 9, 9]"),
        ({"color": "Grayscale"}, "expected the shape [items, 3, 8, 8], found [1, 1, 8, 8]"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(bench: Workbench, preprocess: dict[str, Any], words: str) -> None:
    put_identity(bench, "N", 3, 8, 8)
    picture(bench, "one.png", RED)
    error = refused(bench, **preprocess)
    assert (error.reason, words in error.message) == (Reason.DATA_INVALID, True), error.message


def test_what_is_no_picture_is_named(bench: Workbench) -> None:
    put_identity(bench, "N", 3, 8, 8)
    picture(bench, "ape/one.png", RED)
    (bench.folder / "photos/ape/notes.txt").write_text("not a picture")
    whole = (bench.folder / "photos/ape/one.png").read_bytes()
    message = refused(bench).message
    assert "photos: ape/notes.txt is not a readable image" in message and " at 0x" not in message
    (bench.folder / "photos/ape/notes.txt").write_bytes(whole[:50])
    assert "photos: ape/notes.txt is not a readable image" in refused(bench).message


def test_folders_where_none_is_meant_are_refused(bench: Workbench) -> None:
    put_identity(bench, "N", 3, 8, 8)
    (bench.folder / "photos").mkdir()
    assert "contains no items" in refused(bench).message
    picture(bench, "one.png", RED)
    assert (
        "preprocess requires a folder"
        in refused(bench, bench.data("items", image=np.zeros((3, 3, 8, 8), "f4")), crop=1).message
    )
    put_identity(bench, "N", 3, "H", "W")
    assert "set preprocess.width" in refused(bench).message
    bench.put(models.tokens())
    assert "a model with one image as input" in refused(bench).message
    assert refused(bench, "pvc://claim/nowhere").reason == Reason.DATA_NOT_FOUND
