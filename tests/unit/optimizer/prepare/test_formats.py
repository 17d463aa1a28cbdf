"""What is told of source formats without their toolchains: recognized, named, refused; no library of theirs is loaded."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.signature import Tensor
from fettle.api.source import SourceSpec
from fettle.api.vocabulary import FormatName
from fettle.errors import FettleError, SourceError
from fettle.optimizer.sources import archive, mlflow
from fettle.optimizer.sources.framework import fitted, not_installed
from fettle.optimizer.sources.lightgbm import below


def zipped(**files: bytes) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name.replace("__", "."), content)
    return stream.getvalue()


def flipped(content: bytes, place: int) -> bytes:
    """With another byte at that place."""
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


FILES = [
    ("model.keras", zipped(config__json=b"{}", model__weights__h5=b""), "Keras", "tensorflow"),
    ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(90), "Keras", "tensorflow"),
    ("saved_model.pb", b"\x08\x01", "SavedModel", "tensorflow"),
    ("graph.pb", b"\n\x14\n\x05image\x12\x0bPlaceholder", "FrozenGraph", "tensorflow"),
    ("model.tflite", b"\x1c\0\0\0TFL3" + bytes(90), "TFLite", "ai_edge_litert"),
    ("model.skops", zipped(schema__json=b"{}"), "ScikitLearn", "skops"),
    ("model.json", b'{"learner": {}}', "XGBoost", "xgboost"),
    ("model.ubj", b"{L\0\0\0\0\0\0\0\x07learner{", "XGBoost", "xgboost"),
    ("model.txt", b"tree\nversion=v4\n", "LightGBM", "lightgbm"),
    ("model.cbm", b"CBM1" + bytes(90), "CatBoost", "catboost"),
]


@pytest.mark.parametrize(("name", "content", "format", "module"), FILES, ids=[row[0] for row in FILES])
def test_without_the_toolchain_one_line_says_what_to_install_and_what_to_set(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, format: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    (bench.folder / name).write_bytes(content)
    error = bench.refused(source=SourceSpec(uri=f"pvc://claim/{name}"))
    assert error.reason == Reason.UNSUPPORTED_FORMAT
    assert " not installed: pip install '.[" in error.message
    assert f"source.format: {format} selects the image" in error.message


@pytest.mark.parametrize(("name", "content", "format", "module"), FILES, ids=[row[0] for row in FILES])
def test_a_file_that_is_cut_or_is_something_else_is_damaged_by_its_name(
    bench: Workbench, name: str, content: bytes, format: str, module: str
) -> None:
    for rest in (b"", b"something else"):
        (bench.folder / name).write_bytes(rest)
        if name in ("saved_model.pb", "graph.pb", "model.json", "model.txt") and rest:
            continue  # known by its name alone, or a name that other files have too
        error = bench.refused(source=SourceSpec(uri=f"pvc://claim/{name}"))
        assert (error.reason, "is damaged" in error.message) == (Reason.SOURCE_CORRUPTED, True), error.message


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        (["skops"], "skops is not installed"),
        (["sklearn", "skl2onnx", "skops"], "sklearn, skl2onnx and skops are not installed"),
    ],
)
def test_what_is_missing_is_told_in_a_sentence(missing: list[str], told: str) -> None:
    error = not_installed("a.skops is scikit-learn", missing, "sklearn", "ScikitLearn")
    assert f"a.skops is scikit-learn, and {told}: pip install" in error.message


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib", "model.pickle"])
def test_a_pickle_is_never_run_unless_it_is_trusted(bench: Workbench, name: str) -> None:
    (bench.folder / name).write_bytes(pickle.dumps({"steps": Touch(bench.folder / "canary")}))
    error = bench.refused(source=SourceSpec(uri=f"pvc://claim/{name}"))
    assert not (bench.folder / "canary").exists()
    assert error.reason == Reason.UNSAFE_PICKLE
    assert "needs posix.mkdir" in error.message
    assert "source.trusted: true" in error.message


def test_the_frameworks_classes_and_strange_names_come_first_of_what_a_pickle_needs(bench: Workbench) -> None:
    names = [
        "sklearn.tree Tree",
        "numpy dtype",
        "numpy ndarray",
        "scipy.sparse csr",
        "joblib x",
        "posix system",
        "sklearn.a B",
    ]
    imports = b"".join(b"c%b\n0" % name.replace(" ", "\n").encode() for name in names)
    (bench.folder / "model.pkl").write_bytes(b"\x80\x02" + imports + b"N.")
    error = bench.refused(source=SourceSpec(uri="pvc://claim/model.pkl"))
    assert (
        "needs sklearn.a.B, sklearn.tree.Tree, posix.system, joblib.x, numpy.dtype and 2 more: unpickling"
        in error.message
    )


ARCHIVES = [
    ("a path that leaves", zipped(**{"../evil": b"x"}), "'../evil'"),
    ("an absolute path", zipped(**{"/etc/x": b"x"}), "'/etc/x'"),
    ("a bomb", zipped(zeros=bytes(300 << 20)), "would unpack to"),
    ("another byte", flipped(zipped(a=np.random.default_rng(0).bytes(999)), 500), "damaged zip archive"),
    ("cut", zipped(a=np.random.default_rng(0).bytes(999))[:-30], "damaged zip archive"),
]


@pytest.mark.parametrize(("what", "content", "words"), ARCHIVES, ids=[row[0] for row in ARCHIVES])
def test_an_archive_that_would_harm_is_refused_before_it_is_unpacked(
    tmp_path: Path, what: str, content: bytes, words: str
) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        archive.check(path)
    assert (caught.value.reason, words in caught.value.message) == (Reason.SOURCE_CORRUPTED, True), caught.value.message


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "model.skops", "w") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(SourceError, match="is a link"):
        archive.check(tmp_path / "model.skops")


# -------------------------------------------------------------------------------------------------------------------- MLflow


def described(**flavours: object) -> bytes:
    return json.dumps({"flavors": flavours}).encode()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (described(python_function={}, xgboost={"data": "model.ubj"}), "model.ubj"),
        (described(python_function={}, sklearn={"pickled_model": "model.pkl"}), "model.pkl"),
        (described(tensorflow={"data": "data"}), "data"),
        (described(pytorch={"model_data": "data"}), "data"),
        (described(python_function={}, transformers={"model_binary": "model"}), "model"),
    ],
)
def test_an_mlflow_directory_names_its_model(text: bytes, place: str) -> None:
    assert mlflow.inner(text, "MLmodel") == place


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", Reason.SOURCE_CORRUPTED),
        (b"\xff\xfe\xfd", Reason.SOURCE_CORRUPTED),
        (b"flavors: [1, 2", Reason.SOURCE_CORRUPTED),
        (b"[" * 5000, Reason.SOURCE_CORRUPTED),
        (b"flavors: 3", Reason.SOURCE_CORRUPTED),
        (described(xgboost={}), Reason.SOURCE_CORRUPTED),
        (described(xgboost={"data": "../../etc/passwd"}), Reason.SOURCE_CORRUPTED),
        (described(xgboost={"data": "/etc/passwd"}), Reason.SOURCE_CORRUPTED),
        (described(python_function={"loader_module": "mine"}), Reason.UNSUPPORTED_MODEL),
        (described(h2o={}), Reason.UNSUPPORTED_MODEL),
    ],
)
def test_an_mlflow_directory_that_names_none_is_refused(text: bytes, reason: Reason) -> None:
    with pytest.raises(SourceError) as caught:
        mlflow.inner(text, "MLmodel")
    assert caught.value.reason == reason, caught.value.message


def test_an_onnx_model_in_an_mlflow_directory_is_prepared_as_it_is(bench: Workbench) -> None:
    folder = bench.folder / "registered"
    models.save(models.dynamic_batch(), folder / "model.onnx")
    (folder / "MLmodel").write_bytes(described(onnx={"data": "model.onnx"}))
    report = bench.prepare(bench.task(source=SourceSpec(uri="pvc://claim/registered", format=FormatName.MLFLOW)))
    assert (report.source.format, report.original.entry) == (FormatName.ONNX, "model.onnx")


def test_a_description_without_end_is_not_read_to_its_end(bench: Workbench) -> None:
    (bench.folder / "registered").mkdir()
    with (bench.folder / "registered/MLmodel").open("wb") as stream:
        stream.truncate(64 << 20)
    tracemalloc.start()
    try:
        error = bench.refused(source=SourceSpec(uri="pvc://claim/registered"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.reason == Reason.SOURCE_CORRUPTED
    assert peak < 32 << 20


def test_a_configuration_without_end_is_not_read(bench: Workbench) -> None:
    (bench.folder / "net").mkdir()
    (bench.folder / "net/model.safetensors").write_bytes(b"")
    with (bench.folder / "net/config.json").open("wb") as stream:
        stream.truncate(17 << 20)
    error = bench.refused(source=SourceSpec(uri="pvc://claim/net"))
    assert error.reason == Reason.SOURCE_CORRUPTED
    assert "config.json is damaged: expected a configuration of at most 16 MiB" in error.message


# -------------------------------------------------------------------------------------------------------------- missing values


def trees(missing: float) -> onnx.ModelProto:
    """One tree: below 0 the answer is 1, above it 2, and without a value the one or the other."""
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_values=[0.0, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=[int(missing == 1), 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[1.0, 2.0],
    )
    made = models.model([node], [models.tensor("x", ["N", 2])], [models.tensor("y", ["N", 1])])
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return made


def test_values_may_be_missing_where_trees_know_what_to_do_without_them(bench: Workbench) -> None:
    bench.put(trees(missing=1))
    items = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    items[::3, 0] = np.nan
    report = bench.prepare(bench.task(evaluation=EvaluationSpec(uri=bench.data("items", x=items))))
    assert not report.generated
    items[0, 1] = np.inf
    task = bench.task(evaluation=EvaluationSpec(uri=bench.data("other", x=items)))
    with pytest.raises(FettleError, match="1 of 40 items contain infinity"):
        bench.prepare(task)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 1.0000000180025095e-35, -0.3, 1e300, -1e300, 16777217.0])
def test_a_float32_is_on_the_same_side_of_the_rounded_threshold(threshold: float) -> None:
    rounded = np.float32(below(threshold))
    near = [np.nextafter(rounded, np.float32(side)) for side in (-np.inf, np.inf)]
    for value in (rounded, *near, np.float32(0)):
        assert (float(value) <= threshold) == (value <= rounded)


@pytest.mark.parametrize("answer", [[b"caf\xc3\xa9", b"\xff"], ["café", "�"]], ids=["bytes", "texts"])
def test_what_a_framework_answers_as_bytes_is_text(answer: list[bytes | str]) -> None:
    tensor = Tensor(name="word", dtype="BYTES", shape=(-1,))
    assert fitted(np.array(answer, dtype=object), tensor).tolist() == ["café", "�"]
